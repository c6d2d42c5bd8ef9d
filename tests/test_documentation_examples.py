"""Examples: a script in percent format becomes a page, and each page is that of its script."""

import ast
import re

import pytest

from volumediff.documentation.examples import FOLDER, to_page
from volumediff.documentation.pages import read_page

SCRIPTS = sorted(FOLDER.glob("*.py"))


def test_text_and_code_become_markdown():
    script = (
        "# workplace: scan\n# %% [markdown]\n# # A title\n#\n# Some *text*.\n\n# %%\nx = 1\n\n"
        "# a comment stays\ny = x\n# %% [markdown]\n# ![seen](seen.png)\n"
    )
    assert to_page(script) == (
        "---\nworkplace: scan\n---\n\n# A title\n\nSome *text*.\n\n```python\nx = 1\n\n"
        "# a comment stays\ny = x\n```\n\n![seen](seen.png)\n"
    )


@pytest.mark.parametrize("script", ["# %%\nx = 1\n", "# workplace: scan\nx = 1\n"])
def test_a_script_without_workplace_or_cells_is_refused(script):
    with pytest.raises(ValueError, match="expected `# workplace: NAME`, then cells"):
        to_page(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_page_is_that_of_the_script(script):
    text = script.read_text(encoding="utf-8")
    assert script.with_suffix(".md").read_text(encoding="utf-8") == to_page(text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_blocks_of_the_page_are_the_program(script):
    page = read_page(script.with_suffix(".md"))
    blocks = [block.text for block in page.blocks if block.language == "python"]
    program = ast.parse(script.read_text(encoding="utf-8"))
    assert ast.dump(ast.parse("\n".join(blocks))) == ast.dump(program)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_pictures_of_the_page_are_drawn_by_the_script(script):
    text = script.read_text(encoding="utf-8")
    shown = re.findall(r"\(\.\./images/examples/(.+?)\)", text)
    assert shown
    assert all(f'savefig("{name}"' in text for name in shown)
    assert all((FOLDER / "../images/examples" / name).stat().st_size < 150_000 for name in shown)
