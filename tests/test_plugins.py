"""Components from outside of the package, by `package.module:Class` and as Python classes."""

import sys

import nibabel as nib
import numpy as np
import pytest
import yaml
from outside_parts import Huber, Pointwise, Upper
from tiny_app import QUICK, base, program, run, write_cases
from tiny_runs import load_run, tiny, write_data

from volumediff import config
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method_files import build_method, read_method
from volumediff.anomaly.routes.scan import Scan
from volumediff.contracts import check
from volumediff.contracts.__main__ import main
from volumediff.data.survey import find_cases
from volumediff.errors import UsageError
from volumediff.training.loop import train

__all__ = ["base", "program", "run"]  # fixtures


def test_yaml_overrides_and_python_give_the_same(tmp_path):
    path = tmp_path / "huber.yaml"
    path.write_text(
        "# scan\nroute: {name: scan, levels: [0.3]}\n"
        "map: {name: outside_parts:Huber, delta: 0.25}\n"
    )
    written = read_method(str(path))
    words = ["map=outside_parts:Huber", "map.delta=0.25", "route={name: scan, levels: [0.3]}"]
    route = {"name": "scan", "levels": [0.3]}
    rows = [
        read_method("scan", overrides=words),
        read_method("scan", overrides=["map.name=outside_parts:Huber", *words[1:]]),
        build_method({"route": route, "map": {"name": Huber, "delta": 0.25}}),
        build_method({"route": Scan(levels=(0.3,)), "map": Huber(0.25)}),
    ]
    for row in (written, *rows):
        assert row.map == Huber(0.25)
        assert row.route == Scan(levels=(0.3,))


def test_components_inside_of_components():
    maps = [{"name": "outside_parts:Huber", "delta": 2}, L1, "l1", L1()]
    block = config.build("map", {"name": "product", "maps": maps})
    assert block.maps == (Huber(2.0), L1(), L1(), L1())
    assert config.build("sampler", {"name": "outside_parts:Twice", "steps": "4"}).steps == 4


def test_a_class_and_its_name_are_one():
    assert config.component("map", "outside_parts:Huber") is Huber
    assert config.component("map", Huber) is Huber
    assert config.reference(Huber) == "outside_parts:Huber"
    assert config.reference(L1) == "l1"
    tree = {"map": {"name": Huber, "of": [L1]}, "seed": 3}
    assert config.named(tree) == {"map": {"name": "outside_parts:Huber", "of": ["l1"]}, "seed": 3}
    assert config.arguments("map", "outside_parts:Huber") == {"delta"}


def test_it_localizes_on_the_command_line(program, run, tmp_path):
    new = write_cases(tmp_path / "new", count=1)
    words = ("map=outside_parts:Huber", "map.delta=0.1")
    code, _, text = program("localize", new, "--run", run, "-o", tmp_path / "out", *QUICK, *words)
    assert code == 0, text
    (file,) = (tmp_path / "out").glob("*_desc-anomaly_map.nii.gz")
    assert np.isfinite(nib.load(file).get_fdata()).all()


def test_it_trains_and_is_loaded_again(tmp_path):
    words = ("network={name: outside_parts:Pointwise, hidden: 3}", "optim.steps=2")
    words += ("data.layout=outside_parts:Upper",)
    folder = train(tiny(write_data(tmp_path / "data", cases=4), tmp_path / "run", *words))
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["network"] == {"name": "outside_parts:Pointwise", "hidden": 3}
    _, model = load_run(folder, which="last")
    assert isinstance(model.network, Pointwise)
    found = find_cases(tmp_path / "data", {"name": Upper})
    assert [c.id for c in found] == [f"SUB-{i:02d}" for i in range(4)]


def write(folder, name, text, monkeypatch):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Huber", "cannot import nowhere .No module named 'nowhere'.; install it"),
        ("outside_parts:Hubert", "outside_parts has no class Hubert. Did you mean 'Huber'?"),
        ("outside_parts:NotAMap", r"expected a class that extends .*maps\._base\.Map, got"),
        ("outside_parts:Twice", r"expected a class that extends .*maps\._base\.Map, got"),
        ("outside_parts:torch", "expected a class, got module"),
        ("outside_parts.Huber", "Name a class of your own as package.module:Class"),
        ("outside-parts:Huber", "expected package.module:Class"),
        ("hubert", "choose from asymmetric, .*ssim"),
    ],
)
def test_what_is_not_there_is_one_line(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        config.build("map", name)
    assert str(caught.value).startswith(f"map.name = {name!r}: ")
    assert "\n" not in str(caught.value)


def test_what_is_unfinished_names_what_it_must_define():
    with pytest.raises(UsageError, match=r"layout\.name = .*: Unfinished must define read"):
        config.build("layout", "outside_parts:Unfinished")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise RuntimeError('no\\nlicence')\n", r"py:2 \(RuntimeError: no licence\)"),
        ("import not_there\n", r"py:1 \(ModuleNotFoundError: No module named 'not_there'\)"),
        ("class A\n", r"py:1 \(SyntaxError: expected ':'\)"),
    ],
)
def test_a_module_that_raises_is_named_with_its_line(text, message, tmp_path, monkeypatch):
    write(tmp_path, "raising_parts", text, monkeypatch)
    with pytest.raises(UsageError, match=f"raising_parts fails at .*{message}") as caught:
        config.component("map", "raising_parts:A")
    assert "\n" not in str(caught.value)


FILES = {
    "none": ("X = 1", "expected one class that extends .*Map in .*, got none"),
    "two": ("class A(L1):\n    ...\n\nclass B(L1):\n    ...\n", "got A and B; name one of them"),
    "helper": ("class _A(L1):\n    ...\n\nclass B(L1):\n    ...\n", None),
    "named": ("class Named(L1):\n    ...\n\nclass Other(L1):\n    ...\n", None),
}


@pytest.mark.parametrize("stem", FILES)
def test_the_class_of_a_file_is_found_by_its_base(stem, tmp_path, monkeypatch):
    # a file of a family folder, without `__all__`
    import volumediff.anomaly.maps as maps
    from volumediff.config import components

    text, message = FILES[stem]
    (tmp_path / f"{stem}.py").write_text(f"from volumediff.anomaly.maps.l1 import L1\n\n{text}\n")
    monkeypatch.setattr(maps, "__path__", [*maps.__path__, str(tmp_path)])
    monkeypatch.setattr(components, "listed", lambda family: {stem: ""})
    try:
        if message is None:
            assert config.component("map", stem).__name__ == {"helper": "B"}.get(stem, "Named")
            return
        with pytest.raises(UsageError, match=message) as caught:
            config.component("map", stem)
        assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop(f"volumediff.anomaly.maps.{stem}", None)


def test_outsiders_check_their_own(capsys):
    check("map", "outside_parts:Huber", delta=0.25)
    check("sampler", "outside_parts:Twice")
    with pytest.raises(AssertionError, match="The map is negative"):
        check("map", "outside_parts:Careless")
    assert main(["map", "outside_parts:Careless"]) == 1
    assert "map outside_parts:Careless: The map is negative" in capsys.readouterr().err
