"""Every artefact is old or new whatever stops its writing, and a changed byte or type is one line.

The files of tiny runs are damaged bit by bit and leaf by leaf: nothing may be read silently, and
nothing may end in anything but one line that names the file.
"""

import errno
import io
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ConfigDict
from tiny_app import base, program, run, write_cases
from tiny_runs import tiny, write_data

from volumediff.alignment.quality import Quality
from volumediff.alignment.record import read_transform, write_transform
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.fitted._base import Fit
from volumediff.data.alignment import Alignment
from volumediff.data.grid import Grid
from volumediff.data.seen import Roster, Seen
from volumediff.data.splits import Split
from volumediff.errors import DataError
from volumediff.findings.schema import read_findings
from volumediff.metrics import calibration, detection
from volumediff.outputs.ledger import open_ledger, read_entries
from volumediff.outputs.sidecar import read_facts
from volumediff.runs.trained import load_trained
from volumediff.storage import checkpoint, digests, folder, records, seal, tensors
from volumediff.storage.cache import Cache
from volumediff.training import landmarks
from volumediff.training.assemble import build_task, load_run
from volumediff.training.journal import read_metrics
from volumediff.training.loop import train
from volumediff.training.run_config import parse, saved_config
from volumediff.training.run_folder import keep_config, record_session
from volumediff.training.seen import seen_by
from volumediff.training.states import states_facts
from volumediff.training.statistics import Statistics
from volumediff.tuning.journal import open_journal
from volumediff.tuning.trials import Trial

_ = base, program, run  # fixtures


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
    written, read = [], []
    write, verify = digests.Hashing.write, folder.sha256_of_file

    def counted(self, data):
        written.append(memoryview(data).nbytes)
        return write(self, data)

    monkeypatch.setattr(digests.Hashing, "write", counted)
    monkeypatch.setattr(folder, "sha256_of_file", lambda p: read.append(p.name) or verify(p))
    group = {f"{i}": torch.full((1000,), float(i)) for i in range(20)}
    checkpoint.save(
        tmp_path,
        "last",
        step=1,
        tensors={"weights": group, "ema": group},
        state={"best": {}, "autoencoder": ""},
        keep=1,
    )
    assert sorted(written)[-40:] == [4000] * 40
    assert sorted(read) == ["ema.safetensors", "state.json", "weights.safetensors"]
    read.clear()
    found = checkpoint.find(tmp_path, "last")
    assert torch.equal(found.tensors("ema")["7"], group["7"])
    assert sorted(read) == ["ema.safetensors", "state.json", "weights.safetensors"]
    assert checkpoint.exists(tmp_path, "last")
    assert len(read) == 3


def test_one_load_of_a_run_verifies_it_once(run, monkeypatch):
    read, verify = [], folder.sha256_of_file
    monkeypatch.setattr(folder, "sha256_of_file", lambda p: read.append(p.name) or verify(p))
    load_trained(run, device="cpu")
    assert read.count("ema.safetensors") == 1


# what stops a write


def weights(value):
    return {"a": torch.full((700,), value), "b": torch.full((3,), value, dtype=torch.float64)}


def splits_of(value):
    return Split(train=(value,), patients={value: value})


def fitted(value):
    h = detection.histogram(torch.arange(40.0) + value)
    probability = calibration.Probability((0.0, 3.0), (0.1, 0.7))
    statistics = {"mean": torch.full((500,), value)}
    return Calibration("f", statistics, h, (value,), 2.0, (h,), probability=probability)


def trial(value):
    return Trial((value,), (1.0,), (1.0,), (1.0,), (1.0,), (float("nan"),), 1.0, 1.0, 2.0, 3.0)


def save_checkpoint(place, value):
    checkpoint.save(
        place,
        "best",
        step=3,
        tensors={"weights": weights(value), "ema": weights(value)},
        state={"best": {"step": 3, "score": value}, "autoencoder": ""},
        keep=1,
    )


def read_checkpoint(place):
    found = checkpoint.find(place, "best")
    values = {float(t[0]) for name in ("weights", "ema") for t in found.tensors(name).values()}
    assert values == {found.state["best"]["score"]}
    return found.state["best"]["score"]


