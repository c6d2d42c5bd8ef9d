"""YAML of configurations: values as PyYAML gives them, refusals with a line, and no long wait."""

import time
from pathlib import Path

import pytest
import yaml

from volumediff.config import build, load, overridden
from volumediff.config.yaml_text import DEEPEST, Unfit, parse_yaml
from volumediff.errors import UsageError
from volumediff.settings.run_config import load_run_config

ROOT = Path(__file__).parents[1]
SIZE = 1 << 16  # characters of the longest texts here
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n"
    for i in range(9)
)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_values_are_those_of_pyyaml(path):
    assert parse_yaml(path.read_text()) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", "1e-4"),  # text in YAML 1.1; the annotation of the key makes it a number
        ("1.0e-4", 1e-4),
        ("0x_f", 15),
        ("-.inf", float("-inf")),
        ("2024-01-05", "2024-01-05"),
        ("2024-13-45", "2024-13-45"),
        ("yes", True),
        ("~", None),
        ("", None),
        ("{a: [1, {b: 'c'}]}", {"a": [1, {"b": "c"}]}),
        ("'1': 2", {"1": 2}),
        ("{a: 1, b: {a: 2}}", {"a": 1, "b": {"a": 2}}),
    ],
)
def test_values(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (BOMB, 1, "anchors and aliases"),
        ("a: 1\nb: &a [*a]\n", 2, "anchors and aliases"),
        ("a: *a", 1, "anchors and aliases"),
        ("a: 1\nb:\n  <<: {c: 1}\n", 3, "merge keys"),
        ("a: 1\nb: 2\na: 1\n", 3, "the key 'a' is there twice"),
        ("{x: {b: 1, c: 2, 'b': 3}}", 1, "the key 'b' is there twice"),
        ("1: a", 1, "expected text as a key, got the int 1"),
        ("on: a", 1, "expected text as a key, got the bool True"),
        ("~: a", 1, "expected text as a key, got the NoneType None"),
        ("[a]: b", 1, "expected text as a key|unhashable"),
        ("a: !!int x", 1, "the tag tag:yaml.org,2002:int is not supported"),
        ("a: !!python/object/apply:os.getcwd []", 1, "the tag .*getcwd is not supported"),
        ("a: 0x_", 1, "0x_ is no number"),
        ("a: " + "9" * 65, 1, "a number has 65 characters"),
        ("a: " + "1:" * 40 + "1", 1, "a number has 81 characters"),
        ("a: 1" + "0" * 70 + ".5", 1, "a number has"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), 1, "expected at most 40 levels"),
        ("".join(" " * i + "a:\n" for i in range(60)), 41, "expected at most 40 levels"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("x" * ((1 << 20) + 1), None, "is too long"),
        ("a: \x00", None, "not valid YAML"),
    ],
)
def test_refusals_name_the_line(text, line, message):
    with pytest.raises(Unfit, match=message) as refused:
        parse_yaml(text)
    assert refused.value.line == line
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_the_deepest_value_is_taken_and_digits_of_any_double():
    parse_yaml("[" * DEEPEST + "]" * DEEPEST)
    assert parse_yaml("5.0e-324") == 5e-324
    assert parse_yaml("-1.7976931348623157e+308") == -1.7976931348623157e308


LONG = {
    "open": "[" * SIZE,
    "nested": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "dashes": "- " * (SIZE // 2),
    "list": "- 1\n" * (SIZE // 4),
    "numbers": "a: [" + "1," * (SIZE // 2 - 4) + "]",
    "keys": "".join(f"a{i}: 1\n" for i in range(6500)),
    "twice": "a: 1\n" * (SIZE // 5),
    "digits": "a: " + "9" * (SIZE - 4),
    "hexadecimal": "a: 0x" + "f" * (SIZE - 6),
    "sexagesimal": "a: " + "1:" * (SIZE // 2 - 3) + "1",
    "quoted": 'seed: "' + "x" * (SIZE - 10) + '"',
    "escapes": 'a: "' + "\\x41" * (SIZE // 4 - 4) + '"',
    "questions": "? " * (SIZE // 2),
    "brackets": "[{a: " * (SIZE // 5),
    "anchors": "&a " * (SIZE // 3),
    "tags": "!a " * (SIZE // 3),
    "lines": "a: |\n" + " x\n" * (SIZE // 3),
    "documents": "---\n" * (SIZE // 4),
    "comment": "#" * SIZE,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_no_text_of_64_kib_takes_a_second(text, tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(text)
    began = time.process_time()
    for read in (
        lambda: load_run_config(path),
        lambda: load_run_config("wavelet_64", [f"seed={text}"]),
    ):
        said = complaint(read)
        assert "\n" not in said
        assert len(said) < 400, "a message is no copy of the file"
    # two readings, with types checked at every call; what grows faster takes minutes
    assert time.process_time() - began < 5


def complaint(read):
    """The message of a refusal; empty without one."""
    try:
        read()
    except UsageError as error:
        return str(error)
    return ""


def test_a_file_and_a_word_are_refused_alike(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(UsageError, match=r"twice\.yaml:2: the key 'c' is there twice"):
        load(path)
    with pytest.raises(UsageError, match=r"'b={c: 1, c: 2}': the key 'c' is there twice"):
        overridden({}, ["b={c: 1, c: 2}"])
    with pytest.raises(UsageError, match="expected at most 40 dots"):
        overridden({}, ["a." * 41 + "b=1"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr=.inf", r"optim\.lr: .* finite number"),
        ("optim.lr=.nan", r"optim\.lr: .* finite number"),
        ("seed=2024-13-45", r"seed: expected a whole number"),
        ("seed=2024-01-05", r"seed: expected a whole number"),
        ("data.preprocessing.spacing_mm=.inf", r"spacing_mm.* finite number"),
    ],
)
def test_numbers_of_sections_are_finite(word, message):
    with pytest.raises(UsageError, match=message):
        load_run_config("wavelet_64", [word])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_of_components_are_finite(value):
    with pytest.raises(UsageError, match="finite number"):
        build("network", {"name": "unet", "widths": [8, value]}, channels=1, classes=0)
