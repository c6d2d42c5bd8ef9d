"""Resume: bit-identical weights after a stop at any step, a kill at any moment, and by SIGTERM.

The kills happen in children forked from one interpreter that has imported everything: a kill then
costs a second, and falls into data preparation, steps, validation and the middle of saves.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from child_processes import run_program, running
from tiny_runs import figures, tiny, write_data

from volumediff.errors import DataError, UsageError
from volumediff.optimization.metrics_file import read_metrics
from volumediff.storage import checkpoint
from volumediff.training import steps
from volumediff.training.loop import train

WORDS = (
    "optim.steps=7",
    "crop=[6,6,6]",
    "data.augmentation={flip: [0, 1], noise: 0.1}",
    "optim.accumulate=2",
    "memory={dtype: bfloat16, channels_last: true, checkpoint: true}",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums depend on the number of threads; the children have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def digests(run):
    """SHA-256 of all tensors of the last checkpoint."""
    folder = checkpoint.find(run, "last").path
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.glob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(tiny(data, tmp_path_factory.mktemp("whole") / "run", *WORDS))


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_stop_at_every_step_changes_nothing(data, whole, tmp_path, monkeypatch, stop):
    number = (signal.SIGTERM, signal.SIGINT)[stop % 2]
    config = tiny(data, tmp_path / "run", *WORDS, "save_every=100")
    original, count = steps.clipped, 0

    def clipped(*arguments):
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), number)
        return original(*arguments)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "clipped", clipped)
        with pytest.raises(SystemExit) as caught:
            train(config)
    assert caught.value.code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert checkpoint.find(config.output, "last").step == stop
    train(config)
    assert digests(config.output) == digests(whole)
    assert figures(config.output) == figures(whole), "every step stands in the log once"


def test_a_finished_run_is_left_alone(data, whole):
    before = digests(whole), (whole / "metrics.jsonl").read_bytes()
    train(tiny(data, whole, *WORDS))
    assert (digests(whole), (whole / "metrics.jsonl").read_bytes()) == before


def test_a_run_goes_on_with_recomputation_and_nothing_changes(data, whole, tmp_path):
    words = (*WORDS, "memory.checkpoint=false")
    train(tiny(data, tmp_path / "run", *words, "optim.steps=3"))
    run = train(tiny(data, tmp_path / "run", *WORDS))
    assert digests(run) == digests(whole)
    with pytest.raises(UsageError, match=r"memory\.slab: null -> 4"):
        train(tiny(data, run, *WORDS, "memory.slab=4"))


def test_more_steps_go_on_from_the_end(data, tmp_path):
    config = tiny(data, tmp_path / "run", "optim.steps=2")
    train(config)
    train(tiny(data, tmp_path / "run", "optim.steps=4"))
    straight = train(tiny(data, tmp_path / "straight", "optim.steps=4"))
    assert digests(config.output) == digests(straight)


def test_other_settings_are_refused_by_name(data, tmp_path):
    run = tmp_path / "run"
    train(tiny(data, run, "optim.steps=1"))
    before = digests(run)
    with pytest.raises(UsageError, match=r"other settings \(optim.lr: 0.001 -> 0.5\); choose"):
        train(tiny(data, run, "optim.steps=1", "optim.lr=0.5"))
    assert digests(run) == before


def test_a_run_that_never_trained_begins_anew(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UsageError, match=r"data\.root"):
        train(tiny(data, run, "optim.steps=1", "data.root=null"))
    train(tiny(data, run, "optim.steps=1"))
    assert digests(run) == digests(train(tiny(data, tmp_path / "fresh", "optim.steps=1")))


def test_a_damaged_checkpoint_is_passed_over_and_its_steps_made_again(
    data, whole, tmp_path, capsys
):
    config = tiny(data, tmp_path / "run", *WORDS)
    train(config)
    path = checkpoint.find(config.output, "last").path / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    train(config)
    assert "last-00000007: damaged, not used: optimizer.safetensors" in capsys.readouterr().err
    assert digests(config.output) == digests(whole)
    assert figures(config.output) == figures(whole), "a step made again stands there once"


def test_a_run_whose_checkpoints_are_all_damaged_is_not_silently_begun_again(data, tmp_path):
    config = tiny(data, tmp_path / "run")
    train(config)
    for path in (config.output / "checkpoints").glob("last-*/state.json"):
        path.unlink()
    with pytest.raises(DataError, match="all 2 checkpoints 'last' are damaged"):
        train(config)


def test_a_second_process_in_the_same_run_is_refused(data, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    config = tiny(data, tmp_path / "run")
    config.output.mkdir()
    with open(config.output / "run.lock", "w") as file:
        file.write("host other, pid 1, since now")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another process trains here \(host other, pid 1"):
            train(config)
    train(config)


def test_a_read_only_output_fails_before_anything_else(data, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot be written .* choose output=DIR"):
        train(tiny(data, blocked / "run"))


# Each line of the plan is one child: (what kills it, when). The last child ends the run.
NURSERY = """
import json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny_runs import tiny
from volumediff.training import steps
from volumediff.training.loop import train
import volumediff.data.augmentation, torchio, matplotlib.figure

