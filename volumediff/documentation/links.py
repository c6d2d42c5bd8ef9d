"""Links, anchors and images of pages, checked without a network."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from volumediff.documentation.pages import MarkdownPage

__all__ = ["broken_links"]

EXTENSIONS = ("tables", "attr_list", "md_in_html", "admonition", "toc", "pymdownx.superfences")
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?", re.IGNORECASE)


def broken_links(page: MarkdownPage) -> list[str]:
    """`FILE:LINE: what is wrong` for each link or image that leads nowhere.

    Files and anchors must exist; other sites are only looked at for https and a host's name.
    """
    found = []
    for target in _parsed(page.path).targets:
        fault = _fault(page, target)
        if fault:
            found.append(f"{page.path}:{_line(page, target)}: {target}: {fault}")
    return found


def _fault(page: MarkdownPage, target: str) -> str:
    parts = urlsplit(target)
    if parts.scheme == "mailto":
        return ""
    if parts.scheme or parts.netloc:
        if parts.scheme != "https":
            return "expected https"
        return "" if _HOST.fullmatch(parts.netloc) else "no name of a host"
    path = page.path if not parts.path else page.path.parent / unquote(parts.path)
    if not path.exists():
        return "no such file"
    if parts.fragment and path.suffix == ".md":
        if unquote(parts.fragment) not in _parsed(path.resolve()).anchors:
            return "no such heading"
    return ""


def _line(page: MarkdownPage, target: str) -> int:
    lines = page.text.splitlines()
    return next((i for i, line in enumerate(lines, start=1) if target in line), 1)


class _Targets(HTMLParser):
    """Where the elements of a page lead, and the names that links may lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" or (tag == "a" and key == "name"):
                self.anchors.add(value or "")
            if value and ((tag == "a" and key == "href") or (tag == "img" and key == "src")):
                self.targets.append(value)
            if value and tag == "source" and key == "srcset":
                self.targets.append(value)


@cache
def _parsed(path: Path) -> _Targets:
    import markdown
    from pymdownx.slugs import slugify

    settings = {"toc": {"slugify": slugify(case="lower")}}
    html = markdown.markdown(
        path.read_text(encoding="utf-8"), extensions=list(EXTENSIONS), extension_configs=settings
    )
    found = _Targets()
    found.feed(html)
    return found
