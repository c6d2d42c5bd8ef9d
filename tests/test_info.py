"""`volumediff info`: everything at a glance, and a page per name, as the sources have it."""

import json

import pytest
from tiny_app import program

from volumediff import config

__all__ = ["program"]  # fixture


def test_the_glance_is_short_and_names_everything(program):
    code, text, complaint = program("info")
    assert (code, complaint) == (0, "")
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    words = set(text.replace(",", " ").split())
    names = {p.stem for root in config.ROOTS for p in root.glob("*/*.yaml")}
    assert names
    assert names <= words
    methods = len(config.shipped("anomaly"))
    assert f"  localization ({methods})" in text
    assert f"  segmentation ({len(config.shipped('segmentation'))})" in text
    flat = " ".join(text.split())
    for family in config.families():
        assert f" {family} {len(config.available(family))}" in flat


def test_a_family_lists_its_components_with_their_first_line(program):
    code, text, _ = program("info", "map")
    assert code == 0
    first, *lines = text.splitlines()
    assert first == f"map: a family of {len(config.available('map'))} components"
    assert [line.split()[0] for line in lines] == config.available("map")
    assert f"  l1             {config.described('map')['l1']}" in lines
    assert config.described("map")["l1"].startswith("Absolute residual |x - x̂|")
    (found,) = json.loads(program("info", "map", "--json")[1])
    assert found == {"family": "map", "components": config.described("map")}


def test_a_method_says_on_what_it_runs_and_what_it_needs(program):
    code, text, _ = program("info", "--json")
    assert code == 0
    found = json.loads(text)
    assert {"thor", "ddpm", "scan", "intensity"} <= set(found["localization methods"])
    assert found["segmentation methods"] == config.shipped("segmentation")
    assert {"voxel", "wavelet", "latent", "slices"} <= set(found["components"]["space"])
    text = program("info", "anoddpm")[1]
    lines = text.splitlines()
    assert max(map(len, lines[1:])) <= 120  # the first has the path of the file
    assert lines[0].startswith("anoddpm: localization method, ")
    head = config.config_path("anomaly", "anoddpm").read_text().partition("\nsupervision")[0]
    about = " ".join(line.removeprefix("# ") for line in head.splitlines())
    assert "Wyatt et al. 2022" in about  # the paper
    assert about in " ".join(text.split())
    assert "  needs        a run trained with noise=simplex" in lines
    for pipeline, why in found["localization"]["anoddpm"].items():
        (line,) = (x for x in lines if x.startswith(f"  {pipeline} "))
        assert line.split()[1] == ("yes" if why == "ok" else "no:")
    assert "expected gaussian in a latent space, got simplex" in text
    (method,) = json.loads(program("info", "anoddpm", "--json")[1])
    assert method["runs on"] == found["localization"]["anoddpm"]
    assert method["needs"] == ["noise=simplex"]
    # one word may name several things: all are shown
    shown = program("info", "intensity")[1]
    heads = [line for line in shown.splitlines() if line.startswith("intensity: ")]
    assert [head.partition(",")[0] for head in heads] == [
        f"intensity: a family of {len(config.available('intensity'))} components",
        "intensity: localization method",
        "intensity: a component of the family baseline",
    ]


def test_a_configuration_shows_its_head(program):
    code, text, _ = program("info", "wavelet_64")
    assert code == 0
    path = config.config_path("pipelines", "wavelet_64")
    assert text.startswith(f"wavelet_64: one of the pipelines, {path}\n")
    head = path.read_text().splitlines()[0].removeprefix("# ")
    assert head in " ".join(text.split())


def test_a_class_of_other_code_is_described(program):
    name = "volumediff.anomaly.maps.l1:L1"
    code, text, _ = program("info", name)
    assert code == 0
    assert text.startswith(f"{name}: a component of the family map\n  Absolute residual")


def test_a_yaml_file_is_described_by_its_keys(program, tmp_path):
    files = {
        "anomaly/ddpm": "localization method",
        "segmentation/ledm": "segmentation method",
        "translation/cwdm": "translation method",
        "pipelines/wavelet_64": "configuration of task diffusion",
        "autoencoders/vae_64": "configuration of task autoencoder",
    }
    for name, kind in files.items():
        own = tmp_path / "own.yaml"
        own.write_bytes(config.config_path(*name.split("/")).read_bytes())
        code, text, _ = program("info", str(own))
        assert code == 0
        assert text.startswith(f"{own}: {kind}, {own}\n")
    own.write_text("rout: diffuse\n")
    code, _, complaint = program("info", str(own))
    assert code == 2
    assert "'route'" in complaint


WRONG = {
    "nowhere.yaml": "expected a YAML file of a method or a run, got no such file",
    "thorr": "Did you mean 'thor'?",
    "nowhere.at_all:L1": "cannot import nowhere.at_all",
    "volumediff.anomaly.maps.l1:L7": "has no class L7",
    "pathlib:Path": "extends the base class of no family",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_there_is_one_line(name, program):
    code, text, complaint = program("info", name)
    assert (code, text) == (2, "")
    assert complaint.count("\n") == 1
    assert WRONG[name] in complaint


def test_a_segmentation_method_says_where_it_runs(program):
    code, out, _ = program("info", "ccdm")
    assert code == 0
    assert "a run trained with method=ccdm" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines["wavelet"].split() == ["wavelet", "yes"]
    assert "no: kernel: expected a space of bits" in lines["latent"]


def test_a_translation_method_says_where_it_runs_and_what_trains_it(program):
    code, out, _ = program("info", "cwdm")
    assert code == 0
    assert "a run trained with method=cwdm" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines["wavelet"].split() == ["wavelet", "yes"]
    assert "space wavelet, which the method is about, got voxel" in lines["patch"]
    assert "a run trained with method=translation" in program("info", "polynomial")[1]
