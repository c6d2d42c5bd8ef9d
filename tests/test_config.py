"""Configuration: the text of errors is what users meet first, so it is what is tested."""

from pathlib import Path

import pytest

from volumediff import config
from volumediff.errors import UsageError
from volumediff.recipes.local_noise import LocalNoise

ROOT = Path(__file__).parents[1]


def test_names_are_file_stems():
    files = {p.stem for p in (ROOT / "volumediff/spaces").glob("[a-z]*.py")}
    assert set(config.available("space")) == files


@pytest.mark.parametrize("family", config.families())
def test_messages_call_a_component_as_configurations_do(family):
    for name in config.available(family):
        assert config.name_of(config.component(family, name)) == name


def test_only_the_name_of_its_own_family_is_left_out_of_a_name():
    assert {"z_score", "percentile"} <= set(config.available("intensity"))
    assert {"by_intensity", "voxelwise"} <= set(config.available("normalization"))
    assert "gaussian" in config.available("noise")
    assert config.name_of(LocalNoise) == "local_noise"


def test_numbers_are_read_as_the_constructor_says():
    # YAML 1.1 reads 1e-1 as text; the annotation makes it a number.
    sampler = config.build("sampler", {"name": "ddim", "steps": "7", "eta": "1e-1"})
    assert sampler.steps == 7
    assert sampler.eta == pytest.approx(0.1)


def test_nested_components_are_built():
    kernel = config.build(
        "kernel",
        {"name": "gaussian", "schedule": {"name": "cosine", "zero_terminal_snr": True}},
    )
    assert type(kernel.schedule).__name__ == "Cosine"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ddimm", "sampler.name = 'ddimm': choose from .*ddim.* Did you mean 'ddim'?"),
        ({"name": "ddim", "step": 3}, "sampler.step: DDIM takes .*Did you mean 'steps'"),
        (
            {"name": "ddim", "steps": "many"},
            "sampler.steps: expected a whole number, got 'many'",
        ),
        ({"name": [1]}, r"sampler.name: expected a name, got \[1\]"),
        ({"steps": 3}, "sampler: expected a name or a mapping with the key 'name'"),
    ],
)
def test_errors_say_what_to_do(spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        config.build("sampler", spec)
    assert "\n" not in str(caught.value)


def test_derived_arguments_are_not_configured():
    with pytest.raises(UsageError, match=r"network\.in_channels: is derived, not configured"):
        config.build(
            "network",
            {"name": "unet", "in_channels": 3, "widths": [8]},
            in_channels=1,
            out_channels=1,
        )


def test_unknown_family_lists_the_families():
    with pytest.raises(UsageError, match=r"'spacee' is no family.*sampler.*space"):
        config.available("spacee")


def test_overrides():
    tree = {"optim": {"lr": 0.1}, "space": "voxel", "deep": {"a": [1, 2]}}
    new = config.overridden(tree, ["optim.lr=3", "space.levels=2", "x.y.z=[1, 2]", "name=a=b"])
    assert new["optim"] == {"lr": 3}
    assert new["space"] == {"name": "voxel", "levels": 2}
    assert new["x"]["y"]["z"] == [1, 2]
    assert new["name"] == "a=b"
    assert tree == {"optim": {"lr": 0.1}, "space": "voxel", "deep": {"a": [1, 2]}}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.a=1", "'seed' is a value"),
    ],
)
def test_bad_overrides(word, message):
    with pytest.raises(UsageError, match=message):
        config.overridden({"seed": 3}, [word])


def test_yaml_errors_name_file_and_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(UsageError, match=r"broken.yaml:3: not valid YAML"):
        config.load(path)
    path.write_text("- 1\n")
    with pytest.raises(UsageError, match="expected a mapping of sections, got list"):
        config.load(path)
    path.write_bytes(b"a: \x00\x01")
    with pytest.raises(UsageError, match=r"broken\.yaml: not valid YAML: unacceptable character"):
        config.load(path)
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        config.load(path)


def test_shipped_configurations_are_found_by_name():
    assert config.config_path("anomaly", "thor").name == "thor.yaml"
    with pytest.raises(UsageError, match=r"anomaly configuration 'thorr'.*Did you mean 'thor'"):
        config.config_path("anomaly", "thorr")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_opens_with_a_comment(path):
    assert path.read_text().startswith("# "), "the first line says data, hardware and purpose"
    assert config.load(path)
