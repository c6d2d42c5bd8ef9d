"""Everything that a GPU is needed for, in one run of a few minutes.

    python benchmarks/gpu.py --out DIR
    python benchmarks/gpu.py --out DIR --peer wdm=PATH patchddm=PATH --minutes 9

Sections, in order of worth: the doctor; exactness of slabs on this device; memory of every case
against its plan, also within cards of 8 and 24 GB; kernels; steps against the peers' own code; the
tests that need a GPU. Each runs in processes of its own and ends in time: it may use what the
sections before it left of theirs, and not what belongs to those after it. Results are written to
`DIR/SECTION.json` as they come, messages to `DIR/SECTION.log`, and `DIR/summary.json` after every
section, so that a run that is killed keeps what it has. What fails is written down with its
reason, and the rest goes on. The device should be idle otherwise.

Without a GPU the same runs on small states: a rehearsal, whose figures mean nothing.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CAPS = ("8", "24")
LEAST = 5.0  # seconds that are worth to begin something in
# Cases in order of worth; the largest come last.
MEMORY = (
    *("wavelet-256-train", "latent-256-train", "patch-128-train", "pseudo3d-256-train"),
    *("ae-256-decode", "ae-256-train", "patch-256-train", "wavelet-256-infer"),
    *("patch-256-infer", "latent-512-train", "pseudo3d-256-infer", "wavelet-512-train"),
    *("wavelet-512-infer", "wavelet-128-train", "ae-512-decode"),
)
TIMES = (
    *("wavelet-256-train", "latent-256-train", "patch-128-train", "wavelet-128-train"),
    *("ae-256-train", "pseudo3d-256-train", "latent-512-train", "wavelet-512-train"),
    "patch-256-train",
)
DTYPES = ("float64", "float32", "bfloat16")
POLICIES = ("plain", "slabs", "slabs+offload")
REHEARSAL = {
    "memory": ("pseudo3d-256-infer", "wavelet-128-train"),
    "times": ("wavelet-128-train",),
}
SMALLER = 4  # of the rehearsal


@dataclass(frozen=True)
class Section:
    """Something to find out.

    Arguments:
        name: of its files
        share: of the whole time
        command: given what is still to be done, a program that prints a line of JSON with the key
            `case` for each as soon as it is done; without `items` a program that runs to its end
        items: what is to be done, in this order
        limit: seconds that one item may take
        read: without `items`, what the program's output says
    """

    name: str
    share: float
    command: Callable[[list[str]], list[str]]
    items: tuple[str, ...] = ()
    limit: float = 60.0
    read: Callable[[str], Any] = json.loads


def sections(options: argparse.Namespace, *, cuda: bool) -> list[Section]:
    """All of them."""
    memory = tuple(options.cases or (MEMORY if cuda else REHEARSAL["memory"]))
    times = tuple(options.cases or (TIMES if cuda else REHEARSAL["times"]))
    times = tuple(name for name in times if name in TIMES)
    smaller = ["--smaller", str(options.smaller or (1 if cuda else SMALLER))]
    kernels = Path(options.out).resolve() / "kernels_figures.json"
    # Only the files that have such tests: collecting all of them takes longer than running these.
    tests = [str(p) for p in sorted((ROOT / "tests").glob("test_*.py")) if _needs_gpu(p)]
    checks = [f"{n} {d}" for n in ("unet", "pseudo3d", "decoder") for d in DTYPES]

    def script(name: str, *words: str) -> list[str]:
        return [sys.executable, str(HERE / name), *words]

    def real(items: list[str], *words: str) -> list[str]:
        # The second step of a training has the moments of Adam.
        steps = ["--steps", "2" if cuda else "1", *smaller, "--cap", *CAPS]
        return script("memory.py", "--real", *items, *steps, *words)

    def throughput(items: list[str]) -> list[str]:
        rounds, policies = ("3", POLICIES) if cuda else ("1", POLICIES[:2])
        words = ["--rounds", rounds, "--seconds", "20", *smaller, "--json", "--only", *items]
        return script("throughput.py", *words, "--peer", *options.peer, "--policy", *policies)

    doctor = [sys.executable, "-c", "from volumediff.cli import main; main()", "doctor", "--json"]
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider"]
    return [
        Section("doctor", 0.06, lambda items: doctor),
        Section(
            "exactness",
            0.12,
            lambda items: script("exactness.py", "--only", *items),
            (*checks, "large"),
        ),
        Section("memory", 0.24, real, memory),
        Section("memory_offload", 0.14, lambda items: real(items, "--offload"), memory),
        Section(
            "kernels",
            0.10,
            lambda items: script("kernels.py", "--json", str(kernels)),
            read=lambda text: json.loads(kernels.read_text()),
        ),
        Section("throughput", 0.26, throughput, times, limit=120.0),
        Section("tests", 0.08, lambda items: [*pytest, *tests], read=outcomes),
    ]


def _needs_gpu(path: Path) -> bool:
    return "mark.gpu" in path.read_text()


def outcomes(text: str) -> dict[str, Any]:
    """Tests by outcome, from a report of pytest."""
    words = ("PASSED", "FAILED", "ERROR", "SKIPPED")
    lines = [line for line in text.splitlines() if line.startswith(words)]
    return {"lines": lines, "last": text.strip().splitlines()[-1]}


class Program:
    """A process group whose output is read while the clock runs."""

    def __init__(self, command: list[str], log: Path) -> None:
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        self.log = log.open("ab")
        self.begin = self.log.seek(0, os.SEEK_END)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            # What is measured is this checkout, whatever is installed.
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, until: float) -> str | None:
        """The next line, None at the end.

        Raises:
            TimeoutError: there is none in time
        """
        try:
            return self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None

    def stop(self, patience: float) -> str:
        """Ends the process with all that it started; why it ended, empty if it was done.

        Arguments:
            patience: seconds that it has to end by itself
        """
        try:
            self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        status = self.process.wait()
        self.log.close()
        if not status:
            return ""
        with Path(self.log.name).open("rb") as file:
            file.seek(self.begin)
            messages = file.read().decode(errors="replace").strip().splitlines()
        last = f": {messages[-1].strip()}" if messages else ""
        how = f"killed by signal {-status}" if status < 0 else f"status {status}"
        return f"{how}{last}"


def run(section: Section, deadline: float, out: Path) -> dict[str, Any]:
    """Runs a section until it is done or its time is up; writes what comes."""
    start = time.monotonic()
    record: dict[str, Any] = {"section": section.name, "rows": [], "failures": []}
    todo = list(section.items) or [section.name]
    read = _items if section.items else _whole
    while todo:
        if deadline - time.monotonic() < LEAST:
            reason = "no time was left"
            record["failures"] += [{"case": item, "failed": reason} for item in todo]
            break
        program = Program(section.command(todo), out / f"{section.name}.log")
        reason, unreadable, patience = "", "ended without a result", 0.0
        try:
            for row in read(program, section, deadline):
                record["rows"].append(row)
                if row.get("case") in todo:
                    todo.remove(row["case"])
                if why := _failure(row):
                    record["failures"].append({"case": row["case"], "failed": why})
                _write(out / f"{section.name}.json", record, start)
            patience = 5.0
        except TimeoutError:
            late = time.monotonic() >= deadline
            reason = "the section's time was up" if late else f"over {section.limit:.0f} s"
        except (ValueError, LookupError, OSError) as error:
            unreadable, patience = f"unreadable output: {error}", 5.0
        finally:
            ended = program.stop(patience)
        if todo:
            reason = reason or ended or unreadable
            record["failures"].append({"case": todo.pop(0), "failed": reason})
        _write(out / f"{section.name}.json", record, start)
    _write(out / f"{section.name}.json", record, start)
    return record


def _items(program: Program, section: Section, deadline: float) -> Iterator[dict]:
    while (line := program.line(min(deadline, time.monotonic() + section.limit))) is not None:
        if line.startswith("{"):  # whatever a library prints besides
            yield json.loads(line)


def _failure(row: dict) -> str | None:
    return row.get("failed") or ("outside its bounds" if row.get("ok") is False else None)


def _whole(program: Program, section: Section, deadline: float) -> Iterator[dict]:
    lines = []
    while (line := program.line(deadline)) is not None:
        lines.append(line)
    row = {"case": section.name, "result": section.read("".join(lines))}
    if program.process.wait():
        row["failed"] = f"status {program.process.returncode}"
    yield row


def _write(path: Path, record: dict[str, Any], start: float | None = None) -> None:
    if start is not None:
        record["seconds"] = time.monotonic() - start
    # In one go: a run may be killed at any time.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1))
    part.replace(path)


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    cuda = torch.cuda.is_available()
    git = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "commit": git.stdout.strip() or None,
    }


def memory_table(records: list[dict[str, Any]]) -> list[str]:
    """Planned and real memory of the card."""
    lines = [
        "| case | host memory | traced | allocated | reserved | card | planned card "
        + "".join(f"| {cap} GB " for cap in sorted(CAPS, key=int))
        + "|",
        "|---" * (7 + len(CAPS)) + "|",
    ]
    for row in (row for record in records for row in record["rows"]):
        first, *capped = row["runs"]
        keys = ("peak_gb", "reserved_gb")
        figures = [row["traced_gb"], *(first.get(key) for key in keys), None]
        if "reserved_gb" in first:
            figures[-1] = first["reserved_gb"] + first["outside_gb"]
        figures.append(row["planned_card_gb"])
        cells = [row["case"], f"{row['host_gb']:.2f}" if row["offload"] else ""]
        cells += ["" if f is None else f"{f:.2f}" for f in figures]
        if "failed" in first:
            cells[5] = "does not fit"
        fits = {run["cap_gb"]: "no" if "failed" in run else "yes" for run in capped}
        cells += [fits.get(float(cap), "") for cap in sorted(CAPS, key=int)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def time_table(record: dict[str, Any]) -> list[str]:
    """Seconds of a step, and the peer's by ours."""
    lines = ["| case | network | step, s | peer / ours | peak GB |", "|---" * 5 + "|"]
    for row in record["rows"]:
        for name, result in row["results"].items():
            values = [result.get(key) for key in ("step_s", "ratio_wall", "peak_gb")]
            cells = ["" if v is None else f"{v:.3g}" for v in values]
            cells[0] = result.get("failed", cells[0])
            lines.append(f"| {row['case']} | {name} | {' | '.join(cells)} |")
    return lines


