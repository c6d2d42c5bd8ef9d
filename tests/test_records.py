"""A value of a wrong type, in any JSON file that is read back, is one line with its place."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
from artefacts import ARTEFACTS, OLD, RUN_FILES, complaint, runs
from pydantic import ConfigDict
from tiny_app import base, program, run, write_cases

from volumediff.alignment.quality import Quality
from volumediff.alignment.record import read_transform, write_transform
from volumediff.data.alignment_geometry import Alignment
from volumediff.data.grid import Grid
from volumediff.data.seen import Roster, Seen
from volumediff.findings.schema import read_findings
from volumediff.outputs.ledger import read_entries
from volumediff.outputs.sidecar import read_facts
from volumediff.samples import landmarks
from volumediff.storage import digests, folder, records, seal, tensors
from volumediff.tasks import load_task
from volumediff.training.journal import read_metrics
from volumediff.tuning.trial_log import open_journal

_ = base, program, run, runs  # fixtures


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
                allowed = None in (other, old) or numbers or empty or other == old
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
    assert program("localize", data, "--run", run, "-o", out, *words)[0] == 0
    (facts,) = out.glob("*_map.json")
    words = ("--method", "intensity", "normalize=raw", "threshold=otsu", "post=[]")
    assert program("localize", data, "--run", run, "-o", tmp_path / "more", *words)[0] == 0
    (found,) = (tmp_path / "more").glob("*_findings.json")
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
        said = complaint(lambda: load_task(place))
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
        assert "landmarks.0.0: expected a finite number" in said


def test_seen_holds_parts_that_there_are(tmp_path):
    of = {kind: {"0": "train"} for kind in ("file", "patient", "name")}
    Seen((Roster("r", of),)).save(tmp_path / "seen.json")
    content = content_of(tmp_path / "seen.json")
    sealed(tmp_path / "seen.json")(put(content, ("rosters", 0, "parts", "file", "0"), "elsewhere"))
    assert "rosters.0.parts.file.0" in complaint(lambda: Seen.load(tmp_path / "seen.json"))
