"""Runs the code blocks of pages, each page in a process and a folder of its own.

work/workplaces/NAME    prepared once, copied for each page that names it
work/pages/PAGE         where the blocks of a page run
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from volumediff.documentation import workplaces
from volumediff.documentation.pages import MarkdownPage

__all__ = ["Outcome", "run_pages"]

LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Outcome:
    """What became of a page: blocks that ran, seconds, and the failure of the one that failed."""

    page: MarkdownPage
    blocks: int
    skipped: int
    seconds: float
    failure: str | None


def run_pages(
    pages: Sequence[MarkdownPage], work: Path, *, taking: Collection[str], processes: int = 2
) -> Iterator[Outcome]:
    """Runs pages in a folder that is there for nothing else; outcomes come in the given order.

    Arguments:
        pages: what is to be run
        work: an empty folder
        taking: names of the commands that take overrides, for the words of `small`
        processes: pages that run at the same time

    Raises:
        UsageError: a page names no known workplace
    """
    prepared = work / "workplaces"
    for name in sorted({page.workplace for page in pages if page.blocks}):
        workplaces.prepare(name, prepared / name)
    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(lambda page: _run(page, work, taking), pages)


def _run(page: MarkdownPage, work: Path, taking: Collection[str]) -> Outcome:
    start = time.monotonic()
    skipped = sum(1 for block in page.blocks if block.not_run)
    if not any(block.language for block in page.blocks):
        return Outcome(page, 0, skipped, 0.0, None)
    folder = work / "pages" / page.name.removesuffix(".md")
    shutil.copytree(work / "workplaces" / page.workplace, folder)
    result = folder.with_suffix(".json")
    failure = _failure(page, folder, result, taking)
    ran = len(json.loads(result.read_text())) if result.is_file() else 0
    return Outcome(page, ran - skipped, skipped, time.monotonic() - start, failure)


def _failure(
    page: MarkdownPage, folder: Path, result: Path, taking: Collection[str]
) -> str | None:
    """The failing block's file, line, text and output; None where all blocks ran."""
    words = [sys.executable, "-m", "volumediff.documentation.page_process"]
    try:
        done = subprocess.run(
            [*words, str(page.path), str(result), ",".join(taking)],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
        )
        said = done.stdout
    except subprocess.TimeoutExpired:
        said, done = f"no end after {LIMIT_SECONDS} s", None
    entries = json.loads(result.read_text()) if result.is_file() else []
    if entries and entries[-1]["failure"] is not None:
        return _told(page, len(entries) - 1, entries[-1]["failure"])
    if done is None or done.returncode:
        return _told(page, len(entries), said)
    return None


def _told(page: MarkdownPage, number: int, said: str) -> str:
    block = page.blocks[min(number, len(page.blocks) - 1)]
    return f"{page.path}:{block.line}:\n{block.text.rstrip()}\n--\n{said.rstrip()}"


def _environment() -> dict[str, str]:
    """This process's, in which the blocks' `volumediff` and `python` are those of this program."""
    scripts = Path(sys.executable).parent
    package = Path(__file__).parents[2]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(scripts), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
