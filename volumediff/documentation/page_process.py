"""Runs the code blocks of one page in this process and the folder it stands in.

    python -m volumediff.documentation.page_process PAGE RESULT COMMANDS

Blocks run in order: shell blocks in bash, which stops at the first command that fails, Python
blocks in one interpreter, so that later ones know the names of earlier ones. YAML blocks are read
as configurations. RESULT becomes a JSON list with one entry for each block, written as they end,
so that it says how far a page came whose process dies. COMMANDS are the names of those commands of
`volumediff` that take overrides, with commas between them.
"""

import code
import contextlib
import io
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Collection
from pathlib import Path

import yaml

from volumediff.documentation.pages import Block, MarkdownPage, read_page
from volumediff.documentation.small_words import with_small
from volumediff.errors import UsageError

__all__ = ["main", "run_blocks"]

SHELL = ("sh", "bash", "shell", "console")


def main(page: str, result: str, commands: str) -> None:
    """Runs the page's blocks up to the first that fails."""
    run_blocks(read_page(Path(page)), Path(result), commands.split(","))


def run_blocks(page: MarkdownPage, result: Path, taking: Collection[str]) -> None:
    """Writes what became of each block: line, seconds, and `failure` of the one that failed."""
    interpreter, found = _Interpreter(), []
    for block in page.blocks:
        start = time.monotonic()
        failure = _failure(block, interpreter, taking)
        entry = {"line": block.line, "seconds": round(time.monotonic() - start, 2)}
        found.append({**entry, "failure": failure})
        result.write_text(json.dumps(found), encoding="utf-8")
        if failure is not None:
            return


def _failure(block: Block, interpreter: "_Interpreter", taking: Collection[str]) -> str | None:
    """What went wrong in a block, with its output; None where nothing did."""
    if block.file:
        path = Path(block.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        return None
    if block.not_run:
        return None
    if block.language in SHELL:
        return _shell(block, taking)
    if block.language == "python":
        return interpreter.failure(block)
    if block.language in ("yaml", "yml"):
        return _yaml(block)
    return None


def _shell(block: Block, taking: Collection[str]) -> str | None:
    # The trap names the command that failed; a word of the shell such as `exit` has no such name.
    script = (
        "set -Eeuo pipefail\n"
        "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n"
        f"{with_small(block.text, block.small, taking)}"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode == block.exits:
        return None
    return f"exit code {done.returncode}, expected {block.exits}\n{done.stdout}"


def _yaml(block: Block) -> str | None:
    from volumediff.documentation.configurations import validate

    try:
        validate(yaml.safe_load(block.text))
    except (UsageError, ValueError, yaml.YAMLError) as error:
        return str(error)
    return None


class _Interpreter(code.InteractiveInterpreter):
    """Runs Python blocks, one namespace for all."""

    def __init__(self) -> None:
        super().__init__({"__name__": "__main__"})
        self.raised: str | None = None

    def failure(self, block: Block) -> str | None:
        self.raised = None
        output = io.StringIO()
        place = f"<line {block.line}>"
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                self.runcode(compile("\n" * (block.line - 1) + block.text, place, "exec"))
            except SystemExit as stop:
                if stop.code:
                    self.raised = f"exit code {stop.code}\n"
            except SyntaxError:
                self.raised = traceback.format_exc(limit=0)
        return None if self.raised is None else f"{output.getvalue()}{self.raised}"

    def showtraceback(self) -> None:
        self.raised = traceback.format_exc()


if __name__ == "__main__":
    main(*sys.argv[1:])
