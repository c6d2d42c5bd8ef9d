"""What accidents leave of a run: stop signals, a full disk, flipped bits.

    python benchmarks/faults.py stops --count 30
    python benchmarks/faults.py disk --every 1
    python benchmarks/faults.py bits --count 300

`stops` sends SIGTERM to a training with two loader workers, every third one inside a validation,
and asks for the exit status, the time, and a checkpoint of the last step. `disk` lets the N-th
call that opens, syncs, renames or makes something, and all after it, find a full disk, in a
training, a calibration and a localization: afterwards there must be the old or the new state, and
the same command must reach the result of an undisturbed one. `bits` flips one bit at a time in
every file of a run and reads the run. All work on simulated volumes of 16³ voxels, in processes
forked from this one.
"""

import argparse
import errno
import hashlib
import io
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volumediff.anomaly.calibration import Calibration
from volumediff.calibration.of_run import calibrate, calibration_path, load_method
from volumediff.config import overridden
from volumediff.data.grid import Grid
from volumediff.data.population import Population
from volumediff.data.splits import Split
from volumediff.data.volume import write
from volumediff.errors import DataError, UsageError
from volumediff.inference.localize_files import localize
from volumediff.inference.options import LocalizeOptions
from volumediff.optimization.metrics_file import read_metrics
from volumediff.runs.trained import load_trained
from volumediff.samples.seen_record import seen_by
from volumediff.settings.bound_files import bound_of
from volumediff.settings.run_config import RunConfig, parse
from volumediff.storage import checkpoint
from volumediff.training.loop import train
from volumediff.training.validation import Validator

METHOD, GRID, SPACING = "intensity", (16, 16, 16), (12.0, 12.0, 12.0)
CALLS = ("builtins.open", "os.open", "os.fsync", "os.replace", "os.rename", "os.mkdir")
PATIENCE_S = 120.0


def config(home: Path, output: Path, *words: str) -> RunConfig:
    """A training of a second."""
    tree = {
        "data": {
            "root": str(home / "data"),
            "cache": str(home / "cache"),
            "preprocessing": {"shape": list(GRID)},
            "split": {"validation": 0.2, "calibration": 0.3},
        },
        "space": "voxel",
        "kernel": {"name": "gaussian", "schedule": "cosine"},
        "network": {"name": "unet", "widths": [4, 8], "blocks": 1, "groups": 2},
        "optim": {"steps": 4, "warmup": 1, "batch_size": 2},
        "validation": {"every": 2, "volumes": 2, "previews": 0, "best": None},
        "save_every": 1,
        "output": str(output),
    }
    return parse(overridden(tree, words))


def write_volumes(folder: Path, count: int = 20) -> None:
    """Simulated healthy volumes, as files."""
    folder.mkdir()
    grid = Grid(GRID, np.diag([*SPACING, 1.0]))
    people = Population(0, GRID, SPACING)
    for index in range(count):
        subject = people.subject(index)
        x = (subject.x.numpy()[0] + 1) * 500 * subject.foreground.numpy()[0]
        write(folder / f"sub-{index:02d}_T1w.nii.gz", x, like=grid, kind="image")


