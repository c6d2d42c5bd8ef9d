"""The frame of every page: title, notice, contents, chapters in order, and the notice again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from volumediff.reporting.document import NOTICE, document

__all__ = ["Chapter", "framed"]


@dataclass(frozen=True)
class Chapter:
    """A chapter of a page.

    Arguments:
        name: identifier in the page, which the contents link to
        title: its heading
        parts: HTML; headings in it are of the third level and below
    """

    name: str
    title: str
    parts: Sequence[str]


def framed(
    title: str,
    chapters: Sequence[Chapter],
    *,
    above: Sequence[str] = (),
    lead: Sequence[str] = (),
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    beside: bool = False,
) -> str:
    """The text of a page.

    Arguments:
        title: as text
        chapters: in order; those without parts are left out
        above: HTML before the title, such as links to other pages
        lead: paragraphs below the title, as text
        styles, scripts: further than those of every page
        beside: whether a script may load others from the place of the page
    """
    here = files("volumediff.reporting")
    own_style, own_script = (
        here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "page.js")
    )
    chapters = [chapter for chapter in chapters if chapter.parts]
    body = [
        '<a class="skip" href="#content">Skip to the content</a>',
        *above,
        "<header>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">Written {escape(time.strftime("%Y-%m-%d %H:%M"))}</p>',
        f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
        *(f"<p>{escape(text)}</p>" for text in lead),
        "</header>",
        *_contents(chapters),
        '<main id="content">',
    ]
    for chapter in chapters:
        body.append(
            f'<section id="{escape(chapter.name)}" aria-labelledby="{escape(chapter.name)}-title">'
            f'<h2 id="{escape(chapter.name)}-title">{escape(chapter.title)}</h2>'
        )
        body += [*chapter.parts, "</section>"]
    body += ["</main>", f"<footer><p>{escape(NOTICE)} Made with volumediff.</p></footer>"]
    return document(
        title,
        body,
        styles=[own_style, *styles],
        scripts=[own_script, *scripts],
        beside=beside,
    )


def _contents(chapters: Sequence[Chapter]) -> list[str]:
    if len(chapters) < 2:
        return []
    links = "".join(
        f'<li><a href="#{escape(c.name)}">{escape(c.title)}</a></li>' for c in chapters
    )
    return [f'<nav class="contents" aria-label="Contents"><ol>{links}</ol></nav>']
