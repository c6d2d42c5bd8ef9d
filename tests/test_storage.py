"""Every artefact is old or new whatever stops its writing, and a changed bit is one line.

System calls fail one by one, the disk is looked at before each, and the files of tiny runs are
damaged bit by bit: nothing may be read silently, nothing may end in more than a line.
"""

import errno
import io
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from artefacts import ARTEFACTS, NEW, OLD, RUN_FILES, complaint, runs, save_ledger
from tiny_app import base, program, run, write_cases

from volumediff.errors import DataError
from volumediff.outputs.ledger import read_entries
from volumediff.runs.trained import load_trained
from volumediff.settings.run_config import saved_config
from volumediff.storage import checkpoint, digests, folder, tensors
from volumediff.storage.cache import Cache
from volumediff.training.loop import train

_ = base, program, run, runs  # fixtures


# safetensors


def test_the_stream_is_what_the_library_writes():
    group = {
        f"{name}.{number}": torch.arange(6).reshape(shape).to(dtype)
        for number, dtype in enumerate(tensors.TYPES)
        for name, shape in (("b", (2, 3)), ("a", (6,)), ("é", (1, 6, 1)))
    }
    group |= {"none": torch.zeros(0, 3), "one": torch.tensor(2.5, dtype=torch.float64)}
    group["turned"] = torch.arange(6.0).reshape(2, 3).T
    file = io.BytesIO()
    tensors.stream(file, group)
    expected = {name: tensor.contiguous() for name, tensor in group.items()}
    assert file.getvalue() == safetensors.torch.save(expected)


def test_tensors_are_written_one_at_a_time_and_read_back_once(tmp_path, monkeypatch):
    """No second copy of a checkpoint in memory, no third reading of it from the disk."""
    written, checked, read = [], [], []
    write, check, verify = digests.Hashing.write, folder.crc32_of_file, folder.sha256_of_file

    def counted(self, data):
        written.append(memoryview(data).nbytes)
        return write(self, data)

    monkeypatch.setattr(digests.Hashing, "write", counted)
    monkeypatch.setattr(folder, "crc32_of_file", lambda p: checked.append(p.name) or check(p))
    monkeypatch.setattr(folder, "sha256_of_file", lambda p: read.append(p.name) or verify(p))
    group = {f"{i}": torch.full((1000,), float(i)) for i in range(20)}
    checkpoint.save(
        tmp_path,
        "last",
        step=1,
        tensors={"weights": group, "ema": group},
        state={
            "best": {},
            "borrowed": "",
            "validated": 0,
            "bound": {"files": {}, "settings": {}},
        },
        keep=1,
    )
    assert sorted(written)[-40:] == [4000] * 40
    files = ["ema.safetensors", "state.json", "weights.safetensors"]
    assert sorted(checked) == [files[0], "manifest.json", *files[1:]]
    assert not read  # hashed once, while it is written
    found = checkpoint.find(tmp_path, "last")
    assert torch.equal(found.tensors("ema")["7"], group["7"])
    assert sorted(read) == files
    assert checkpoint.exists(tmp_path, "last")
    assert len(read) == 3


def test_one_load_of_a_run_verifies_it_once(run, monkeypatch):
    read, verify = [], folder.sha256_of_file
    monkeypatch.setattr(folder, "sha256_of_file", lambda p: read.append(p.name) or verify(p))
    load_trained(run, device="cpu")
    assert read.count("ema.safetensors") == 1


# what stops a write


CALLS = ("builtins.open", "os.open", "os.fsync", "os.replace", "os.rename")


def watched(patch, before, *more):
    """Calls `before` ahead of every system call that a writer makes."""
    for name in (*CALLS, *more):
        module, _, function = name.rpartition(".")
        original = getattr({"os": os, "shutil": shutil, "builtins": io}[module], function)

        def call(*args, original=original, **kwargs):
            before()
            return original(*args, **kwargs)

        patch.setattr(name, call)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_kill_between_any_two_writes_leaves_old_or_new(tmp_path, kind):
    """The disk as it is before each call is what a kill at that moment leaves."""
    write, read = ARTEFACTS[kind]
    place, shots = tmp_path / "run", []
    place.mkdir()
    write(place, OLD)
    assert read(place) == OLD
    busy = False

    def shoot():
        nonlocal busy
        if not busy:
            busy = True
            shots.append(shutil.copytree(place, tmp_path / f"shot-{len(shots)}"))
            busy = False

    with pytest.MonkeyPatch.context() as patch:
        watched(patch, shoot, "shutil.rmtree", "os.unlink")
        write(place, NEW)
    found = [read(shot) for shot in shots]
    assert len(found) >= 3
    assert found[0] == OLD
    assert set(found) <= {OLD, NEW}
    assert found == sorted(found), "once new, it stays new"
    assert read(place) == NEW


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_failing_call_leaves_old_or_new_and_is_one_line(tmp_path, kind):
    """The N-th system call says that the disk is full, for every N."""
    write, read = ARTEFACTS[kind]
    for number in range(60):
        place = tmp_path / f"{number}"
        place.mkdir()
        write(place, OLD)
        count = 0

        def fail(number=number):
            nonlocal count
            count += 1
            if count == number + 1:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            watched(patch, fail)
            said = complaint(lambda place=place: write(place, NEW))
        if count <= number:
            break
        assert said is None or (said.count("\n"), "No space left" in said) == (0, True)
        assert read(place) in ((NEW,) if said is None else (OLD, NEW))
        assert not list(place.rglob("*.tmp"))
    assert 3 <= number < 59


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_full_disk_in_the_middle_of_a_file_leaves_the_old_one(tmp_path, kind):
    resource, signal = pytest.importorskip("resource"), __import__("signal")
    write, read = ARTEFACTS[kind]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write(tmp_path, OLD)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    start = files[0].stat().st_size if kind == "ledger" else 0
    try:
        for limit in (start, start + 1, start + 9, start + 80):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(DataError, match="File too large"):
                write(tmp_path, NEW)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert read(tmp_path) == OLD
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    write(tmp_path, NEW)
    assert read(tmp_path) == NEW