data, output, words, plan = json.loads(sys.argv[2])
config = tiny(data, output, *words)


def die_at(call, number):
    original, count = getattr(os, call), 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, call, wrapped)


for kind, when in [*plan, ("end", 0)]:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")
        if kind not in ("time", "end"):
            die_at(kind, when)
        try:
            train(config)
            os._exit(0)
        except BaseException as error:
            os.write(1, f"error {error!r}\\n".encode())
            os._exit(9)
    if kind == "time":
        time.sleep(when)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    print(kind, when, code, round(time.monotonic() - began, 2), flush=True)
"""


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_weights_bit_identical(data, whole, tmp_path):
    """kill -9 at 16 moments, eleven of them inside a save."""
    plan = [
        ("time", 0.15),
        # fsync number n: caches, config and manifest first, then the files of the checkpoints
        *[("fsync", n) for n in (2, 9, 14, 17, 19, 22)],
        *[("rename", n) for n in (1, 2, 3)],
        *[("replace", n) for n in (1, 3)],
        *[("time", t) for t in (0.4, 0.7, 0.55, 0.9)],
    ]
    output = tmp_path / "run"
    words = [*WORDS, "save_every=1", "validation.every=2", f"data.cache={tmp_path / 'cache'}"]
    task = json.dumps([str(data), str(output), words, plan])
    command = [sys.executable, "-c", NURSERY, str(Path(__file__).parent), task]
    done = run_program(command)
    lines = done.stdout.splitlines()
    assert "error" not in done.stdout, done.stdout
    assert len(lines) == len(plan) + 1
    assert lines[-1].split()[2] == "0", done.stdout
    killed = [line for line in lines if line.split()[2] == "-9"]
    assert len(killed) >= 12, done.stdout
    assert sum(line.startswith(("fsync", "rename", "replace")) for line in killed) >= 6
    reference = train(tiny(data, tmp_path / "reference", *words))
    assert digests(output) == digests(reference)
    # saving more often does not change the weights either, with one thread as the children have
    assert not list((output / "checkpoints").glob(".partial-*"))
    assert figures(output) == figures(reference)


def start(data, output, *words):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tiny_runs import tiny;"
        "from volumediff.training.loop import train; train(tiny(*sys.argv[2:]))"
    )
    return running(
        [sys.executable, "-c", code, Path(__file__).parent, data, output, *words], stderr=PIPE
    )


@pytest.mark.slow
def test_sigterm_to_the_process_group_saves_with_loader_workers_alive(data, tmp_path):
    words = [
        "optim.steps=100000",
        "data.workers=2",
        "save_every=100000",
        "validation.every=100000",
    ]
    run = tmp_path / "run"
    deadline = time.monotonic() + 120
    with start(data, run, *words) as process:
        while not read_metrics(run / "metrics.jsonl") and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGTERM)
        sent = time.monotonic()
        said = process.ended(60).stderr
        assert time.monotonic() - sent < 30, "the program ends at once"
        assert not process.all_processes(), "its workers too"
    assert process.returncode == 143, said
    assert "stopped after step" in said
    step = checkpoint.find(run, "last").step
    assert step > 0
    # the same weights as a run that was made for so many steps
    straight = train(
        tiny(data, tmp_path / "straight", *words, f"optim.steps={step}", "data.workers=0")
    )
    assert digests(run) == digests(straight)
