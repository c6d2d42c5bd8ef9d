"""Examples: Python scripts in percent format, which become pages with their pictures.

    python -m volumediff.documentation.examples [NAME ...]

runs each script of `docs/examples` in its workplace, keeps the pictures that it draws in
`docs/images/examples`, and writes its page beside it. A script begins with a line
`# workplace: NAME`; its cells begin with `# %%`, those of text with `# %% [markdown]`.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from volumediff.documentation.pages import PAGES
from volumediff.documentation.workplaces import prepare

__all__ = ["FOLDER", "PICTURES", "main", "to_page"]

FOLDER = PAGES / "examples"
PICTURES = PAGES / "images" / "examples"
_CELL = re.compile(r"^# %%(?P<text> \[markdown\])?\n", re.MULTILINE)


def to_page(script: str) -> str:
    """The Markdown page of a script.

    Raises:
        ValueError: the script does not begin with its workplace, or has no cell
    """
    head, *cells = _CELL.split(script)
    if not head.startswith("# workplace: ") or not cells:
        raise ValueError("expected `# workplace: NAME`, then cells that begin with `# %%`.")
    page = [f"---\n{head.strip().removeprefix('# ')}\n---"]
    for text, body in zip(cells[::2], cells[1::2], strict=True):
        lines = body.strip().splitlines()
        if text:
            page.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
        else:
            page.append("\n".join(["```python", *lines, "```"]))
    return "\n\n".join(page) + "\n"


def main(names: Sequence[str]) -> None:
    """Runs the named scripts, or all, and writes their pictures and pages."""
    scripts = [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("*.py"))
    PICTURES.mkdir(parents=True, exist_ok=True)
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        page = to_page(text)
        with tempfile.TemporaryDirectory(prefix="volumediff-example-") as work:
            folder = Path(work) / "workplace"
            prepare(text.partition("\n")[0].removeprefix("# workplace: ").strip(), folder)
            environment = {**os.environ, "MPLBACKEND": "agg"}
            subprocess.run([sys.executable, script], cwd=folder, env=environment, check=True)
            for picture in folder.glob("*.png"):
                (PICTURES / picture.name).write_bytes(picture.read_bytes())
        script.with_suffix(".md").write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
