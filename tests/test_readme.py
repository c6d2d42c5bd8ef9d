"""The README runs: its Python blocks as they stand, and its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_app import save
from tiny_runs import phantom, tiny, write_data

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
COMMANDS = sorted(
    {
        word
        for language, body in BLOCKS
        if not language
        for word in re.findall(r"^(?:.* )?volumediff (\w+)", body, re.MULTILINE)
    }
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the blocks name: a trained run and an image, which runs to L, P and S."""
    from volumediff.training.loop import train

    folder = tmp_path_factory.mktemp("readme")
    words = ("data.split={validation: 0.2, calibration: 0.5}", "optim.steps=2")
    train(tiny(write_data(folder / "data", cases=12), folder / "runs" / "brain", *words))
    save(folder / "sub-01_T1w.nii.gz", phantom(90), np.diag([-3.0, -3, 3, 1]))
    return folder


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code, workplace):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "volumediff.load" in code:  # the way of users: results lie as their image does
        written = nib.load(workplace / "map.nii.gz")
        assert nib.aff2axcodes(written.affine) == ("L", "P", "S")
        assert (workplace / "sub-01.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command):
    from volumediff.cli import app

    assert command in {c.name or c.callback.__name__ for c in app.registered_commands}


def test_commands_are_found():
    assert {"demo", "check", "train", "localize", "evaluate", "segment", "translate"} <= set(
        COMMANDS
    )


def test_named_configurations_exist():
    from volumediff.config import config_path

    for line in (x for _, body in BLOCKS for x in body.splitlines() if "volumediff train" in x):
        words = shlex.split(line)
        assert config_path("pipelines", words[words.index("train") + 1])


def test_the_table_of_rows_is_what_info_says():
    from volumediff.documentation.method_matrix import inventory

    section = re.search(r"<!-- rows -->\n(.*?)<!-- /rows -->", README, re.DOTALL)
    assert section
    head, _, *lines = section[1].strip().splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    shown, needs = {}, {}
    for line in lines:
        cells = dict(zip(columns, (c.strip() for c in line.strip("|").split("|")), strict=True))
        row = cells["method"].strip("`")
        needs[row] = re.findall(r"`([^`]+)`", cells["run"])
        shown[row] = {c: cells[c] == "✓" for c in columns[4:]}
    found = inventory()
    expected = {
        row: {c: text == "ok" for c, text in cells.items()}
        for row, cells in found["localization"].items()
    }
    assert shown == expected
    assert needs == found["localization needs"]


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"<!-- test-command -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert command
    assert command[1] == 'pip install ".[test]" && pytest -n auto --dist loadfile'
    ci = (Path(__file__).parents[1] / ".ci/run").read_text(encoding="utf-8")
    assert "test-command" in ci


@pytest.mark.parametrize("kind", ["segmentation", "translation"])
def test_the_table_of_methods_is_what_info_says(kind):
    from volumediff.documentation.method_matrix import inventory

    marks = rf"<!-- {kind}-methods -->\n(.*?)<!-- /{kind}-methods -->"
    section = re.search(marks, README, re.DOTALL)
    assert section
    head, _, *lines = [line for line in section[1].splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    shown = {}
    for line in lines:
        cells = dict(zip(columns, (c.strip() for c in line.strip("|").split("|")), strict=True))
        shown[cells["method"].strip("`")] = {c: cells[c] == "✓" for c in columns[3:]}
    found = inventory()[kind]
    assert shown == {m: {p: why == "ok" for p, why in r.items()} for m, r in found.items()}
