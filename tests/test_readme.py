"""The README is short, its commands and configurations exist, and its blocks of Python run."""

import re
import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from child_processes import run_program
from tiny_app import save
from tiny_runs import phantom, tiny, write_data

from volumediff.documentation.pages import read_page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = read_page(ROOT / "README.md")
PYTHON = [block.text for block in PAGE.blocks if block.language == "python"]
LINES = [line for block in PAGE.blocks for line in block.text.splitlines()]
COMMANDS = sorted({word for line in LINES for word in re.findall(r"volumediff (\w+)", line)})


def test_it_is_short():
    assert len(README.encode()) <= 6000


def test_pictures_are_small():
    pictures = [ROOT / path for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)]
    assert len(pictures) == 2
    assert all(path.stat().st_size < 200_000 for path in pictures)


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
    run_program([sys.executable, "-c", code], cwd=workplace)
    written = nib.load(workplace / "map.nii.gz")  # results lie as their image does
    assert nib.aff2axcodes(written.affine) == ("L", "P", "S")
    assert (workplace / "sub-01.png").read_bytes().startswith(b"\x89PNG")


def test_there_are_ten_lines_of_python():
    assert len(PYTHON) == 1
    assert len(PYTHON[0].splitlines()) <= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command):
    from volumediff.cli import app

    assert command in {c.name or c.callback.__name__ for c in app.registered_commands}


def test_commands_are_found():
    assert {"demo", "plan", "train", "localize", "segment", "evaluate", "import"} <= set(COMMANDS)


def test_named_configurations_exist():
    from volumediff.config import config_path

    for line in (x for x in LINES if "volumediff train" in x):
        words = shlex.split(line)
        assert config_path("pipelines", words[words.index("train") + 1])


def test_numbers_of_methods_are_those_that_ship():
    from volumediff.config import shipped

    found = re.search(r"(\d+) methods of\s+localization and (\d+) of segmentation", README)
    assert found
    assert [int(n) for n in found.groups()] == [
        len(shipped(kind)) for kind in ("anomaly", "segmentation")
    ]


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"<!-- test-command -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert command
    assert command[1] == 'pip install ".[test]" && pytest -n auto --dist loadfile'
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "test-command" in ci
