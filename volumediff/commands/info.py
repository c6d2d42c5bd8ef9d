"""`volumediff info`: what ships, and what a name means."""

from typing import Annotated

import typer

from volumediff.commands import _completion
from volumediff.commands._options import Json, out_line, print_json

__all__ = ["info"]


def info(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A family of components, a method, a configuration, a YAML file of your own, "
            "or package.module:Class; an overview if left out.",
            autocompletion=_completion.names,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List pipelines, methods and components, or describe one of them."""
    from volumediff.commands import _overview

    if not as_json:
        out_line("\n".join(_overview.glance() if name is None else _overview.page(name)))
    elif name is not None:
        print_json(_overview.facts(name))
    else:
        from volumediff.documentation.method_matrix import inventory

        print_json(inventory())
