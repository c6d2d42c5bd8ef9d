"""Errors of users are one line; a component's keep their traceback and stop no other case."""

import re
import sys

import numpy as np
import pytest
import torch
from tiny_app import base, program, run, write_cases

from volumediff.errors import ComponentError, isolated_cases, one_line, place_of, traceback_of
from volumediff.inference.localize_files import localize
from volumediff.inference.options import LocalizeOptions
from volumediff.outputs.batch import Result, process
from volumediff.outputs.ledger import read_entries
from volumediff.runs.inputs import find_inputs
from volumediff.runs.trained import load_trained

__all__ = ["base", "program", "run"]  # fixtures

# A map of somebody else's; SICK is what the case new-1 alone is made to do.
BLOCK = '''"""A map of somebody else's."""

from dataclasses import dataclass

import torch

from volumediff.anomaly.maps._base import Map

__all__ = ["Broken"]
CALLS = []


@dataclass(frozen=True)
class Broken(Map):
    """Fails at the second volume."""

    def __call__(self, x, healthy, *, foreground, spacing_mm):
        a = (x - healthy).abs().mean(1, keepdim=True) * foreground
        CALLS.append(a)
        if len(CALLS) == 2:
            SICK
        return a
'''
LINE = 1 + BLOCK.splitlines().index("            SICK")
MADE = 1 + BLOCK.splitlines().index("class Broken(Map):") - 1  # a decorator counts
METHOD = (
    "--method",
    "ddpm",
    "sampler.steps=1",
    "map=broken_map:Broken",
    "threshold=best",
    "post=[]",
)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """(what the second call does) -> the file of the map."""
    folder = tmp_path / "others"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        sys.modules.pop("broken_map", None)
        file = folder / "broken_map.py"
        file.write_text(BLOCK.replace("SICK", text))
        return file

    yield write
    sys.modules.pop("broken_map", None)


def test_a_failing_component_leaves_its_traceback_and_the_other_cases(
    broken, program, run, tmp_path
):
    file = broken('raise RuntimeError("no such\\nluck")')
    data, out = write_cases(tmp_path / "in"), tmp_path / "out"
    command = ("localize", data, "--run", run, "-o", out, *METHOD)
    code, said, complaint = program(*command)
    assert code == 1
    assert "2 done, 1 failed" in said
    reason = f"RuntimeError at {file}:{LINE}: no such luck (traceback in {out}/errors/new-1.txt)"
    assert f"volumediff: new-1: {reason}" in complaint.splitlines()
    assert "Traceback" not in complaint
    assert read_entries(out)["new-1"].error == reason
    (kept,) = (out / "errors").iterdir()
    text = kept.read_text()
    assert text.startswith("new-1, volumediff ")
    assert f'File "{file}", line {LINE}, in __call__' in text
    assert text.endswith("RuntimeError: no such\nluck\n")
    assert "localizer.py" in text  # the whole way down to the component
    # the same command again: the traceback goes with the failure
    code, said, _ = program(*command)
    assert code == 0
    assert "1 done, 2 already finished" in said
    assert not (out / "errors").exists()


def test_debug_and_python_raise(broken, program, run, tmp_path):
    file = broken("torch.zeros(2) + torch.zeros(3)")
    data, out = write_cases(tmp_path / "in"), tmp_path / "out"
    for i, words in enumerate((("--debug", "localize"), ("localize", "--debug"))):
        broken("torch.zeros(2) + torch.zeros(3)")
        place = tmp_path / f"out-{i}"
        code, _, complaint = program(*words, data, "--run", run, "-o", place, *METHOD)
        assert code == 1
        assert f'File "{file}", line {LINE}, in __call__' in complaint
        last = complaint.splitlines()[-1]
        assert last.startswith(f"volumediff: error: RuntimeError at {file}:{LINE}: The size of ")
        assert set(read_entries(place)) == {"new-0"}  # it stopped at once
        assert not (place / "errors").exists()
    broken("torch.zeros(2) + torch.zeros(3)")
    options = LocalizeOptions(METHOD[1], METHOD[2:])
    with pytest.raises(RuntimeError, match="size of tensor a") as raised:
        localize(load_trained(run), data, out, options)
    assert place_of(raised.value) == f"{file}:{LINE}"


