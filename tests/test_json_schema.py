"""The JSON schema of configurations, by the validator of another project."""

import json
import re

import jsonschema
import pytest
import yaml
from tiny_app import program

from volumediff.config import ROOTS, load, overridden
from volumediff.settings.json_schema import json_schema
from volumediff.settings.run_config import FOLDERS, parse

__all__ = ["program"]  # a fixture

FILES = sorted(
    path
    for root in ROOTS
    for folder in FOLDERS
    for path in (root / folder).glob("*.yaml")
    if not path.stem.endswith("_card")
)


class Editor(yaml.SafeLoader):
    """YAML 1.2, as editors read it: 1e-4 is a number, and 200_000 is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML reads the class
        first: [(tag, rule) for tag, rule in pairs if not tag.endswith(("int", "float"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


START = list("-+.0123456789")
Editor.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), START)
Editor.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\d+[eE][-+]?\d+$"),
    START,
)


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_shipped_configuration_is_valid(validator):
    assert len(FILES) > 30
    for path in FILES:
        assert validator.is_valid(load(path)), path
        assert validator.is_valid(yaml.load(path.read_text(), Loader=Editor)), path


WRONG = {
    "a key": "optm.lr=1e-4",
    "a key of a section": "optim.lrr=1e-4",
    "a key of a policy": "memory.chekpoint=true",
    "an argument of a component": "space.levls=2",
    "a component": "space.name=wavlet",
    "a nested component": "kernel.schedule.name=cosinus",
    "a nested argument": "kernel.schedule.shft=2",
    "a layout": "data.layout=bidss",
    "a type": "optim.lr=fast",
    "a length": "data.preprocessing.shape=[64,64]",
    "a limit": "optim.steps=0",
    "a choice": "memory.dtype=float8",
    "a loss": "losses=[dicee]",
}


@pytest.mark.parametrize("name", WRONG)
def test_typing_errors_are_not(name, validator):
    path = next(path for path in FILES if path.stem == "wavelet_64")
    tree = load(path, [WRONG[name]])
    assert not validator.is_valid(tree)
    assert validator.is_valid(load(path))


def test_what_the_program_takes_is_valid(validator):
    path = next(path for path in FILES if path.stem == "wavelet_64")
    for words in (
        ["space=voxel"],
        ["losses=[dice, {name: cross_entropy}]"],
        ["noise={name: simplex, wavelength: 32}"],
        ["data.only={group: healthy, site: [a, b]}", "data.preprocessing.centre=[0.0, 1, 2]"],
        ["validation.best=null", "crop=[8, 8, 8]", "data.augmentation={flip: [0]}"],
        ["network=my.package:Net"],
        ["task=my.package:Task", "anything=1"],
    ):
        tree = overridden(load(path), words)
        assert validator.is_valid(tree), words
        if "my.package" not in words[0]:
            parse(tree)


def test_the_command_writes_it(program, tmp_path):
    code, out, _ = program("schema")
    assert code == 0
    assert out == json_schema()
    code, out, said = program("schema", "-o", tmp_path / "s.json")
    assert (code, out) == (0, "")
    assert "yaml-language-server: $schema=s.json" in said
    assert (tmp_path / "s.json").read_text() == json_schema()
