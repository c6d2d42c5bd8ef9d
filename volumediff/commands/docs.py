"""`volumediff docs`: the documentation in a browser, as a folder, or checked."""

from pathlib import Path
from typing import Annotated, Any

import typer

from volumediff.commands._options import out_line, say
from volumediff.errors import UsageError

__all__ = ["docs"]

# What typer hands to a command: the context of its own copy of click, or of the installed one.
ClickContext = typer.Context.__mro__[1]


def docs(
    context: ClickContext,
    build: Annotated[
        bool, typer.Option("--build", help="Write the pages as a web site into --output.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for the web site, with --build."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run every code block and check every link.")
    ] = False,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Write the generated pages of the reference anew, for developers in a checkout.",
        ),
    ] = False,
    page: Annotated[
        list[str] | None,
        typer.Option(
            "--page",
            metavar="NAME",
            help="Page to check or to open, such as how-to/clusters. May be repeated.",
        ),
    ] = None,
) -> None:
    """Open the documentation in a browser; it comes with the program and needs no network."""
    if build + check + reference > 1:
        raise UsageError("docs: give one of --build, --check and --reference.")
    if build != (output is not None):
        raise UsageError("docs: --build and --output belong together; give both or none.")
    if check:
        _check(page or [], context)
    elif reference:
        _write_reference(context)
    elif build:
        _build(output)
    else:
        _open(page or [])


def _build(output: Path) -> None:
    from volumediff.documentation.site import build_site

    for warning in build_site(output):
        say(f"volumediff: {warning}")
    out_line(f"Wrote {output / 'index.html'}.")


def _open(names: list[str]) -> None:
    import webbrowser

    from volumediff.documentation.pages import chosen, find_pages
    from volumediff.documentation.site import cached_site

    if len(names) > 1:
        raise UsageError("docs: --page is given more than once; one page is opened at a time.")
    wanted = chosen(names, find_pages())[0].name if names else "index.md"
    file = (cached_site() / wanted).with_suffix(".html")
    if not webbrowser.open(file.as_uri()):
        say("volumediff: no browser was found; open this file in one:")
    out_line(str(file))


def _check(names: list[str], context: ClickContext) -> None:
    from volumediff.documentation.check import check_pages

    commands = context.find_root().command.commands
    taking = [name for name, command in commands.items() if takes_overrides(command)]
    if not check_pages(names, out_line, taking=taking):
        raise typer.Exit(1)


def _write_reference(context: ClickContext) -> None:
    from volumediff.documentation.reference.generated import REFERENCE, write_reference

    changed = write_reference(context.find_root().command)
    for path in changed:
        out_line(f"Wrote {path}.")
    if not changed:
        out_line(f"The pages in {REFERENCE} are up to date.")


def takes_overrides(command: Any) -> bool:
    """Whether a command has an argument for KEY=VALUE words."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    return any("KEY=VALUE" in (argument.metavar or "") for argument in arguments)
