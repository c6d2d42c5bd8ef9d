"""What is shown, where and when: levels, the log file, progress, the last lines of a command."""

import io
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest
from child_processes import run_program
from rich.console import Console
from rich.table import Table
from tiny_app import program

from volumediff.commands import _tables
from volumediff.commands._console import show_table
from volumediff.commands._written import WrittenFiles, size
from volumediff.errors import UsageError
from volumediff.evaluation.localization_metrics import LOCALIZATION_METRICS
from volumediff.evaluation.table_line import Line
from volumediff.metrics.bootstrap import Interval
from volumediff.terminal import messages
from volumediff.terminal import progress as shown_progress
from volumediff.terminal.messages import Verbosity, detail, logging_session, problem, result, say
from volumediff.terminal.progress import Progress, duration, pace

__all__ = ["program"]  # a fixture


def speak():
    say("a message")
    detail("a detail")
    problem("an error")
    result("a result")
    logging.getLogger("somebody.else").warning("a foreign message")


SHOWN = {
    Verbosity.QUIET: ("", "an error\n"),
    Verbosity.NORMAL: ("a result\n", "a message\nan error\n"),
    Verbosity.VERBOSE: (
        "a result\n",
        "a message\na detail\nan error\na foreign message\n",
    ),
}


@pytest.mark.parametrize("level", list(Verbosity))
def test_levels_say_what_reaches_the_terminal_and_a_log_file_has_all(level, capsys, tmp_path):
    for _ in range(2):  # the second session adds to the file
        with logging_session(level, tmp_path / "logs" / "a.log"):
            speak()
        assert capsys.readouterr() == SHOWN[level]
    lines = (tmp_path / "logs" / "a.log").read_text().splitlines()
    assert len(lines) == 10
    assert [line.rpartition(": ")[2] for line in lines[:5]] == [
        "a message",
        "a detail",
        "an error",
        "a result",
        "a foreign message",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z]+ ", line) for line in lines)
    assert messages.ROOT.level == logging.WARNING, "as it was"


def test_warnings_of_other_packages_are_details(capsys):
    for level, seen in ((Verbosity.NORMAL, 0), (Verbosity.VERBOSE, 1)):
        with logging_session(level):
            warnings.showwarning("of somebody else", UserWarning, "file.py", 1)
        assert capsys.readouterr().err.count("of somebody else") == seen


def test_a_log_file_that_cannot_be_written_is_said(tmp_path, program):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match=r"^log file"),
        logging_session(Verbosity.NORMAL, tmp_path / "file" / "a.log"),
    ):
        pass
    code, out, complaint = program("info", "--log-file", tmp_path / "file" / "a.log")
    assert (code, out) == (2, "")
    assert complaint.startswith("volumediff: error: log file")


def test_options_of_the_program_stand_anywhere(program, tmp_path):
    log = tmp_path / "a.log"
    for words in (("-q", "info"), ("info", "-q"), ("info", "--quiet", f"--log-file={log}")):
        assert program(*words) == (0, "", "")
    assert "wavelet_128" in log.read_text()
    code, out, complaint = program("doctor", "-q", "--json")
    assert (code, complaint) == (0, "")
    assert json.loads(out)[0]["name"] == "python"
    code, _, complaint = program("info", "-q", "-v")
    assert (code, complaint.count("\n")) == (2, 1)
    code, _, complaint = program("info", "nonsense", "-q")
    assert (code, complaint.count("\n")) == (2, 1)


