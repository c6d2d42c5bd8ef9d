"""Several processes on one output folder: results, summary and exit code are those of one.

Processes are those of a launch (torchrun, over gloo), or commands that know nothing of each other,
as the tasks of a job array do.
"""

import json
import re
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest
from child_processes import running, torchrun
from tiny_app import base, label_run, run, save, write_cases
from tiny_runs import phantom

from volumediff.data.cases import Case
from volumediff.errors import DataError, UsageError
from volumediff.outputs.batch import Result, process
from volumediff.outputs.ledger import open_ledger, read_entries
from volumediff.storage.atomic import write_text
from volumediff.storage.locks import exclusive, open_itself, take

_ = base, run  # fixtures

ROOT = Path(__file__).parents[1]
METHOD = ("--method", "intensity", "threshold.min_volumes=2", "post=[]", "--device", "cpu")


def launch(ranks, *words, **more):
    """The command in one process, or in several of torchrun, whose own options end with `--`."""
    alone = [sys.executable, "-m", "volumediff"]
    start = alone if ranks == 1 else [*torchrun(ranks), "-m", "volumediff", "--"]
    return running([*start, *words], environment=more, stdout=PIPE, stderr=PIPE)


def result(program):
    done = program.ended(400)
    return done.returncode, done.stdout, done.stderr


def results_of(ranks, *words):
    with launch(ranks, *words) as program:
        return result(program)