def save_journal(place, value):
    journal = open_journal(place, "row", {"seed": 1})
    journal.trials = {(("axis", 1.0),): trial(value)}
    journal.write()


def read_journal(place):
    return open_journal(place, "row", {"seed": 1}).trials[(("axis", 1.0),)].ap[0]


def save_config(place, value):
    keep_config(place, tiny("population", place, f"optim.lr={value}"))


def save_ledger(place, value):
    with open_ledger(place, job="j", overwrite=True) as ledger:
        ledger.done("case", inputs={}, outputs=[], facts={"seconds": value})


ARTEFACTS = {
    "splits": (
        lambda p, v: splits_of(str(v)).save(p / "splits.json"),
        lambda p: float(Split.load(p / "splits.json").train[0]),
    ),
    "seen": (
        lambda p, v: Seen(unknown=(str(v),)).save(p / "seen.json"),
        lambda p: float(Seen.load(p / "seen.json").unknown[0]),
    ),
    "landmarks": (
        lambda p, v: records.write(
            p / "landmarks.json", landmarks.Stored(landmarks=((v,),), cases=("a",))
        ),
        lambda p: landmarks.load_landmarks(p)[0][0],
    ),
    "config": (save_config, lambda p: saved_config(p).optim.lr),
    "calibration": (
        lambda p, v: fitted(v).save(p / "c.safetensors"),
        lambda p: Calibration.load(p / "c.safetensors").scores[0],
    ),
    "fit": (
        lambda p, v: Fit(weights(v), 2).save(p / "f.safetensors", owner={"a": "b"}),
        lambda p: float(Fit.load(p / "f.safetensors", owner={"a": "b"}).tensors["b"][0]),
    ),
    "checkpoint": (save_checkpoint, read_checkpoint),
    "tuning": (save_journal, read_journal),
    "ledger": (save_ledger, lambda p: read_entries(p)["case"].seconds),
}
OLD, NEW = 0.25, 0.5
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


def complaint(call):
    """What a call says about the data, if it does; anything else is a traceback."""
    try:
        call()
    except DataError as error:
        return str(error)
    return None


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


RULE = "data.preprocessing.intensity={name: histogram, foreground: nonzero}"
SHARES = "data.split={validation: 0.2, calibration: 0.2}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder, a diffusion run in its latents with everything a run has, its classifier."""
    home = tmp_path_factory.mktemp("storage")
    data = write_data(home / "data", cases=8)
    words = (RULE, SHARES, "optim.steps=1")
    codec = train(
        tiny(
            data,
            home / "codec",
            *words,
            *("space=null", "kernel=null", "network=null"),
            "autoencoder={name: kl, widths: [4], strides: [], blocks: 1, latent_channels: 1}",
        )
    )
    of = train(
        tiny(
            data,
            home / "of",
            *words,
            f"space={{name: latent, autoencoder: {codec}}}",
            "recipe={name: healthy, scalars: [age]}",
        )
    )
    values = {"attribute": "group", "values": ["control", "patient"], "drop": 0.0}
    tree = {
        "classifier": {"name": "encoder", "of": str(of), "widths": [4, 8], "groups": 2},
        "recipe": {"name": "class_conditional", **values},
        "optim": {"steps": 1, "batch_size": 2},
        "validation": {"every": 1, "volumes": 1},
        "output": str(home / "classifier"),
    }
    return {"of": of, "classifier": train(parse(tree))}


def built(place):
    """The untrained module of a run, with its copies of other runs."""
    return build_task(saved_config(place), run=place)