def forked(work: Callable[[], object], log: Path) -> int:
    """Starts work in a process group of its own; its messages go to a file."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        work()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except (DataError, UsageError, OSError) as error:  # what the program tells in one line
        os.write(2, f"told: {error}\n".encode())
        code = 1
    except BaseException as error:  # noqa: BLE001 what would be a traceback is counted
        os.write(2, f"traceback: {error!r}\n".encode())
        code = 9
    os._exit(code)


def ended(child: int) -> int:
    """The exit status of a process, which is killed with its group when it takes too long."""
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def weights_of(run: Path, report: Callable[[str], None] = lambda line: None) -> str:
    """SHA-256 of the last weights that are whole; damaged ones are passed over and reported."""
    tensors = checkpoint.find(run, "last", report=report).tensors("weights")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- stop signals ---------------------------------------------------------------------------


def stops(home: Path, count: int) -> Iterator[str]:
    """Rows of the table of signals."""
    rng, found, seconds = random.Random(0), Counter(), []
    mark = home / "validating"
    words = (
        *("optim.steps=100000", "data.workers=2", "save_every=100000"),
        "validation={every: 5, volumes: 3, previews: 2, preview_steps: 5, best: {volumes: 2}}",
    )
    for number in range(count):
        run = home / f"stop-{number}"
        child = forked(
            lambda run=run: _watched_training(config(home, run, *words), mark), home / "log"
        )
        wanted = number % 3 == 0
        _until(lambda run=run: bool(read_metrics(run / "metrics.jsonl")), child)
        if wanted:
            _until(mark.exists, child)
            time.sleep(rng.uniform(0, 0.2))
        else:
            time.sleep(rng.uniform(0, 1.5))
        inside, began = mark.exists(), time.monotonic()
        os.killpg(child, signal.SIGTERM)
        code = ended(child)
        seconds.append(time.monotonic() - began)
        mark.unlink(missing_ok=True)
        said = (home / "log").read_text(errors="replace")
        step = re.search(r"stopped after step (\d+)", said)
        saved = checkpoint.find(run, "last").step
        good = code == 143 and step is not None and int(step[1]) == saved and not _alive(child)
        found["inside a validation" if inside else "elsewhere"] += 1
        found["good" if good else f"BAD (exit {code}: {said.strip()[-200:]})"] += 1
        shutil.rmtree(run)
    text = ", ".join(f"{value} {name}" for name, value in found.items())
    yield f"SIGTERM, {count} times | {text} | longest wait {max(seconds):.1f} s"


def _watched_training(wanted: RunConfig, mark: Path) -> None:
    """Trains, with a file that is there while it validates."""
    original = Validator.__call__

    def marked(self: Validator, *arguments: Any) -> Any:
        mark.touch()
        try:
            return original(self, *arguments)
        finally:
            mark.unlink(missing_ok=True)

    Validator.__call__ = marked  # type: ignore[method-assign]
    train(wanted)


def _until(ready: Callable[[], bool], child: int) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not ready():
        if time.monotonic() > limit:
            os.killpg(child, signal.SIGKILL)
            raise SystemExit("the training did not begin in time")
        time.sleep(0.01)


def _alive(group: int) -> bool:
    """Whether processes of a group are left, a moment after its end."""
    time.sleep(0.2)
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- full disk ------------------------------------------------------------------------------


@contextmanager
def full_from(number: int) -> Iterator[list[int]]:
    """Within it, the disk is full from the N-th writing call on; the list counts the calls."""
    made, modules, kept = [0], {"os": os, "builtins": io}, []
    for name in CALLS:
        module, _, function = name.rpartition(".")
        places = [modules[module]] + ([__import__("builtins")] if module == "builtins" else [])
        for place in places:
            original = getattr(place, function)

            def call(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
                if _writes(name, args, kwargs):
                    made[0] += 1
                    if made[0] >= number:
                        raise OSError(errno.ENOSPC, "No space left on device")
                return original(*args, **kwargs)

            kept.append((place, function, original))
            setattr(place, function, call)
    try:
        yield made
    finally:
        for place, function, original in kept:
            setattr(place, function, original)


def _writes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name == "builtins.open":
        mode = kwargs.get("mode", args[1] if len(args) > 1 else "r")
        return not str(args[0]).startswith("/dev/") and any(c in str(mode) for c in "wax+")
    if name == "os.open":
        return bool((args[1] if len(args) > 1 else kwargs.get("flags", 0)) & os.O_WRONLY)
    return True


def disk(home: Path, every: int) -> Iterator[str]:
    """Rows of the table of full disks."""
    base = train(config(home, home / "base"))
    trained = load_trained(base, device="cpu")
    row = load_method(trained, METHOD)
    calibrate(trained, row, METHOD, seed=0)
    old = (weights_of(base), _calibration(base))
    inputs = home / "inputs"
    inputs.mkdir()
    for path in sorted((home / "data").iterdir())[:2]:
        shutil.copy(path, inputs)
    jobs: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
        "train": (
            lambda place: train(config(home, place / "base", "optim.steps=8")),
            lambda place: weights_of(place / "base"),
        ),
        "calibrate": (
            lambda place: _calibrate_again(place / "base"),
            lambda place: _calibration(place / "base"),
        ),
        "localize": (
            lambda place: localize(
                load_trained(place / "base", device="cpu"),
                inputs,
                place / "out",
                LocalizeOptions(METHOD),
                report=lambda line: None,
            ),
            lambda place: _written(place / "out"),
        ),
    }
    for name, (work, state) in jobs.items():
        before = {"train": old[0], "calibrate": old[1], "localize": {}}[name]
        found, calls = _disturbed(home, base, work, state, before, every)
        text = ", ".join(f"{value} {what}" for what, value in found.items())
        yield f"full disk, {name}, every {every}. of {calls} calls | {text} | "


def _disturbed(
    home: Path,
    base: Path,
    work: Callable[[Path], object],
    state: Callable[[Path], Any],
    before: object,
    every: int,
) -> tuple[Counter, int]:
    """Outcomes of one command on a disk that is full from its N-th call on, and its calls."""
    reference = _copied(base, home / "reference")
    work(reference)
    new, found, number = state(reference), Counter(), 1
    while True:
        place = _copied(base, home / "trial")
        code = ended(forked(lambda p=place, n=number: _on_full(work, p, n), home / "log"))
        said = (home / "log").read_text(errors="replace")
        if code == 0 and "never full" in said:
            return found, number - 1
        found["told in one line" if code == 1 else f"BAD exit {code}: {said[-200:]}"] += 1
        found[_old_or_new(state, place, before, new)] += 1
        work(place)
        same = state(place) == new
        found["then as undisturbed" if same else "BAD result of the next run"] += 1
        number += every


def _on_full(work: Callable[[Path], object], place: Path, number: int) -> None:
    with full_from(number) as made:
        work(place)
    if made[0] < number:
        os.write(1, b"never full\n")


def _old_or_new(state: Callable[[Path], Any], place: Path, old: object, new: object) -> str:
    """Which state a disturbed command has left."""
    try:
        there = state(place)
    except (DataError, UsageError) as error:
        return f"BAD neither: {str(error)[:200]}"
    if isinstance(there, dict):  # outputs, of which some may be there
        assert isinstance(new, dict)
        whole = all(new.get(name) == digest for name, digest in there.items())
        return "whole files alone" if whole else "BAD a file of other content"
    if there in (old, new):
        return "old" if there == old else "new"
    return "a checkpoint between"


def _copied(base: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place / "base")
    return place


def _calibrate_again(run: Path) -> None:
    trained = load_trained(run, device="cpu")
    calibrate(trained, load_method(trained, METHOD), METHOD, seed=1)


def _calibration(run: Path) -> tuple[float, ...]:
    """What a stored calibration holds."""
    trained = load_trained(run, device="cpu")
    found = Calibration.load(calibration_path(trained, load_method(trained, METHOD), METHOD))
    return (*found.scores, float(found.validation_threshold or 0))


def _written(folder: Path) -> dict[str, str]:
    """Digests of the volumes of an output folder; parts of files count as files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.nii.gz"))
    }


