"""The page of one case: its viewer, and what else there is to say; complete by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from volumediff.reporting.document import NOTICE, document
from volumediff.reporting.scene import Scene
from volumediff.reporting.viewer import viewer
from volumediff.storage.atomic import atomic

__all__ = ["Neighbours", "write_case_page"]


@dataclass(frozen=True)
class Neighbours:
    """Relative addresses that a page of a case links to; None where there is none.

    Arguments:
        index: the page that lists the cases
        before, after: pages of the cases beside it
    """

    index: str | None = None
    before: str | None = None
    after: str | None = None


def write_case_page(
    path: Path | str,
    scene: Scene,
    *,
    body: Sequence[str] = (),
    neighbours: Neighbours = Neighbours(),
) -> None:
    """Writes the page, whole or not at all. It needs no other file.

    Arguments:
        path: of the page
        scene: what the viewer shows
        body: HTML below the viewer; a table row with `data-place="n"` moves it to the n-th place
        neighbours: where its links go
    """
    shown = viewer(scene)
    style = files("volumediff.reporting").joinpath("report.css").read_text(encoding="utf-8")
    text = document(
        scene.title,
        [
            _navigation(neighbours),
            f"<main><h1>{escape(scene.title)}</h1>",
            f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
            *shown.html,
            *body,
            "</main>",
        ],
        styles=[style, *shown.styles],
        scripts=shown.scripts,
        later=shown.later,
    )
    with atomic(path) as file:
        file.write(text.encode())


def _navigation(neighbours: Neighbours) -> str:
    places = (
        ("up", "all cases", neighbours.index),
        ("prev", "previous case", neighbours.before),
        ("next", "next case", neighbours.after),
    )
    links = " · ".join(
        f'<a rel="{rel}" href="{escape(address, quote=True)}">{name}</a>'
        for rel, name, address in places
        if address is not None
    )
    return f'<nav aria-label="Cases">{links}</nav>' if links else ""
