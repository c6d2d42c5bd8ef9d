"""One holder of a run at a time, on file systems with and without locks of the kernel."""

import errno
import fcntl
import json
import os
import socket
import sys

import pytest
from child_processes import run_program
from tiny_runs import tiny, write_data

from volumediff.errors import DataError, UsageError
from volumediff.storage.locks import FileLock, Held
from volumediff.training.loop import train


def lockless(monkeypatch, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_the_kernel_keeps_others_out_and_frees_the_lock(tmp_path):
    path = tmp_path / "run.lock"
    lock = FileLock.take(path)
    assert lock.note is None
    with pytest.raises(Held, match=f"host {socket.gethostname()}, pid {os.getpid()}, since"):
        FileLock.take(path)
    lock.close()
    FileLock.take(path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_the_kernel_has_none_a_file_stands_for_it(tmp_path, monkeypatch, number):
    lockless(monkeypatch, number)
    path, sentinel = tmp_path / "run.lock", tmp_path / "run.lock.held"
    lock = FileLock.take(path)
    assert os.strerror(number) in lock.note
    assert sentinel.name in lock.note
    with pytest.raises(Held, match=f"pid {os.getpid()}; wait for it, or remove {sentinel}"):
        FileLock.take(path)
    lock.close()
    assert not sentinel.exists()


def test_a_lock_of_a_process_that_is_gone_is_taken_over_on_its_host_alone(tmp_path, monkeypatch):
    lockless(monkeypatch, errno.ENOSYS)
    path, sentinel = tmp_path / "run.lock", tmp_path / "run.lock.held"
    gone = run_program([sys.executable, "-c", "import os; print(os.getpid())"])
    holder = {"host": socket.gethostname(), "pid": int(gone.stdout)}
    sentinel.write_text(json.dumps(holder))
    lock = FileLock.take(path)
    assert json.loads(sentinel.read_text())["pid"] == os.getpid()
    lock.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.lock"]
    for text in (json.dumps(holder | {"host": "elsewhere"}), "", '{"pid": "x"}'):
        sentinel.write_text(text)
        with pytest.raises(Held, match=f"remove {sentinel} if it is gone"):
            FileLock.take(path)
        assert sentinel.read_text() == text


def test_training_goes_on_without_locks_and_says_so_once(tmp_path, monkeypatch, capsys):
    data, run = write_data(tmp_path / "data", cases=4), tmp_path / "run"
    lockless(monkeypatch, errno.ENOSYS)
    (run / "other").mkdir(parents=True)
    (run / "run.lock.held").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(UsageError, match=r"another process trains here \(host elsewhere, pid 1;"):
        train(tiny(data, run, "optim.steps=1"))
    (run / "run.lock.held").unlink()
    train(tiny(data, run, "optim.steps=1"))
    assert capsys.readouterr().err.count("the file system has no locks") == 1
    assert not (run / "run.lock.held").exists()


def test_a_folder_that_cannot_be_written_is_no_held_lock(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        FileLock.take(tmp_path / "file" / "run.lock")
    with pytest.raises(DataError, match="cannot be written"):
        train(tiny("data", tmp_path / "file" / "run"))