# --- flipped bits ---------------------------------------------------------------------------


def bits(home: Path, count: int) -> Iterator[str]:
    """Rows of the table of flipped bits, one per kind of file."""
    run = train(config(home, home / "bits"))
    trained = load_trained(run, device="cpu")
    calibrate(trained, load_method(trained, METHOD), METHOD, seed=0)
    train(config(home, run))  # nothing is left to do
    reference = _read(run, lambda line: None)
    for path in sorted(p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")):
        good, rng, found = path.read_bytes(), random.Random(path.name), Counter()
        if not good:
            continue
        for _ in range(count):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            said: list[str] = []
            try:
                same = _read(run, said.append) == reference
                word = "CHANGED without a word" if not same else "equal"
                found["passed over with a line" if said else word] += 1
            except (DataError, UsageError) as error:
                found["refused" if "\n" not in str(error) else "MORE THAN A LINE"] += 1
            except Exception as error:  # noqa: BLE001 what would be a traceback is counted
                found[f"TRACEBACK {type(error).__name__}"] += 1
        path.write_bytes(good)
        text = ", ".join(f"{value} {what}" for what, value in sorted(found.items()))
        yield f"bits of {path.relative_to(run)} | {text} | "


def _read(run: Path, report: Callable[[str], None]) -> tuple[Any, ...]:
    """All that decides results of a run."""
    trained = load_trained(run, device="cpu")
    parameters = [p.detach().sum().item() for p in trained.model.parameters()]
    split = Split.load(run / "splits.json")
    return (
        parameters,
        trained.config.dump(),
        _calibration(run),
        split,
        seen_by(run),
        bound_of(run),
        weights_of(run, report),
    )


PARTS = {
    "stops": (stops, "count", 30),
    "disk": (disk, "every", 1),
    "bits": (bits, "count", 300),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name, (_, option, usual) in PARTS.items():
        parts.add_parser(name).add_argument(f"--{option}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(1)
    part, option, _ = PARTS[given.part]
    print("| accident | outcome | |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_volumes(home / "data")
        for row in part(home, getattr(given, option)):
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