# Whose file, its path in the run, and who reads it first in training or inference.
RUN_FILES = {
    "config.yaml": ("of", saved_config),
    "splits.json": ("of", lambda p: Split.load(p / "splits.json")),
    "landmarks.json": ("of", landmarks.load_landmarks),
    "seen.json": ("of", seen_by),
    "manifest.json": ("of", lambda p: record_session(p, {})),
    "statistics/statistics.json": ("of", Statistics.load),
    "statistics/manifest.json": ("of", Statistics.load),
    "autoencoder/config.yaml": ("of", built),
    "autoencoder/weights.safetensors": ("of", built),
    "autoencoder/manifest.json": ("classifier", built),
    "states/facts.json": ("classifier", states_facts),
    "states/space.safetensors": ("classifier", built),
    "states/manifest.json": ("classifier", states_facts),
    "checkpoints/best-00000001/ema.safetensors": ("of", load_run),
    "checkpoints/best-00000001/weights.safetensors": ("of", load_run),
    "checkpoints/best-00000001/state.json": ("of", load_run),
    "checkpoints/best-00000001/manifest.json": ("of", load_run),
}


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
            assert entry().info == {"spacing_mm": [1.0, 2.0, 3.0]}
            assert len(lines) == 1
            assert "damaged, made again" in lines[0]


