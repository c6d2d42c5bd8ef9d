"""Checks pages: every code block runs, every link leads somewhere."""

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from volumediff.documentation.blocks import run_pages
from volumediff.documentation.links import broken_links
from volumediff.documentation.pages import chosen, find_pages
from volumediff.documentation.site import navigation

__all__ = ["check_pages"]


def check_pages(
    names: Sequence[str], say: Callable[[str], None], *, taking: Collection[str]
) -> bool:
    """Checks the named pages, or all; says one line for each, then one summary.

    Arguments:
        names: of pages; none for all
        say: receives the lines
        taking: names of the commands that take overrides

    Returns:
        whether nothing failed

    Raises:
        UsageError: no such page, a page in no navigation, or a comment before a block that says
            nothing known
    """
    start, pages = time.monotonic(), chosen(names, find_pages())
    navigation()
    failed, ran, skipped = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="volumediff-docs-") as work:
        for outcome in run_pages(pages, Path(work), taking=taking):
            links = broken_links(outcome.page)
            faults = [*links, *([outcome.failure] if outcome.failure else [])]
            word = "failed" if faults else "ok"
            say(
                f"{word:6} {outcome.seconds:6.1f} s  {outcome.page.name}: "
                f"{_count(outcome.blocks, 'block')} run, {outcome.skipped} not run"
            )
            for fault in faults:
                say(fault)
            failed += bool(faults)
            ran, skipped = ran + outcome.blocks, skipped + outcome.skipped
    verdict = f"{failed} failed" if failed else "all good"
    say(
        f"{_count(len(pages), 'page')}, {_count(ran, 'block')} run and {skipped} not run, in "
        f"{time.monotonic() - start:.0f} s: {verdict}."
    )
    return not failed


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
