"""The frame of every page: title, notice, contents, sections in order, and the notice again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from volumediff.reporting.document import NOTICE, document

__all__ = ["Section", "framed"]


@dataclass(frozen=True)
class Section:
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
    sections: Sequence[Section],
    *,
    lead: Sequence[str] = (),
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    later: Sequence[str] = (),
) -> str:
    """The text of a page.

    Arguments:
        title: as text
        sections: chapters; those without parts are left out
        lead: paragraphs below the title, as text
        styles, scripts, later: beside those of every page, see `document`
    """
    here = files("volumediff.reporting")
    own_style, own_script = (
        here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "page.js")
    )
    sections = [section for section in sections if section.parts]
    body = [
        '<a class="skip" href="#content">Skip to the content</a>',
        "<header>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">Written {escape(time.strftime("%Y-%m-%d %H:%M"))}</p>',
        f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
        *(f"<p>{escape(text)}</p>" for text in lead),
        "</header>",
        *_contents(sections),
        '<main id="content">',
    ]
    for section in sections:
        body.append(
            f'<section id="{escape(section.name)}" aria-labelledby="{escape(section.name)}-title">'
            f'<h2 id="{escape(section.name)}-title">{escape(section.title)}</h2>'
        )
        body += [*section.parts, "</section>"]
    body += ["</main>", f"<footer><p>{escape(NOTICE)} Made with volumediff.</p></footer>"]
    return document(
        title,
        body,
        styles=[own_style, *styles],
        scripts=[own_script, *scripts],
        later=later,
    )


def _contents(sections: Sequence[Section]) -> list[str]:
    if len(sections) < 2:
        return []
    links = "".join(
        f'<li><a href="#{escape(s.name)}">{escape(s.title)}</a></li>' for s in sections
    )
    return [f'<nav class="contents" aria-label="Contents"><ol>{links}</ol></nav>']
