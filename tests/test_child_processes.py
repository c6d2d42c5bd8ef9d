"""Programs of tests end in time, with everything that they started."""

import re
import sys
from pathlib import Path

import psutil
import pytest
from child_processes import run_program

# As launchers do: a process in a session of its own, which outlives them and holds their pipes.
LAUNCHER = """
import signal, subprocess, sys
words = [sys.executable, "-c", sys.argv[1]]
print(subprocess.Popen(words, start_new_session=True).pid, flush=True)
if sys.argv[2] == "waits":
    signal.pause()
"""
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
STOPPED = "import os, signal, time; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)"


@pytest.mark.parametrize(("rank", "launcher"), [(SLEEPER, "waits"), (STOPPED, "is gone")])
def test_a_program_that_does_not_end_is_killed_and_shows_where_it_was(rank, launcher):
    with pytest.raises(AssertionError, match=r"no end after 1.5 s") as found:
        run_program([sys.executable, "-c", LAUNCHER, rank, launcher], timeout=1.5)
    said = str(found.value)
    assert said.count('File "<string>", line 1 in <module>') == 1, "of the rank"
    assert said.count("Fatal Python error: Aborted") == 1 + (launcher == "waits")
    pid = int(re.search(r"^(\d+)$", said, re.MULTILINE)[1])
    if psutil.pid_exists(pid):  # until somebody has asked how it ended
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_another_exit_code_is_told_with_what_was_written():
    with pytest.raises(AssertionError, match="exit code 3\nwhy"):
        run_program([sys.executable, "-c", "import sys; print('why', file=sys.stderr); exit(3)"])


def test_tests_start_programs_in_this_way_alone():
    here = Path(__file__).parent
    starts = re.compile(r"\b(subprocess\.(run|call|check_\w+|Popen)|os\.(system|spawn\w+))\(")
    found = {p.name for p in here.glob("*.py") if starts.search(p.read_text())}
    assert found <= {"test_child_processes.py"}
