"""The documentation: generated pages are those of the code, pages hold together, blocks run."""

import pytest
import typer

from volumediff import cli
from volumediff.documentation.links import broken_links
from volumediff.documentation.pages import PAGES, find_pages
from volumediff.documentation.reference.generated import REFERENCE, generated
from volumediff.documentation.site import navigation

PROGRAM = typer.main.get_command(cli.app)
PAGE_OF = {page.name: page for page in find_pages()}


@pytest.mark.parametrize("name", generated(PROGRAM))
def test_generated_pages_are_those_of_the_code(name):
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert generated(PROGRAM)[name]() == written, "run volumediff docs --reference"


@pytest.mark.parametrize("name", PAGE_OF)
def test_links_anchors_and_images_lead_somewhere(name):
    assert broken_links(PAGE_OF[name]) == []


def test_every_page_is_in_the_navigation():
    listed = [page for section in navigation() for page in next(iter(section.values()))]
    pages = [p.relative_to(PAGES).as_posix() for p in PAGES.glob("*/*.md")]
    assert sorted(pages) == sorted(p for p in listed if "/" in p)