WRONG = {
    "shape": ("return a[..., :-1]", r"of the shape \(1, 1, 8, 8, 8\), got \(1, 1, 8, 8, 7\)"),
    "channels": ("return a.expand(1, 2, 8, 8, 8)", r"got \(1, 2, 8, 8, 8\)"),
    "NaN": ("return a.index_fill(2, torch.tensor(3), torch.nan)", "got 64 of 512 that are not"),
    "infinite": ("return a / 0.0", "finite values, got"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_map_must_be_finite_and_of_the_volume_s_shape(name, broken, program, run, tmp_path):
    text, reason = WRONG[name]
    file = broken(text)
    data, out = write_cases(tmp_path / "in", count=2), tmp_path / "out"
    code, said, complaint = program("localize", data, "--run", run, "-o", out, *METHOD)
    assert code == 1
    assert "1 done, 1 failed" in said
    (line,) = (x for x in complaint.splitlines() if x.startswith("volumediff: new-1: "))
    assert line.startswith("volumediff: new-1: ComponentError at ")
    assert f"broken_map.Broken ({file}:{MADE}): expected a map" in line
    assert re.search(reason, line)
    assert (out / "errors" / "new-1.txt").is_file()
    assert not list(out.glob("new-1*"))


def test_a_pseudo_healthy_volume_must_be_finite(monkeypatch, run, tmp_path):
    from volumediff.anomaly.routes.diffuse import Diffuse

    def nothing(self, context, level, **_):
        yield context.x * torch.nan

    monkeypatch.setattr(Diffuse, "__call__", nothing)
    data = write_cases(tmp_path / "in", count=1)
    options = LocalizeOptions("ddpm", ("threshold=best", "post=[]"))
    with pytest.raises(ComponentError, match=r"Diffuse \(.*diffuse.py:\d+\): .*healthy volume"):
        localize(load_trained(run), data, tmp_path / "out", options)


def test_an_unexpected_error_outside_of_cases_shows_its_traceback(program, monkeypatch, tmp_path):
    def fails(*args, **kwargs):
        return {}["nothing"]

    monkeypatch.setattr("volumediff.data.check.Checking", fails)
    code, _, complaint = program("check", write_cases(tmp_path, count=1))
    first, *_, last = complaint.splitlines()
    assert code == 1
    assert first == "Traceback (most recent call last):"
    assert f"in {fails.__name__}" in complaint
    line = fails.__code__.co_firstlineno + 1
    assert last == f"volumediff: error: KeyError at {__file__}:{line}: 'nothing'"


def test_debug_shows_what_a_line_of_a_user_hides(program, tmp_path):
    plain = program("train", "wavelet_64", "optim.lr=fast")
    shown = program("train", "wavelet_64", "optim.lr=fast", "--debug")
    assert plain[0] == shown[0] == 2
    assert plain[2].count("\n") == 1
    assert shown[2].splitlines()[-1] == plain[2].strip()
    assert "ValidationError" in shown[2]  # of pydantic, which the line replaced
    assert "--debug" in program("--help")[1]
    code, _, complaint = program("check", "--", "--debug")  # a folder of that name
    assert code == 1
    assert "--debug" in complaint


def test_a_disk_that_is_full_ends_the_run_and_another_file_does_not(tmp_path):
    cases, _ = find_inputs(write_cases(tmp_path / "data"), channels=None)
    out = tmp_path / "out"

    def work(case, inputs, folder):
        if case.id == "new-1":
            open(tmp_path / "nowhere" / "weights.npz", "rb")  # of a component's own
        return Result([], {})

    with isolated_cases():
        summary = process(cases, out, settings={}, work=work, report=lambda line: None)
    assert summary.done == ["new-0", "new-2"]
    assert summary.failed["new-1"].startswith(f"FileNotFoundError at {__file__}:")
    with pytest.raises(FileNotFoundError):
        process(cases, tmp_path / "b", settings={}, work=work, report=lambda line: None)


def test_the_place_of_an_error_is_not_in_a_library():
    def own():
        np.stack([np.zeros(2), np.zeros(3)])

    with pytest.raises(ValueError, match="same shape") as raised:
        own()
    line = own.__code__.co_firstlineno + 1
    assert place_of(raised.value) == f"{__file__}:{line}"
    assert place_of(ValueError("never raised")) == ""
    assert one_line(ValueError("never\nraised")) == "ValueError: never raised"
    assert one_line(KeyError()) == "KeyError"


def test_a_traceback_has_the_errors_that_were_replaced():
    def replaced():
        try:
            raise ValueError("the first")
        except ValueError:
            raise KeyError("the second") from None

    with pytest.raises(KeyError) as raised:
        replaced()
    text = traceback_of(raised.value)
    assert text.index("the first") < text.index("the second")