def files(folder):
    """Name -> bytes, without what says when and how long."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == ".lock":
            continue
        content = path.read_bytes()
        if path.name == "ledger.jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            for row in rows:
                for key in ("time", "seconds", "sha256", "peak_gb"):
                    row.pop(key, None)
                row.pop("error", None)
                row["outputs"] = sorted(row.get("outputs", ()))  # compared themselves
            rows.sort(key=lambda row: row["case"])
            content = json.dumps(rows).encode()
        if path.parent.name == "errors":
            content = b""
        name = path.relative_to(folder).as_posix()
        found[name] = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d", b"", content)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_cases(tmp_path_factory.mktemp("shared") / "data", count=5)
    write_text(folder / "new-9_T1w.nii.gz", "no volume")
    for name in ("new-1", "new-3"):
        mask = (phantom(1) > 150).astype("uint8")
        save(folder.parent / "truth" / f"{name}_mask.nii.gz", mask, AFFINE)
    return folder


AFFINE = [[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]]


def moved(text, *folders):
    """Output without names of folders and durations."""
    for folder in folders:
        text = text.replace(str(folder), "OUT")
    return text


def everything(ranks, runs, data, folder, judged):
    """What so many processes localize, segment, draw and evaluate.

    Arguments:
        runs: of volumes and of labels
        folder: for all of it
        judged: maps that are evaluated; they hold the seconds that they took
    """
    own = shutil.copytree(runs[0], folder / "run")
    shutil.rmtree(own / "calibration", ignore_errors=True)
    commands = {
        "out": ("localize", data, "--run", own, *METHOD),
        "labels": ("segment", data, "--run", runs[1], "sampler.steps=1", "--device", "cpu"),
        "drawn": ("sample", "--run", own, "-n", 5, "sampler.steps=1"),
        "judged": (
            *("evaluate", judged, "--truth", data.parent / "truth"),
            *("--replicates", 10, "--allow-seen", "--report"),
        ),
    }
    found, printed = {}, {}
    for name, words in commands.items():
        code, said, lines = results_of(ranks, *words, "-o", folder / name)
        # there is a volume that cannot be read
        assert code == (1 if name in ("out", "labels") else 0), lines
        assert lines.count("calibrating intensity") <= 1, "said by the main process alone"
        printed[name] = moved(said, folder, judged.parent)
        for path, content in files(folder / name).items():
            found[f"{name}/{path}"] = moved(content.decode("latin1"), folder, judged.parent)
    assert not list((folder / "out").glob(".[cs]*")), "nothing of the session stays"
    return found, printed, len(list(own.rglob("*.safetensors")))


@pytest.mark.slow
def test_three_processes_give_what_one_gives(base, run, data, tmp_path):
    """Localization with its calibration, segmentation, sampling and evaluation."""
    runs, maps = (run, label_run(base)), tmp_path / "1" / "out"
    files_of_one, printed_by_one, fitted_by_one = everything(1, runs, data, tmp_path / "1", maps)
    found, printed, fitted = everything(3, runs, data, tmp_path / "3", maps)
    assert fitted == fitted_by_one, "one calibration"
    assert printed == printed_by_one, "summaries and tables"
    assert set(found) == set(files_of_one)
    assert not [name for name in found if found[name] != files_of_one[name]]
    pages = {"out/findings.html", "judged/report.html", "judged/evaluation.json"}
    assert pages < set(found)
    assert sum(name.startswith("labels/") for name in found) > 5


@pytest.mark.slow
def test_tasks_of_a_job_array_share_the_cases_and_take_those_of_a_killed_one(run, data, tmp_path):
    out, reference = tmp_path / "out", tmp_path / "reference"
    own = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(own / "calibration", ignore_errors=True)
    words = ("localize", data, "--run", own, "-o", out, *METHOD)
    deadline = time.monotonic() + 200
    with ExitStack() as stack:
        tasks = [
            stack.enter_context(launch(1, *words, SLURM_ARRAY_TASK_ID=str(i))) for i in range(3)
        ]
        while not read_entries(out) and time.monotonic() < deadline:
            time.sleep(0.02)
        tasks[0].kill_all()
        said_before = tasks[0].ended(60).stderr
        ended = [result(task) for task in tasks[1:]]
    lines = [said_before, *(said for _, _, said in ended)]
    assert sum(text.count("calibrating intensity on") for text in lines) == 1, "by one of them"
    one = results_of(1, *words[:5], reference, *words[6:])
    assert [code for code, _, _ in ended] == [1, 1], "of the volume that cannot be read"
    for _, said, _ in ended:
        # on a busy machine a task may start when the others have done some of the cases
        late = re.search(r"(\d) done, (\d) already finished and verified", said)
        if late:
            said = said.replace(late[0], f"{int(late[1]) + int(late[2])} done")
        assert moved(said, out) == moved(one[1], reference)
    a, b = files(out), files(reference)
    # the killed one may have been writing a file, under a name of its own
    assert {n for n in a if not n.endswith(".tmp")} == set(b)
    different = {n for n in b if a[n] != b[n] and not n.startswith("findings_cases/")}
    assert different <= {"findings.html", "ledger.jsonl"}
    done = [e.case for e in read_entries(out).values() if e.status == "done"]
    assert len(done) == 5
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    finished = [line["case"] for line in lines if line["status"] == "done"]
    assert sorted(finished) == sorted(done), "no case was done twice, and no line was lost"


def cases(count):
    return [Case(f"c{i:02d}", f"c{i:02d}", {}) for i in range(count)]


def share(out, work, count, workers, **settings):
    """Runs `process` in threads: locks of different openings exclude each other there, too."""
    summaries, errors = [], []

    def one(number):
        try:
            done = process(
                cases(count),
                out,
                settings=settings,
                work=lambda case, inputs, folder: work(number, case, folder),
                report=lambda line: None,
            )
            summaries.append(done)
        except (UsageError, DataError) as error:
            errors.append(str(error))

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summaries, errors


def written(case, folder):
    path = folder / f"{case.id}.txt"
    write_text(path, case.id)
    return Result([path], {})


def test_every_case_is_done_once_and_all_say_the_same(tmp_path):
    done, lock = [], threading.Lock()

    def work(number, case, folder):
        time.sleep(0.002)
        if case.id == "c07":
            raise DataError("no volume")
        with lock:
            done.append((case.id, number))
        return written(case, folder)

    summaries, errors = share(tmp_path, work, 40, 4)
    assert not errors
    assert sorted(name for name, _ in done) == [c.id for c in cases(40) if c.id != "c07"]
    assert len({number for _, number in done}) > 1, "they shared"
    for summary in summaries:
        assert (len(summary.done), summary.skipped) == (39, [])
        assert summary.failed == {"c07": "no volume"}
    assert sum(summary.last for summary in summaries) == 1
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 40
    # another session: what was done is skipped, what failed is tried again
    again, _ = share(tmp_path, lambda number, case, folder: written(case, folder), 40, 2)
    assert all(s.done == ["c07"] and len(s.skipped) == 39 and not s.failed for s in again)


def test_other_settings_wait_for_their_own_folder(tmp_path):
    with open_ledger(tmp_path, job="other"):
        _, errors = share(tmp_path, lambda number, case, folder: written(case, folder), 2, 1)
    assert "another process works here with other settings (host" in errors[0]


KILLED = """
import os, signal, sys
from pathlib import Path
from volumediff.outputs.ledger import open_ledger
with open_ledger(Path(sys.argv[1]), job="j") as ledger, ledger.claimed("b", wait=True):
    ledger.done("a", inputs={}, outputs=[], facts={})
    with open(Path(sys.argv[1]) / "ledger.jsonl", "ab") as file:
        file.write(b'{"case": "b", "sta')
    print("there", flush=True)
    signal.pause()
