"""The cache: the same arrays back, other settings never mixed up, damage noticed and repaired."""

import shutil
import threading

import numpy as np
import pytest

from volumediff.errors import DataError
from volumediff.storage.cache import Cache


def volume(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 6, 5, 4)).astype(np.float32)


def maker(calls, seed=0):
    def make():
        calls.append(seed)
        return {"x": volume(seed)}, {"spacing_mm": [3.0, 3.0, 3.0]}

    return make


def test_an_entry_is_made_once_and_memory_mapped(tmp_path):
    calls, lines = [], []
    cache = Cache(tmp_path / "cache", lines.append)
    for _ in range(3):
        entry = cache.entry("sub/01 T1w", {"sha256": "a", "shape": [6, 5, 4]}, maker(calls))
    assert calls == [0]
    assert isinstance(entry.load("x"), np.memmap)
    np.testing.assert_array_equal(entry.load("x"), volume())
    assert entry.load("label") is None
    assert entry.info == {"spacing_mm": [3.0, 3.0, 3.0], "cropped": 0.0}
    assert not lines
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_every_part_of_the_fingerprint_counts(tmp_path):
    calls = []
    cache = Cache(tmp_path, calls.append)
    fingerprints = [{"a": 1}, {"a": 2}, {"a": 1, "b": None}, {"b": 1}]
    folders = {cache.entry("v", f, maker([], i)).folder for i, f in enumerate(fingerprints)}
    assert len(folders) == 4
    for i, fingerprint in enumerate(fingerprints):
        found = cache.entry("v", fingerprint, maker(calls, 9)).load("x")
        np.testing.assert_array_equal(found, volume(i))
    assert not calls


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[len(data) // 2] ^= 4
    elif how == "cut":
        data = data[: len(data) // 2]
    elif how == "zeros":
        data[-64:] = bytes(64)
    path.unlink()
    if how != "gone":
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["bit", "cut", "zeros", "gone"])
@pytest.mark.parametrize("name", ["x.npy", "entry.json", "manifest.json"])
def test_damage_is_noticed_and_the_entry_made_again(tmp_path, name, how):
    calls, lines = [], []
    cache = Cache(tmp_path, lines.append)
    entry = cache.entry("v", {"a": 1}, maker(calls))
    damage(entry.folder / name, how)
    again = cache.entry("v", {"a": 1}, maker(calls))
    assert calls == [0, 0]
    assert len(lines) == 1
    assert "damaged, made again" in lines[0]
    np.testing.assert_array_equal(again.load("x"), volume())
    assert len(list(tmp_path.iterdir())) == 1


def test_an_entry_of_other_data_under_this_name_is_not_used(tmp_path):
    lines = []
    cache = Cache(tmp_path, lines.append)
    mine = cache.entry("v", {"a": 1}, maker([], 1)).folder
    other = cache.entry("v", {"a": 2}, maker([], 2)).folder
    shutil.rmtree(mine)
    other.rename(mine)
    found = cache.entry("v", {"a": 1}, maker([], 1)).load("x")
    np.testing.assert_array_equal(found, volume(1))
    assert "belongs to other data" in lines[0]


def test_concurrent_writers_leave_one_whole_entry(tmp_path):
    cache, found, calls = Cache(tmp_path, lambda line: None), [], []
    barrier = threading.Barrier(6)

    def make():
        barrier.wait()  # all of them are past the check for an existing entry
        return maker(calls)()

    threads = [
        threading.Thread(target=lambda: found.append(cache.entry("v", {"a": 1}, make)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(list(tmp_path.iterdir())) == 1
    for entry in found:
        np.testing.assert_array_equal(entry.load("x"), volume())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\).*free"):
        Cache(tmp_path, lambda line: None).entry("v", {"a": 1}, maker([]))
    assert not list(tmp_path.iterdir())
