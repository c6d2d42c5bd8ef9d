"""Pages of the documentation: Markdown with the code blocks that a check runs.

A page may begin with a front matter, `workplace: NAME`: the prepared folder in which its blocks
run, see `volumediff.documentation.workplaces`. What is to be known of a code block stands in
comments on the lines before it, `<!-- KEY: WORDS -->`:

    small       words that are appended to each `volumediff` command that takes overrides, so that
                a page shows true sizes and its check is quick
    not run     why the block cannot run here: a GPU, a network, a cluster
    exits       the exit code of a command that is shown to fail
    file        name of the file that the block's text becomes, in place of being run
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from volumediff.config import suggestion
from volumediff.errors import UsageError

__all__ = ["PAGES", "README", "Block", "MarkdownPage", "chosen", "find_pages", "read_page"]

PAGES = Path(__file__).parents[1] / "docs"
# Stands beside the package in a checkout; an installed package has none.
README = Path(__file__).parents[2] / "README.md"
README_WORKPLACE = "trained"
SECTIONS = ("tutorials", "how-to", "explanation", "reference", "examples")
KEYS = ("small", "not run", "exits", "file")

_FRONT = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*)")
_COMMENT = re.compile(r"^ *<!-- (?P<key>[a-z ]+): (?P<words>.*?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A code block; `line` is the number of its first line of code in the file."""

    language: str
    text: str
    line: int
    small: str = ""
    not_run: str = ""
    exits: int = 0
    file: str = ""


@dataclass(frozen=True)
class MarkdownPage:
    """A Markdown file; `name` is its path below the documentation, such as how-to/clusters.md."""

    name: str
    path: Path
    text: str
    workplace: str = "empty"
    blocks: tuple[Block, ...] = field(default=(), repr=False)


def find_pages(root: Path = PAGES) -> list[MarkdownPage]:
    """All pages, the README of a checkout first.

    Raises:
        UsageError: a comment or a front matter that says nothing known
    """
    found = [README] if root == PAGES and README.is_file() else []
    found += sorted(root.glob("*.md"))
    found += [p for section in SECTIONS for p in sorted(root.glob(f"{section}/*.md"))]
    return [read_page(path, root) for path in found]


def chosen(names: Sequence[str], pages: Sequence[MarkdownPage]) -> list[MarkdownPage]:
    """The pages of these names, with or without .md; all where none is named.

    Raises:
        UsageError: no page has such a name
    """
    known = {page.name.removesuffix(".md"): page for page in pages}
    found = []
    for name in names:
        if name.removesuffix(".md") not in known:
            hint = suggestion(name, list(known)) or f" The pages are {', '.join(known)}."
            raise UsageError(f"page {name!r}: no page has this name.{hint}")
        found.append(known[name.removesuffix(".md")])
    return found or list(pages)


def read_page(path: Path, root: Path = PAGES) -> MarkdownPage:
    """Reads one page."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    workplace = README_WORKPLACE if path == README else "empty"
    front = _FRONT.match(text)
    if front:
        given = yaml.safe_load(front[1])
        if not isinstance(given, dict) or set(given) != {"workplace"}:
            raise UsageError(f"{path}: expected a front matter `workplace: NAME`, got {given!r}.")
        workplace = str(given["workplace"])
    return MarkdownPage(name, path, text, workplace, tuple(_blocks(path, text.splitlines())))


def _blocks(path: Path, lines: list[str]) -> Iterator[Block]:
    told: dict[str, str] = {}
    numbered = iter(enumerate(lines, start=1))
    for number, line in numbered:
        comment, fence = _COMMENT.match(line), _FENCE.match(line)
        if comment:
            told[comment["key"]] = comment["words"]
        elif fence:
            indent = len(fence["indent"])
            body = []
            for _, inner in numbered:
                if inner.strip() == fence["ticks"]:
                    break
                body.append(inner[indent:] if inner[:indent].isspace() else inner)
            else:
                raise UsageError(f"{path}:{number}: the code block has no end.")
            yield _block(path, number, fence["language"], "\n".join(body) + "\n", told)
            told = {}
        else:
            told = {}


def _block(path: Path, fence: int, language: str, text: str, told: dict[str, str]) -> Block:
    unknown = sorted(set(told) - set(KEYS))
    if unknown:
        raise UsageError(
            f"{path}:{fence}: comment `{unknown[0]}` before a code block; expected one of "
            f"{', '.join(KEYS)}."
        )
    return Block(
        language=language,
        text=text,
        line=fence + 1,
        small=told.get("small", ""),
        not_run=told.get("not run", ""),
        exits=int(told.get("exits", 0)),
        file=told.get("file", ""),
    )
