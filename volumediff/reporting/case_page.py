"""Pages of cases beside an index, one each: the viewer, and what else there is to say.

REPORT_cases/<case>.html   a page
REPORT_cases/niivue.js     the library of the viewer, which all of them share
REPORT_cases/pages.json    the pages, so that those of an earlier report can be removed
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from volumediff.outputs.export import write_json
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.scene import Scene
from volumediff.reporting.viewer import LIBRARY, library, viewer
from volumediff.storage.atomic import atomic, write_bytes
from volumediff.storage.digests import sha256

__all__ = ["CasePages"]

WRITTEN = "pages.json"
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
PAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.html")


class CasePages:
    """The pages of an index, which lie in a folder beside it: report.html, report_cases/.

    A page links to the one before and the one after it, so that it is written when the next one
    comes, and the last one when the block ends:

        with CasePages(index) as pages:
            for scene in scenes:
                pages.write(scene)

    Arguments:
        index: the page that lists the cases; it may not be there yet
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self.folder = index.with_name(f"{index.stem}_cases")
        self._names: dict[str, str] = {}
        self._waiting: Callable[[str | None], None] | None = None

    def __enter__(self) -> "CasePages":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()

    def close(self) -> None:
        """Writes the last page, which has no next one, and removes pages of an earlier report."""
        self._finish(None)
        record, names = self.folder / WRITTEN, sorted(self._names.values())
        if not names and not record.is_file():
            return
        for name in self._before() - set(names):
            (self.folder / name).unlink(missing_ok=True)
        write_json(record, {"pages": names})

    def _before(self) -> set[str]:
        """The pages of an earlier report: those of its record that are pages of this folder."""
        try:
            said = json.loads((self.folder / WRITTEN).read_bytes())["pages"]
        except (OSError, ValueError, LookupError, TypeError):
            return set()
        return {name for name in map(str, said) if PAGE.fullmatch(name)}

    def address(self, case: str) -> str:
        """Of the page of a case, relative to the index; not quoted."""
        return f"{self.folder.name}/{self._names[case]}"

    def write(
        self, scene: Scene, *, body: Sequence[str] = (), outputs: Mapping[str, Path] | None = None
    ) -> None:
        """Takes the page of a case; each is written whole or not at all.

        Arguments:
            scene: what its viewer shows; its title is the id of the case
            body: HTML below the viewer, headings of the third level and below; a table row with
                `data-place="n"` moves it to the n-th place
            outputs: name -> file that the page links to
        """
        name = self._name(scene.title)
        before = list(self._names.values())[-1] if self._names else None
        self._names[scene.title] = name
        self._finish(name)
        shown = viewer(scene)
        links = {name: self._link(path) for name, path in (outputs or {}).items()}

        def finish(after: str | None) -> None:
            text = framed(
                scene.title,
                [
                    Chapter("viewer", "Viewer", [*shown.html, *_files(links)]),
                    Chapter("details", "Details", body),
                ],
                above=[self._navigation(before, after)],
                styles=shown.styles,
                scripts=shown.scripts,
                beside=True,
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            if before is None:  # with the first page; one of an earlier version is replaced
                write_bytes(self.folder / LIBRARY, library())
            with atomic(self.folder / name) as file:
                file.write(text.encode())

        self._waiting = finish

    def _finish(self, after: str | None) -> None:
        if self._waiting is not None:
            self._waiting(after)
            self._waiting = None

    def _name(self, case: str) -> str:
        """The file of a case: its id where that is safe and unique in any file system."""
        taken = {name.lower() for name in self._names.values()}
        name = UNSAFE.sub("-", case).strip("-.")[:100]
        if name != case or f"{name}.html".lower() in taken:
            name = f"{name or 'case'}-{sha256(case)[:8]}"
        return f"{name}.html"

    def _link(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path, self.folder)).as_posix())

    def _navigation(self, before: str | None, after: str | None) -> str:
        links = [f'<a rel="up" href="../{quote(self.index.name)}">all cases</a>']
        for rel, words, name in (("prev", "previous case", before), ("next", "next case", after)):
            if name is not None:
                links.append(f'<a rel="{rel}" href="{quote(name)}">{words}</a>')
        return f'<nav aria-label="Cases">{" · ".join(links)}</nav>'


def _files(links: Mapping[str, str]) -> list[str]:
    if not links:
        return []
    items = ", ".join(f'<a href="{a}">{escape(name)}</a>' for name, a in links.items())
    return [f'<p class="files">Files for other viewers: {items}.</p>']
