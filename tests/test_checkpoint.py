"""Checkpoints: damage is noticed, the previous one takes over, a full disk leaves nothing."""

import json
import os
import shutil
import zlib

import numpy as np
import pytest
import torch

from volumediff.errors import DataError
from volumediff.storage import checkpoint
from volumediff.storage.digests import crc32_of_file
from volumediff.storage.folder import Damaged, publish, verify

STEPS = (10, 20, 30)


def tensors(step):
    g = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g)}
    return {"weights": weights, "ema": {n: t / 2 for n, t in weights.items()}}


def write(run, step, keep=2):
    bound = {"files": {"splits.json": "0"}, "settings": {"seed": "0"}}
    state = {"best": {"step": 1, "score": 0.25}, "borrowed": "", "validated": 0, "bound": bound}
    checkpoint.save(run, "last", step=step, tensors=tensors(step), state=state, keep=keep)


@pytest.fixture
def run(tmp_path):
    for step in STEPS:
        write(tmp_path, step)
    return tmp_path


def test_two_are_kept_and_the_newest_comes_back(run):
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "last-00000020",
        "last-00000030",
    ]
    found = checkpoint.find(run, "last")
    assert found.step == 30
    assert found.state["best"] == {"step": 1, "score": 0.25}
    for name, group in tensors(30).items():
        for key, value in found.tensors(name).items():
            assert torch.equal(value, group[key])
    assert checkpoint.find(run, "best") is None


def test_nothing_in_it_is_pickled(run):
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            assert path.suffix in {".json", ".safetensors"}
            assert b"\x80\x02" not in path.read_bytes()[:8]


def damages(data):
    """Bit flips all over the file, truncations, and an added byte."""
    for place in {0, 1, 7, 8, 9, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1}:
        for bit in (0, 5, 7):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            yield bytes(changed)
    yield b""
    yield data[:-1]
    yield data[: len(data) // 2]
    yield data + b"\0"
    yield data[:-4] + bytes(4) if data[-4:] != bytes(4) else data[:-4] + b"\1" * 4


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "state.json"])
def test_every_damage_of_a_file_is_noticed(run, name):
    path = run / "checkpoints" / "last-00000030" / name
    good = path.read_bytes()
    count = 0
    for bad in damages(good):
        path.write_bytes(bad)
        with pytest.raises(Damaged, match=name):
            verify(path.parent)
        count += 1
    assert count > 25
    path.write_bytes(good)
    verify(path.parent)


def test_every_flipped_bit_of_the_manifest_is_noticed(run):
    folder = run / "checkpoints" / "last-00000030"
    path = folder / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in (0, 5):
            changed = bytearray(good)
            changed[place] ^= 1 << bit
            path.write_bytes(bytes(changed))
            try:
                verify(folder)
            except Damaged:
                continue
            # only a flip that changes nothing may pass, such as one blank for another
            assert json.loads(bytes(changed)) == json.loads(good)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_a_missing_or_extra_file_is_noticed_and_the_previous_checkpoint_used(run, name):
    lines = []
    (run / "checkpoints" / "last-00000030" / name).unlink()
    assert checkpoint.find(run, "last", report=lines.append).step == 20
    assert len(lines) == 1
    assert "last-00000030: damaged, not used" in lines[0]
    (run / "checkpoints" / "last-00000020" / "extra.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="all 2 checkpoints 'last' are damaged"):
        checkpoint.find(run, "last")


def test_a_checkpoint_under_another_step_is_refused(run):
    folder = run / "checkpoints"
    (folder / "last-00000030").rename(folder / "last-00000040")
    assert checkpoint.find(run, "last").step == 20


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_failing_write_leaves_the_old_ones_and_no_trace(run, monkeypatch, call):
    """The N-th system call fails, for every N that a save makes."""
    for number in range(1, 40):
        count = 0

        def fail(original):
            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count == number:  # noqa: B023 - called within this turn of the loop
                    raise OSError(28, "No space left on device")
                return original(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            if call == "open":
                patch.setattr("builtins.open", fail(open))
            elif call == "write":
                from volumediff.storage import digests

                patch.setattr(digests.Hashing, "write", fail(digests.Hashing.write))
            else:
                patch.setattr(f"os.{call}", fail(getattr(os, call)))
            try:
                write(run, 50)
            except DataError:
                pass
            else:
                break
        names = sorted(p.name for p in (run / "checkpoints").iterdir())
        whole = [n for n in names if not n.startswith(".partial-")]
        assert checkpoint.find(run, "last").step in (30, 50)
        if "last-00000050" in whole:  # the rename was done, only tidying up failed
            verify(run / "checkpoints" / "last-00000050")
            shutil.rmtree(run / "checkpoints" / "last-00000050")
        else:
            assert whole == names == ["last-00000020", "last-00000030"]
    assert number > 1
    assert checkpoint.find(run, "last").step == 50


def test_a_full_disk_is_reported_with_its_free_space(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write(tmp_path, 1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(DataError, match=r"cannot be written \(File too large\); \d+ MB"):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last-00000001"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"4"])
def test_a_write_that_does_not_read_back_is_refused(damage, tmp_path, monkeypatch):
    """A stump without an error, as ITK and TorchIO leave on a full disk; or another byte."""
    from volumediff.storage import digests

    true = digests.Hashing.write

    def wrong(self, data):
        found = true(self, data)
        self.file.seek(-len(data), 1)
        self.file.truncate()
        self.file.write(damage(bytes(data)))
        return found

    monkeypatch.setattr(digests.Hashing, "write", wrong)
    with pytest.raises(DataError, match="did not read back as written"):
        publish(tmp_path / "x", {"a.bin": lambda file: file.write(b"12345")})
    assert not list(tmp_path.iterdir())


def test_what_is_hashed_while_it_is_written_is_what_the_file_holds(tmp_path):
    pieces = [b"abc", memoryview(np.arange(7, dtype=np.float32)), b"", bytes(5_000_000)]
    publish(tmp_path / "x", {"a": lambda file: [file.write(p) for p in pieces]})
    verify(tmp_path / "x")
    content = (tmp_path / "x" / "a").read_bytes()
    assert content == b"".join(bytes(p) for p in pieces)
    assert crc32_of_file(tmp_path / "x" / "a") == zlib.crc32(content)


def test_optimizer_state_goes_through_tensors_bit_exactly():
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer, seed):
        g = torch.Generator().manual_seed(seed)
        layer(torch.randn(4, 3, generator=g)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = make()
    step(layer, optimizer, 1)
    names = {p: n for n, p in layer.named_parameters()}
    moments = checkpoint.optimizer_tensors(optimizer, names)
    assert set(moments) == {
        f"{n}/{m}" for n in ("weight", "bias") for m in ("step", "exp_avg", "exp_avg_sq")
    }
    moments = {n: t.clone() for n, t in moments.items()}
    weights = {n: p.detach().clone() for n, p in layer.named_parameters()}
    step(layer, optimizer, 2)
    other, fresh = make()
    other.load_state_dict(weights)
    checkpoint.restore_optimizer(fresh, {p: n for n, p in other.named_parameters()}, moments)
    step(other, fresh, 2)
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
