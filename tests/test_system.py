"""Linux, macOS, Windows: the one place that knows, and what it does there."""

import ast
import errno
import fcntl
import os
import signal
import sys
from pathlib import Path, PureWindowsPath
from subprocess import PIPE

import pytest
from child_processes import run_program, running
from tiny_app import WINDOW
from tiny_runs import tiny, write_data

from volumediff import system
from volumediff.data.cases import Case
from volumediff.errors import DataError
from volumediff.outputs.batch import process
from volumediff.system import file_locks, file_names, folders, resources, stop_signals

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "volumediff"
SYSTEMS_OWN = {
    *("fcntl", "msvcrt", "resource", "pwd", "grp", "termios", "winreg", "psutil"),
    *("os.name", "sys.platform", "platform.system", "os.kill", "os.fork", "os.symlink"),
    *("os.sysconf", "os.sched_getaffinity", "os.getuid", "os.O_NOFOLLOW", "os.link"),
    *("signal.alarm", "signal.SIGUSR1", "signal.SIGUSR2", "signal.SIGXCPU", "signal.SIGKILL"),
}


def named(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
            if node.attr in ("symlink_to", "hardlink_to"):
                yield "os.symlink"


def test_nothing_else_asks_for_the_system():
    found = {
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in PACKAGE.rglob("*.py")
        if file.parent.name != "system"
        for name in SYSTEMS_OWN & set(named(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert not found


@pytest.fixture(params=["flock", "ranges"])
def locks(request, monkeypatch):
    """Both ways to lock; that of Windows on Linux' own locks of byte ranges."""
    if request.param == "ranges":
        import pretend_windows

        if "F_OFD_SETLK" not in vars(fcntl):
            pytest.skip("only Linux has locks of ranges that belong to an open file")
        monkeypatch.setattr(file_locks, "msvcrt", pretend_windows._msvcrt(fcntl), raising=False)
        monkeypatch.setattr(file_locks, "_lock", file_locks._lock_by_ranges)


def test_a_lock_is_held_alone_or_together(locks, tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(b"who")
    with open(path, "r+b") as a, open(path, "r+b") as b, open(path, "r+b") as c:
        take = file_locks.lock_file
        assert take(a, wait=False)
        assert not take(b, wait=False)
        assert not take(b, shared=True, wait=False)
        assert b.read() == b"who"  # who holds it can be read
        assert take(a, shared=True, wait=False)  # in place of its own
        assert take(b, shared=True, wait=False)
        assert take(c, shared=True, wait=False)
        assert not take(a, wait=False)
        c.close()
        b.close()
        assert take(a, wait=False)
    with open(path, "r+b") as d:
        assert file_locks.lock_file(d, wait=False)  # closing gave it back


def test_a_lock_is_waited_for_and_freed_with_its_process(locks, tmp_path):
    path = tmp_path / "lock"
    ranges = file_locks._lock is file_locks._lock_by_ranges
    code = (
        "import fcntl, os, signal, sys; from volumediff.system import file_locks\n"
        f"if {ranges}:\n"
        "    import pretend_windows; file_locks.msvcrt = pretend_windows._msvcrt(fcntl)\n"
        "    file_locks._lock = file_locks._lock_by_ranges\n"
        f"file = open({str(path)!r}, 'w+b'); assert file_locks.lock_file(file)\n"
        "print('held', flush=True); sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with running([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, cwd=HERE) as other:
        assert other.stdout.readline() == "held\n"
        with open(path, "r+b") as file:
            assert not file_locks.lock_file(file, wait=False)
            other.stdin.close()
            assert file_locks.lock_file(file)
        assert other.wait(30) == -signal.SIGKILL


def test_a_file_system_without_locks_says_so(locks, tmp_path, monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(fcntl, "fcntl", none)
    with open(tmp_path / "lock", "w+b") as file, pytest.raises(OSError, match="No locks"):
        file_locks.lock_file(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    "con CON.txt nul aux.nii.gz com1 COM9.a lpt0 conin$ console com10 sub-01 nulle comb".split(),
)
def test_devices_of_windows_are_known(name):
    assert file_names.reserved_by_windows(name) == PureWindowsPath(name).is_reserved()


@pytest.mark.parametrize("name", ["a:b", "a?", "a ", "a.", "a\tb", 'a"', "a|b", "a\\b"])
def test_characters_that_windows_refuses(name):
    assert file_names.reserved_by_windows(name)


def test_a_case_is_named_as_its_folder_can(tmp_path, monkeypatch):
    def run(*names):
        cases = [Case(id=name, patient=name, images={"t1": tmp_path / "x"}) for name in names]
        process(cases, tmp_path / "out", settings={}, work=lambda *args: 1 / 0)

    assert file_names.case_matters(tmp_path)
    monkeypatch.setattr(file_names, "case_matters", lambda folder: False)
    with pytest.raises(DataError, match=r"out: Sub-1 and sub-1: are one name here"):
        run("Sub-1", "sub-2", "sub-1")
    monkeypatch.setattr(file_names, "WINDOWS", True)
    with pytest.raises(DataError, match=r"out: nul: Windows has no files of this name; give"):
        run("nul")


def test_capital_letters_that_do_not_count_are_found(tmp_path, monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda p: any(q.name.lower() == p.name.lower() for q in p.parent.iterdir())
    )
    assert not file_names.case_matters(tmp_path)
    monkeypatch.setattr(Path, "exists", exists)
    assert list(tmp_path.iterdir()) == []


def test_links_are_refused_where_the_system_cannot_refuse_them(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    for flag in (folders.NO_FOLLOW, 0):
        monkeypatch.setattr(folders, "NO_FOLLOW", flag)
        with pytest.raises(OSError, match="link") as caught:
            open(tmp_path / "link", "r+b", opener=folders.open_unlinked)
        assert caught.value.errno == errno.ELOOP
        with open(tmp_path / f"new{flag}", "w+b", opener=folders.open_unlinked) as file:
            file.write(b"x")


def test_a_name_in_use_stays_on_windows_alone(tmp_path, monkeypatch):
    def in_use(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(Path, "unlink", in_use)
    with pytest.raises(PermissionError):
        folders.remove_open(tmp_path / "a")
    monkeypatch.setattr(folders, "WINDOWS", True)
    folders.remove_open(tmp_path / "a")


def test_resources_are_in_their_units(monkeypatch):
    assert resources.usable_cores() == len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert resources.available_memory() <= pages
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    assert resources.peak_memory() == pytest.approx(peak, rel=0.01)
    monkeypatch.setattr(resources, "MACOS", True)
    assert resources.peak_memory() == pytest.approx(peak / 1024, rel=0.01)
    assert resources.usable_cores() == os.cpu_count()
    assert resources.is_alive(os.getpid())
    with running([sys.executable, "-c", ""]) as gone:
        gone.wait(30)
    assert not resources.is_alive(gone.pid)


def test_memory_is_limited_where_it_can_be():
    code = (
        "import resource; from volumediff.system import resources as r; r.MACOS = {}\n"
        "r.limit_memory(2**40); print(resource.getrlimit(resource.RLIMIT_AS)[0] == 2**40)"
    )
    for macos in (False, True):
        done = run_program([sys.executable, "-c", code.format(macos)])
        assert done.stdout == f"{not macos}\n"


def test_every_stop_signal_of_this_system_is_one():
    assert set(stop_signals.STOP_SIGNALS) == {
        *(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
    }
    assert not system.WINDOWS


@pytest.mark.slow
def test_what_users_do_first_runs_on_a_pretended_windows(tmp_path):
    run_program([sys.executable, HERE / "windows_program.py", tmp_path])
    from volumediff.training.loop import train

    words = ("data.split={validation: 0.2, calibration: 0.5}", WINDOW)
    here, data = tmp_path / "here", write_data(tmp_path / "same", cases=8)
    for steps in (2, 3):
        train(tiny(data, here, *words, f"optim.steps={steps}"))
    weights = [
        next((run / "checkpoints").glob("last-00000003*/weights.safetensors")).read_bytes()
        for run in (here, tmp_path / "run")
    ]
    assert weights[0] == weights[1]
    assert list((tmp_path / "out").glob("*.nii.gz"))