def report(records: dict[str, dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    """The tables, as Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in facts.items() if value is not None), ""]
    lines += ["| section | s | done | failed | |", "|---|---|---|---|---|"]
    for name, record in records.items():
        done = sum(_failure(row) is None for row in record["rows"])
        failures = record["failures"]
        why = "; ".join(f"{f['case']}: {f['failed']}" for f in failures[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        cells = [name, f"{record['seconds']:.0f}", str(done), str(len(failures)), why + more]
        lines.append(f"| {' | '.join(cells).replace(chr(10), ' ')} |")
    if rows := records.get("exactness", {}).get("rows"):
        lines += ["", "| exactness | comparisons | within bounds | worst | error | bound |"]
        lines.append("|---" * 6 + "|")
        for row in (row for row in rows if "worst" in row):
            worst, word = row["worst"], "yes" if row["ok"] else "NO"
            figures = f"{worst['error']:.1e} | {worst['bound']:.1e}"
            lines.append(
                f"| {row['case']} | {row['comparisons']} | {word} | {worst['what']} | {figures} |"
            )
    memory = [records[name] for name in ("memory", "memory_offload") if name in records]
    if any(record["rows"] for record in memory):
        lines += ["", *memory_table(memory)]
    for row in records.get("kernels", {}).get("rows", []):
        lines += ["", *row["result"]["verdict"]]
    if records.get("throughput", {}).get("rows"):
        lines += ["", *time_table(records["throughput"])]
    for row in records.get("tests", {}).get("rows", []):
        lines += ["", f"Tests: {row['result']['last']}"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", metavar="SECTION", help="some of the sections")
    parser.add_argument("--cases", nargs="*", choices=MEMORY, help="some of the cases")
    parser.add_argument("--smaller", type=int, metavar="F", help="F times fewer voxels an axis")
    options = parser.parse_args()
    start = time.monotonic()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    options.out.mkdir(parents=True, exist_ok=True)
    options.peer = [
        f"{n}={Path(p).resolve()}" for n, _, p in (w.partition("=") for w in options.peer)
    ]
    chosen = sections(options, cuda=torch.cuda.is_available())
    if options.only:
        names = [section.name for section in chosen]
        if unknown := set(options.only) - set(names):
            parser.error(f"--only {' '.join(sorted(unknown))}: choose from {' '.join(names)}")
        chosen = [section for section in chosen if section.name in options.only]
    facts, records, share = machine(), {}, 0.0
    for section in chosen:
        share += section.share / sum(s.share for s in chosen)
        records[section.name] = run(section, start + 60 * options.minutes * share, options.out)
        print(f"{section.name}: {records[section.name]['seconds']:.0f} s", file=sys.stderr)
        summary = {
            "machine": facts,
            "minutes": options.minutes,
            "seconds": time.monotonic() - start,
            "sections": {
                name: {
                    "seconds": record["seconds"],
                    "rows": len(record["rows"]),
                    "failures": record["failures"],
                }
                for name, record in records.items()
            },
            "table": report(records, facts),
        }
        _write(options.out / "summary.json", summary)
    print("\n".join(report(records, facts)))


if __name__ == "__main__":
    main()
