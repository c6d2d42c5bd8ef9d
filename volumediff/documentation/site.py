"""The pages as a web site that opens from the disk, without a server and without a network.

    out/index.html  out/SECTION/PAGE.html  out/assets  out/images  out/search

The navigation is made of the sections' index pages: pages stand in the order of the links there.
"""

import hashlib
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from volumediff import __version__
from volumediff.documentation.pages import PAGES
from volumediff.errors import DataError, UsageError

__all__ = ["build_site", "cached_site", "navigation"]

# In the order of the navigation.
SECTIONS = {
    "tutorials": "Tutorials",
    "how-to": "How-to guides",
    "examples": "Examples",
    "explanation": "Explanation",
    "reference": "Reference",
}
_LINK = re.compile(r"\]\(([\w./-]+\.md)\)")


def navigation(pages: Path = PAGES) -> list[dict[str, Any]]:
    """The sections with their pages, as `nav` of mkdocs.yml.

    Raises:
        UsageError: a section's index page does not link to one of its pages
    """
    found: list[dict[str, Any]] = [{"Home": "index.md"}]
    for folder, title in SECTIONS.items():
        index = pages / folder / "index.md"
        if not index.is_file():
            continue
        links = dict.fromkeys(_LINK.findall(index.read_text(encoding="utf-8")))
        listed = [link for link in links if (index.parent / link).is_file() and "/" not in link]
        missing = {p.name for p in index.parent.glob("*.md")} - {"index.md", *listed}
        if missing:
            raise UsageError(f"{index}: expected a link to {', '.join(sorted(missing))}.")
        found.append({title: [f"{folder}/{name}" for name in ("index.md", *listed)]})
    return found


def build_site(out: Path, pages: Path = PAGES) -> list[str]:
    """Writes the site into a new folder; returns what mkdocs warns of.

    Raises:
        UsageError: the folder holds something else, or a page is in no navigation
        OSError: it cannot be written
    """
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder for the web site, found a file; name another.")
    if out.exists() and not (out / "search").is_dir() and any(out.iterdir()):
        raise UsageError(
            f"{out}: expected a new folder or an earlier site, found other files; name another."
        )
    # mkdocs takes paths from the folder of its settings.
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".volumediff-docs-", dir=out.parent) as work:
        staged = Path(work)
        shutil.copytree(pages, staged / "pages", copy_function=shutil.copyfile)
        head = (pages / "mkdocs.yml").read_text(encoding="utf-8")
        nav = yaml.safe_dump({"nav": navigation(pages)}, sort_keys=False)
        (staged / "mkdocs.yml").write_text(f"{head}\n{nav}", encoding="utf-8")
        heard = _Heard()
        log = logging.getLogger("mkdocs")
        log.addHandler(heard)
        log.propagate = False
        try:
            build(load_config(str(staged / "mkdocs.yml"), site_dir=str(staged / "site")))
        finally:
            log.removeHandler(heard)
            log.propagate = True
        if out.exists():
            shutil.rmtree(out)
        shutil.move(staged / "site", out)
    return heard.lines


def cached_site(pages: Path = PAGES) -> Path:
    """The site in the user's cache, built anew where the pages are not those that it shows.

    Raises:
        DataError: the cache cannot be written
    """
    from platformdirs import user_cache_path

    site = user_cache_path("volumediff") / "docs" / _identity(pages)
    if not (site / "index.html").is_file():
        try:
            build_site(site, pages)
        except OSError as error:
            raise DataError(
                f"{site}: {error.strerror or error}; write the pages elsewhere: volumediff docs "
                "--build -o DIR."
            ) from error
    return site


def _identity(pages: Path) -> str:
    """What the pages and their settings are, as a name."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(p for p in pages.rglob("*") if p.is_file()):
        digest.update(f"\0{path.relative_to(pages).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Heard(logging.Handler):
    """Warnings of mkdocs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
