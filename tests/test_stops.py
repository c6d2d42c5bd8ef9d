"""Stop signals during a validation: it ends with the volume, and a resume changes nothing."""

import os
import signal
from dataclasses import replace

import pytest
from test_resume import digests, figures
from tiny_runs import tiny, write_data

from volumediff.storage import checkpoint
from volumediff.training.loop import train
from volumediff.training.validation import Validator

WORDS = (
    "optim.steps=4",
    "validation={every: 2, volumes: 3, previews: 2, preview_steps: 1, best: {volumes: 2}}",
    "data.split.validation=0.4",
    "data.preprocessing.shape=[16,16,16]",
    "crop=[8,8,8]",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=8, size=(16, 16, 16))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(tiny(data, tmp_path_factory.mktemp("whole") / "run", *WORDS))


def best(run):
    found = checkpoint.find(run, "best")
    return found.step, found.state["best"]


# Volumes looked at when the signal comes, counted over losses, lesions and previews of all
# validations (3 + 2 + 2 at steps 2 and 4), the step of it, and when the run is saved else.
MOMENTS = [(1, 2, 2), (3, 2, 100), (5, 2, 100), (6, 2, 100), (8, 4, 2), (14, 4, 100)]


@pytest.mark.parametrize(("volumes", "step", "save_every"), MOMENTS)
def test_a_stop_in_a_validation(data, whole, tmp_path, monkeypatch, volumes, step, save_every):
    config = tiny(data, tmp_path / "run", *WORDS, f"save_every={save_every}")
    count = 0

    def counted(function):
        def inner(*arguments):
            nonlocal count
            count += 1
            if count == volumes:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments)

        return inner

    original = Validator.__init__

    def init(self, *arguments):
        original(self, *arguments)
        self._loss = counted(self._loss)
        self.task.preview = counted(self.task.preview)
        criterion = self.task.criterion

        def watched(samples):
            found = criterion(samples)
            return replace(found, of=counted(found.of))

        self.task.criterion = watched

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "__init__", init)
        with pytest.raises(SystemExit) as stopped:
            train(config)
    assert stopped.value.code == 143
    assert count == volumes, "no volume is begun after the signal"
    found = checkpoint.find(config.output, "last")
    assert (found.step, found.state["validated"]) == (step, step - 2)
    train(config)
    assert digests(config.output) == digests(whole)
    assert figures(config.output) == figures(whole), "every validation stands in the log once"
    assert best(config.output) == best(whole)


def test_what_is_done_is_said(data, whole, capsys):
    before = digests(whole)
    train(tiny(data, whole, *WORDS, "optim.steps=3"))
    assert "already has 4 steps, of 3 wanted" in capsys.readouterr().err
    assert digests(whole) == before