def test_foreign_warnings_do_not_come_through_in_a_fresh_process():
    words = [sys.executable, "-W", "default", "-m", "volumediff"]
    assert run_program([*words, "doctor"]).stderr == ""


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def test_progress_in_a_pipe_is_a_line_now_and_then(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(shown_progress, "time", clock)
    with Progress(1000, "steps", done=100) as bar:
        for step in range(101, 1001):
            clock.now += 2.0
            bar.update(step, "loss 1")
    lines = capsys.readouterr().err.splitlines()
    # 1800 s: every 6 s (5 s in steps of 2 s) at first, a twentieth of the time so far later
    assert lines[0] == "103 of 1000 steps, loss 1, 2 s per step, 29 min 54 s left".replace(
        " min 54 s", " min"
    ).replace("29", "30")
    assert lines[-1] == "1000 of 1000 steps, loss 1, 2 s per step"
    assert 40 < len(lines) < 80
    with logging_session(Verbosity.QUIET), Progress(2, "cases") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_one_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with Progress(3, "cases") as bar:
        for number in range(3):
            bar.update(number + 1, "sub-1\x1b[2J")
    text = terminal.getvalue()
    assert "3/3" in text
    assert "\x1b[2J" not in text


def test_durations_and_rates_are_in_units_that_people_read():
    spans = (0.4, 59.4, 90.0, 7200.0, 12_000.0, 172_800.0, 1_831_642.0)
    assert [duration(s) for s in spans] == [
        *("0 s", "59 s", "2 min", "2 h 0 min", "3 h 20 min"),
        *("2 d 0 h", "21 d 5 h"),
    ]
    assert pace(9.158, "steps") == "9.16 s per step"
    assert pace(0.25, "cases") == "4 cases per s"
    assert [size(n) for n in (0, 999, 4100, 139_000_000)] == ["0 B", "999 B", "4.1 kB", "139 MB"]


def test_the_last_lines_count_what_has_changed(tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "a.yaml"
    (out / "sub").mkdir(parents=True)
    (out / "old").write_text("1")
    (out / "changed").write_text("1")
    written = WrittenFiles(out, file)
    (out / "changed").write_text("12")
    (out / "sub" / "new").write_text("x" * 2000)
    file.write_text("abc")
    written.finish(look=out / "page.html", then="volumediff info")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"wrote 2 files (2.0 kB) to {out} and {file} (3 B) in 0 s",
        f"open {out / 'page.html'} in a browser",
        "next: volumediff info",
    ]
    WrittenFiles(out).finish()
    assert capsys.readouterr().err == "wrote nothing new, 0 s\n"


def shown_at(width: int) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width, highlight=False, markup=False), stream


@pytest.mark.parametrize("width", [120, 80, 40, 25])
def test_no_number_is_broken_at_any_width(width):
    console, stream = shown_at(width)
    table = Table(box=None, pad_edge=False)
    for name in ("policy of the memory", "live GB", "card GB", "host GB"):
        table.add_column(name, justify="right" if name.endswith("GB") else "left")
    for number in range(3):
        table.add_row("bfloat16, recomputed, slabs", f"{number}.1234", "12.5678", "123.987")
    show_table(console, table)
    text = stream.getvalue()
    for name, cells in {
        "live GB": ("0.1234", "1.1234"),
        "card GB": ("12.5678",),
        "host GB": ("123.987",),
    }.items():
        left_out = re.search(rf"left out at {width}\s+columns:[^)]*{name}", text)
        assert bool(left_out) != all(cell in text for cell in cells), text
    assert max(map(len, text.splitlines())) <= width
    assert ("left out" in text) == (width < 50)


@pytest.mark.parametrize("width", [80, 50])
def test_an_interval_stands_on_one_line(width):
    console, stream = shown_at(width)
    cells = [
        Interval(-0.1234, -0.234, 0.346, level=0.95, replicates=100),
        Interval(0.5, 0.25, 0.75, level=0.95, replicates=100),
    ]
    line = Line("voxel AP, mean over groups", LOCALIZATION_METRICS["voxel_ap"], cells)
    _tables._lines(console, ["scan", "a_long_name_of_a_method"], [line], "")
    text = stream.getvalue()
    assert "-0.234..0.346" in text
    assert "0.250..0.750" in text
    assert max(map(len, text.splitlines())) <= width


def complete(words: str, here: Path) -> list[str]:
    environment = {
        "_VOLUMEDIFF_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    words = [sys.executable, "-m", "volumediff"]
    done = run_program(words, environment=environment, cwd=here, code=None)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_configurations_methods_and_runs(tmp_path):
    (tmp_path / "runs" / "brain").mkdir(parents=True)
    (tmp_path / "runs" / "brain" / "config.yaml").write_text("")
    (tmp_path / "wave.yaml").write_text("")
    (tmp_path / "wave.txt").write_text("")
    assert complete("volumediff prep", tmp_path) == ["prepare"]
    found = complete("volumediff train wave", tmp_path)
    assert found == ["wavelet_128", "wavelet_256", "wavelet_64", "wave.yaml"]
    assert complete("volumediff localize --method tho", tmp_path) == ["thor"]
    assert "runs/brain" in complete("volumediff segment --run runs/", tmp_path)
