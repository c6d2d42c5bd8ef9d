"""Pages of cases beside an index, one each: the viewer, and what else there is to say.

A page is complete by itself: a browser refuses to read a file beside a page that was opened from
disk, and a page that needs nothing can be mailed. The library costs 1.1 MB in each.
"""

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from volumediff.reporting.document import NOTICE, document
from volumediff.reporting.scene import Scene
from volumediff.reporting.viewer import viewer
from volumediff.storage.atomic import atomic
from volumediff.storage.digests import sha256

__all__ = ["CasePages"]

UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class CasePages:
    """The pages of an index, which lie in a folder beside it: report.html, report_cases/.

    Arguments:
        index: the page that lists the cases; it may not be there yet
        cases: ids of all cases that get a page, in the order of the index
    """

    def __init__(self, index: Path, cases: Sequence[str]) -> None:
        self.index = index
        self.folder = index.with_name(f"{index.stem}_cases")
        self.names = _file_names(cases)

    def address(self, case: str) -> str:
        """Of the page of a case, relative to the index; not quoted."""
        return f"{self.folder.name}/{self.names[case]}"

    def write(
        self, scene: Scene, *, body: Sequence[str] = (), outputs: Mapping[str, Path] | None = None
    ) -> Path:
        """Writes the page of a case, whole or not at all.

        Arguments:
            scene: what its viewer shows; its title is the id of the case
            body: HTML below the viewer; a table row with `data-place="n"` moves it to the n-th
                place
            outputs: name -> file that the page links to
        """
        shown = viewer(scene)
        links = {name: self._link(path) for name, path in (outputs or {}).items()}
        style = files("volumediff.reporting").joinpath("report.css").read_text(encoding="utf-8")
        text = document(
            scene.title,
            [
                self._navigation(scene.title),
                f"<main><h1>{escape(scene.title)}</h1>",
                f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
                *shown.html,
                *_files(links),
                *body,
                "</main>",
            ],
            styles=[style, *shown.styles],
            scripts=shown.scripts,
            later=shown.later,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.names[scene.title]
        with atomic(path) as file:
            file.write(text.encode())
        return path

    def _link(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path, self.folder)).as_posix())

    def _navigation(self, case: str) -> str:
        order = list(self.names)
        at = order.index(case)
        links = [f'<a rel="up" href="../{quote(self.index.name)}">all cases</a>']
        for rel, neighbour in (("prev", at - 1), ("next", at + 1)):
            if 0 <= neighbour < len(order):
                name = "previous" if rel == "prev" else "next"
                address = quote(self.names[order[neighbour]])
                links.append(f'<a rel="{rel}" href="{address}">{name} case</a>')
        return f'<nav aria-label="Cases">{" · ".join(links)}</nav>'


def _files(links: Mapping[str, str]) -> list[str]:
    if not links:
        return []
    items = ", ".join(f'<a href="{a}">{escape(name)}</a>' for name, a in links.items())
    return [f'<p class="files">Files for other viewers: {items}.</p>']


def _file_names(cases: Sequence[str]) -> dict[str, str]:
    """A file name for every case: its id where that is safe and unique in any file system."""
    names: dict[str, str] = {}
    taken = set()
    for case in cases:
        name = UNSAFE.sub("-", case).strip("-.")[:100]
        if name != case or name.lower() in taken:
            name = f"{name or 'case'}-{sha256(case)[:8]}"
        taken.add(name.lower())
        names[case] = f"{name}.html"
    return names