def test_a_line_of_the_ledger_counts_when_it_is_whole(tmp_path):
    save_ledger(tmp_path, OLD)
    first = (tmp_path / "ledger.jsonl").read_bytes()
    save_ledger(tmp_path, NEW)
    both = (tmp_path / "ledger.jsonl").read_bytes()
    assert both.startswith(first)
    for length in range(len(first), len(both)):
        (tmp_path / "ledger.jsonl").write_bytes(both[:length])
        assert read_entries(tmp_path)["case"].seconds == OLD
    save_ledger(tmp_path, 0.75)
    (tmp_path / "ledger.jsonl").read_bytes().splitlines()
    assert read_entries(tmp_path)["case"].seconds == 0.75
    assert (tmp_path / "ledger.jsonl").read_bytes().count(b"\n") == 2


# bits


def flips(path, count=60):
    """One bit at a time: all bytes of a small file, else its start, its end and random ones."""
    good, rng = path.read_bytes(), random.Random(path.name)
    places = {*range(16), *range(len(good) - 16, len(good))}
    places |= {rng.randrange(len(good)) for _ in range(count)}
    for place in sorted(places):
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        yield place
    path.write_bytes(good)


@pytest.mark.parametrize("name", RUN_FILES)
def test_no_flipped_bit_of_a_run_is_read(runs, tmp_path, name):
    whose, read = RUN_FILES[name]
    place = shutil.copytree(runs[whose], tmp_path / "run")
    read(place)
    unit = "checkpoints" if name.startswith("checkpoints") else Path(name).name
    count = 0
    for where in flips(place / name):
        said = complaint(lambda: read(place))
        assert said is not None, f"byte {where} was read as if nothing were"
        assert "\n" not in said
        assert str(place) in said
        assert unit in said
        count += 1
    assert count >= 50
    read(place)


@pytest.mark.parametrize("kind", ["calibration", "fit", "tuning", "ledger"])
def test_no_flipped_bit_of_what_a_run_learns_later_is_read(tmp_path, kind):
    write, read = ARTEFACTS[kind]
    write(tmp_path, OLD)
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith("."))
    last = path.stat().st_size - 1
    for where in flips(path, count=300):
        if kind == "ledger" and where == last:
            assert not read_entries(tmp_path), "a line without an end does not count"
            continue
        said = complaint(lambda: read(tmp_path))
        assert said is not None, f"byte {where} was read as if nothing were"
        assert (said.count("\n"), str(path) in said) == (0, True)
    assert read(tmp_path) == OLD


def test_no_flipped_bit_of_the_cache_is_used(tmp_path):
    x, lines = np.arange(64.0), []
    cache = Cache(tmp_path, lines.append)

    def entry():
        return cache.entry("a", {"n": 1}, lambda: ({"x": x}, {"spacing_mm": [1.0, 2.0, 3.0]}))

    made = entry()
    for path in sorted(made.folder.iterdir()):
        for _ in flips(path, count=30):
            lines.clear()
            np.testing.assert_array_equal(entry().load("x"), x)
            assert entry().info["spacing_mm"] == [1.0, 2.0, 3.0]
            assert len(lines) == 1
            assert "damaged, made again" in lines[0]


def test_a_changed_run_is_refused_by_the_program_in_one_line(run, program, tmp_path):
    """Not only where it is read: localize, calibrate and train give exit 1 and one line."""
    data = write_cases(tmp_path / "data", count=1)
    words = ("--method", "intensity", "threshold.min_volumes=2")
    # other tests calibrate the run that they share
    fresh = shutil.ignore_patterns("calibration")
    place = shutil.copytree(run, tmp_path / "run", ignore=fresh)
    config = shutil.copy(run / "config.yaml", tmp_path / "config.yaml")
    assert program("localize", data, "--run", place, "-o", tmp_path / "a", *words)[0] == 0
    (fitted,) = (place / "calibration").rglob("*.safetensors")
    names = ["config.yaml", "splits.json", "seen.json", "statistics/statistics.json"]
    for number, path in enumerate([fitted, *(place / name for name in names)]):
        good = path.read_bytes()
        if path.name == "splits.json":
            fitted.unlink()  # read by the next calibration
        path.write_bytes(bytes([*good[:-9], good[-9] ^ 1, *good[-8:]]))
        code, _, said = program(
            "localize", data, "--run", place, "-o", tmp_path / f"{number}", *words
        )
        assert (code, said.count("error")) == (1, 1), said
        assert path.name in said.splitlines()[-1]
        if path != fitted:
            code, _, said = program("train", config, f"output={place}", "optim.steps=3")
            assert (code, path.name in said.splitlines()[-1]) == (1, True), said
        path.write_bytes(good)
    code, _, said = program("train", config, f"output={place}")
    assert code == 0, said


def test_what_is_free_may_change_on_resume_and_an_edit_says_what_to_do(runs, tmp_path):
    place = shutil.copytree(runs["of"], tmp_path / "of")
    config = saved_config(place).model_copy(update={"output": place})
    optim = config.optim.model_copy(update={"steps": 2})
    train(config.model_copy(update={"optim": optim}))
    assert saved_config(place).optim.steps == 2
    path = place / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(DataError, match=r"config\.yaml: .*edited.* another output=DIR"):
        train(config)