"""


def test_a_killed_process_gives_its_case_back_and_loses_no_line(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path]
    with running(command, stdout=PIPE) as other, open_ledger(tmp_path, job="j") as ledger:
        assert other.stdout.readline() == "there\n"
        with ledger.claimed("a", wait=False) as mine:
            assert mine
            assert set(ledger.settled) == {"a"}
        with ledger.claimed("b", wait=False) as mine:
            assert not mine
        threading.Timer(0.2, other.kill).start()
        with ledger.claimed("b", wait=True) as mine:
            assert mine
            ledger.done("b", inputs={}, outputs=[], facts={})
    assert list(read_entries(tmp_path)) == ["a", "b"], "the line that was cut is gone"
    assert ledger.last


def test_what_is_made_once_is_made_by_one(tmp_path):
    path, made = tmp_path / "folder" / "fit", []

    def make():
        with exclusive(path):
            if not path.exists():
                time.sleep(0.05)
                made.append(1)
                path.touch()

    threads = [threading.Thread(target=make, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert [p.name for p in path.parent.iterdir()] == ["fit"]


def test_a_lock_whose_name_goes_while_it_is_looked_at_is_taken_anew(tmp_path, monkeypatch):
    """Whoever had the name next is done in the meantime, and has removed it."""
    original, seen = Path.stat, []

    def stat(path, **settings):
        found = original(path, **settings)
        if path.name == ".fit.lock" and not seen:
            seen.append(path)
            path.unlink()
            return original(tmp_path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        with exclusive(tmp_path / "fit"):
            assert [p.name for p in tmp_path.iterdir()] == [".fit.lock"]
    assert seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".lock", ".session", "ledger.jsonl", ".claims"])
def test_planted_links_are_not_followed(name, tmp_path):
    victim, out = tmp_path / "victim", tmp_path / "out"
    out.mkdir()
    if name == ".claims":
        victim.mkdir()
    else:
        victim.write_text("precious")
    (out / name).symlink_to(victim)
    _, errors = share(out, lambda number, case, folder: written(case, folder), 2, 1)
    assert len(errors) == 1
    assert re.search(rf"{re.escape(name)}: is a symbolic link", errors[0])
    assert list(victim.iterdir()) == [] if name == ".claims" else victim.read_text() == "precious"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import errno
    import fcntl

    def none(file, how):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with open_itself(tmp_path / "a") as file, pytest.raises(DataError, match="cannot lock files"):
        take(file)
