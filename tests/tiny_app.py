"""Tiny trained runs and files in any orientation, for the tests of inference and program."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_runs import phantom, tiny, write_data

from volumediff import cli
from volumediff.training.loop import train

# Intensities become x = v / 100 - 1 where they are not zero, so that maps can be computed by hand.
WINDOW = (
    "data.preprocessing.intensity={name: window, center: 100, width: 200, foreground: nonzero}"
)
# A method with a stochastic chain of two steps that needs no calibration.
QUICK = ("--method", "ddpm", "sampler.steps=2", "threshold=best", "post=[]")
# A map that is the intensity itself, (1 + x) / 2.
PLAIN = ("--method", "intensity", "threshold=best", "post=[]")


def tiny_run(base: Path) -> Path:
    """A voxel-space run on eight phantoms, four of them for calibration; trained once."""
    run = base / "run"
    if not (run / "checkpoints").is_dir():
        words = ("data.split={validation: 0.2, calibration: 0.5}", "optim.steps=2", WINDOW)
        train(tiny(write_data(base / "data", cases=8), run, *words))
    return run


def label_run(base: Path) -> Path:
    """The same with the recipe label_diffusion."""
    run = base / "label_run"
    if not (run / "checkpoints").is_dir():
        words = ("recipe.name=label_diffusion", "optim.steps=2", WINDOW)
        train(tiny(write_data(base / "labelled", cases=4, labels=True), run, *words))
    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder for what is trained once per session."""
    folder = tmp_path_factory.getbasetemp() / "tiny_app"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run(base):
    return tiny_run(base)


@pytest.fixture
def program(monkeypatch, capsys):
    """(words) -> (exit code, stdout, stderr) of the program, in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["volumediff", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def oblique(axes="RAS", degrees=20.0, spacing=(3.0, 3.0, 3.0)) -> np.ndarray:
    """An affine whose axes point to `axes`, turned about the third world axis."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0)}
    directions |= {"S": (0, 0, 1), "I": (0, 0, -1)}
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([directions[c] for c in axes], float).T * spacing
    affine[:3, 3] = (5, -7, 11)
    return affine


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """A NIfTI file with both forms set."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_cases(folder: Path, count=3) -> Path:
    """A folder of phantoms that training has not seen."""
    for i in range(count):
        save(folder / f"new-{i}_T1w.nii.gz", phantom(100 + i), np.diag([3.0, 3, 3, 1]))
    return folder