def test_a_changed_run_is_refused_by_the_program_in_one_line(run, program, tmp_path):
    """Not only where it is read: localize, calibrate and train give exit 1 and one line."""
    data = write_cases(tmp_path / "data", count=1)
    words = ("--method", "intensity", "threshold.min_volumes=2")
    place = shutil.copytree(run, tmp_path / "run")
    config = shutil.copy(run / "config.yaml", tmp_path / "config.yaml")
    assert program("localize", place, "-i", data, "-o", tmp_path / "a", *words)[0] == 0
    (fitted,) = (place / "calibration").rglob("*.safetensors")
    names = ["config.yaml", "splits.json", "seen.json", "statistics/statistics.json"]
    for number, path in enumerate([fitted, *(place / name for name in names)]):
        good = path.read_bytes()
        if path.name == "splits.json":
            fitted.unlink()  # read by the next calibration
        path.write_bytes(bytes([*good[:-9], good[-9] ^ 1, *good[-8:]]))
        code, _, said = program(
            "localize", place, "-i", data, "-o", tmp_path / f"{number}", *words
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


# types


def places(content, path=()):
    """Every place of a JSON value, the whole left out."""
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in inner:
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from places(value, (*path, name))


def put(content, path, value):
    """A copy with another value at one place."""
    found = json.loads(json.dumps(content))
    node = found
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return found


def at(content, path):
    for name in path:
        content = content[name]
    return content


OTHERS = ("text", [], {}, [1.5, "a"], {"a": None}, None, -1.5, 7, True)


def faults(content, write, read, *, free=()):
    """Writes the content with a value of another type at each place, and reads it.

    What is read must be a line with the file's own place of the fault; null may stand where
    nothing is known, and whole numbers for numbers.

    Arguments:
        content: that is read without complaint
        write: seals it, so that the digest fits
        free: places that no reader looks at, as they begin
    """
    write(content)
    assert complaint(read) is None
    count = 0
    for path in places(content):
        old = at(content, path)
        dotted = ".".join(map(str, path))
        for other in OTHERS:
            same = type(other) is type(old)
            numbers = {type(other), type(old)} <= {int, float}
            if same and isinstance(old, str | bool | int | float):
                continue
            write(put(content, path, other))
            said = complaint(read)  # anything but a line would be raised here
            count += 1
            if said is None:
                empty = other in ([], {}) and (same or old is None)
                allowed = other is None or numbers or empty or other == old
                assert allowed or dotted.startswith(free), f"{dotted}: took {other!r}"
                continue
            assert "\n" not in said
            assert any(word in said for word in (*map(str, path), dotted)), said
    for gone in content:
        write({k: v for k, v in content.items() if k != gone})
        said = complaint(read)
        assert said is None or "\n" not in said
    write(content)
    assert count > 10


def sealed(path):
    """A writer of a sealed record."""
    return lambda content: path.write_bytes(seal.seal_json(content))


def republished(path):
    """A writer of one file in a published folder, which then has a manifest that fits."""

    def write(content):
        files = {p.name: p.read_bytes() for p in path.parent.iterdir()}
        del files["manifest.json"]
        folder.discard(path.parent)
        folder.publish(path.parent, {**files, path.name: json.dumps(content).encode()})

    return write


def content_of(path):
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    return content


@pytest.mark.parametrize("name", [n for n in RUN_FILES if n.endswith(".json")])
def test_a_wrong_type_in_a_run_is_one_line(runs, tmp_path, name):
    whose, read = RUN_FILES[name]
    place = shutil.copytree(runs[whose], tmp_path / "run")
    path = place / name
    alone = path.parent == place or path.name == "manifest.json"
    write = sealed(path) if alone else republished(path)
    free = {"manifest.json": ("sessions.",), "state.json": ("best.",)}.get(name.split("/")[-1], ())

    def reader():
        read(place)
        if name == "manifest.json":
            write(content)  # it has grown by a session

    content = content_of(path)
    faults(content, write, reader, free=free if alone or path.name == "state.json" else ())


@pytest.mark.parametrize("kind", ["tuning", "ledger"])
def test_a_wrong_type_in_what_a_run_keeps_is_one_line(tmp_path, kind):
    ARTEFACTS[kind][0](tmp_path, OLD)
    (path,) = (p for p in tmp_path.rglob("*.json*") if p.is_file())
    content = content_of(path)
    if kind == "ledger":
        content |= {"inputs": {"image": "0"}, "outputs": {"a": {"bytes": 1, "sha256": "0"}}}

    def line(changed):
        path.write_bytes(seal.seal_json(changed, line=True) + b"\n")

    def reader():
        if kind == "ledger":
            read_entries(tmp_path)
        else:
            open_journal(tmp_path, "row", {"seed": 1})

    faults(content, line if kind == "ledger" else sealed(path), reader, free=("result",))


@pytest.mark.parametrize("kind", ["calibration", "fit"])
def test_a_wrong_type_beside_tensors_is_one_line(tmp_path, kind):
    write, read = ARTEFACTS[kind]
    write(tmp_path, OLD)
    (path,) = tmp_path.iterdir()
    group, metadata = tensors.load_plain(path, advice="")

    class Free(records.Record):
        model_config = ConfigDict(extra="allow")

    faults(
        json.loads(metadata["record"]),
        lambda content: tensors.save(path, group, Free(**content)),
        lambda: read(tmp_path),
    )


def test_a_wrong_type_of_an_output_is_one_line(run, program, tmp_path):
    """Sidecar and findings of localize as it writes them, with everything that they can have."""
    data, out = write_cases(tmp_path / "data", count=1), tmp_path / "out"
    words = ("--method", "intensity", "threshold.min_volumes=2", "post=[]")
    assert program("localize", run, "-i", data, "-o", out, *words)[0] == 0
    (facts,) = out.glob("*_map.json")
    (found,) = out.glob("*_findings.json")
    content = content_of(facts)
    assert content["thresholds"]
    assert content["probability"]
    content["trace"] = [{"name": "a/map", "file": "a.nii.gz"}]
    read = {"patient", "method", "fingerprint", "supervision", "scope", "weights_sha256", "score"}
    read |= {"threshold", "threshold_rule", "thresholds", "probability", "inputs", "read_policy"}
    read |= {"trace", "seen"}
    # frames: a word, or the number of one frame
    free = ("read_policy.frames", *(name for name in content if name not in read))

    def plain(path):
        return lambda changed: path.write_text(json.dumps(changed))

    faults(content, plain(facts), lambda: read_facts(facts), free=free)
    for name in ("../secret.nii.gz", "/etc/passwd", "a\\b"):
        plain(facts)(put(content, ("trace", 0, "file"), name))
        assert "trace.0.file" in complaint(lambda: read_facts(facts))
    content = content_of(found)
    assert content["findings"]
    faults(content, plain(found), lambda: read_findings(found))


def test_a_wrong_type_of_a_prepared_case_is_one_line(tmp_path):
    grid = Grid((4, 5, 6), np.diag([2.0, 2, 2, 1]), bytes(range(20)))
    alignment = Alignment(grid, Grid((3, 3, 3), np.eye(4)), np.eye(4))
    scales, shears = (1.0, 1.1, 1.0), (0.0, 0.1, 0.0)
    quality = Quality(0.9, 1.0, 1.0, 1.2, scales, shears, 3.0, False, 1.0, 9.0, {"a": None})
    channel = {"file": "a", "sha256": "0", "prepared": "b", "bias_field": [0.9, 1.1]}
    content = {
        "case": "p",
        "patient": "p",
        "template": {"name": "t", "sha256": "1"},
        "first": "T1w",
        "label_of": "T1w",
        "channels": {"T1w": {**channel, **alignment.to_json()}},
        "quality": quality.to_json(),
        "findings": [{"severity": "info", "code": "c", "message": "m"}],
    }
    path = tmp_path / "p" / "p_transform.json"
    path.parent.mkdir()
    write_transform(path, content)
    record = read_transform(tmp_path, "p")
    again = Alignment.from_json(record["channels"]["T1w"])
    assert again.native.header == grid.header
    np.testing.assert_array_equal(again.native.affine, grid.affine)
    assert Quality.from_json(record["quality"]) == quality
    faults(
        content_of(path),
        sealed(path),
        lambda: read_transform(tmp_path, "p"),
        free=("quality.bias",),
    )


def test_a_checkpoint_of_other_tensors_under_a_fitting_manifest_is_one_line(runs, tmp_path):
    place = shutil.copytree(runs["of"], tmp_path / "of")
    (path,) = place.glob("checkpoints/best-*")
    files = {p.name: p.read_bytes() for p in path.iterdir() if p.name != "manifest.json"}
    for bad in (b"", b"no tensors", files["ema.safetensors"][:-8], safetensors.torch.save({})):
        folder.discard(path)
        folder.publish(path, {**files, "ema.safetensors": bad})
        said = complaint(lambda: load_run(place))
        assert said is not None
        assert "\n" not in said
        assert str(path) in said


def test_a_mere_log_stops_nobody(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}, {"step": 3, "ap": None}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    bad = [b"{", b"\xff\xfe", b"[1]", b"3", b'{"loss": 1}', b'{"step": "1"}', b'{"step": 1.5}']
    bad += [b'{"step": 1, "loss": "x"}', b'{"step": 1, "loss": [1]}', b"[" * 100_000, b""]
    path.write_bytes(b"\n".join([*bad, text]) + b'{"step": 4, "lo')
    assert repr(read_metrics(path)) == repr(rows)
    assert [row["step"] for row in read_metrics(path, before=2)] == [1, 2]
    for where in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[where] ^= 1 << bit
            path.write_bytes(changed)
            read_metrics(path, before=2)


def test_nesting_and_numbers_without_end_are_one_line(tmp_path):
    path = tmp_path / "x.json"
    for text in (b"[" * 100_000, b'{"train":' * 100_000, b'{"score": 1e999}'):
        path.write_bytes(text)
        for read in (read_facts, read_findings):
            said = complaint(lambda read=read: read(path))
            assert said.startswith(str(path))
            assert said.count("\n") == 0
    path = tmp_path / "landmarks.json"
    for number in ("NaN", "Infinity", "1e999", "-1e999"):
        records.write(path, {"landmarks": [[0.5]], "cases": []})
        body = seal.open_json(path.read_bytes()).replace(b"0.5", number.encode())
        end = b',\n "sha256": "%s"\n}\n' % digests.sha256(body[:-1]).encode()
        path.write_bytes(body[:-1] + end)
        said = complaint(lambda: landmarks.load_landmarks(tmp_path))
        assert "landmarks.0.0: Input should be a finite number" in said


def test_seen_holds_parts_that_there_are(tmp_path):
    of = {kind: {"0": "train"} for kind in ("file", "patient", "name")}
    Seen((Roster("r", of),)).save(tmp_path / "seen.json")
    content = content_of(tmp_path / "seen.json")
    sealed(tmp_path / "seen.json")(put(content, ("rosters", 0, "parts", "file", "0"), "elsewhere"))
    assert "rosters.0.parts.file.0" in complaint(lambda: Seen.load(tmp_path / "seen.json"))
