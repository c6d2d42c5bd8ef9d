"""`volumediff check`: read every volume of a data set and list what is wrong."""

from typing import Annotated

import typer

from volumediff.api.functions import check as look
from volumediff.commands._options import (
    Channels,
    Json,
    LayoutOption,
    Read,
    defaults,
    inputs_and_words,
    names_of,
    print_json,
    spec_of,
)

__all__ = ["check"]

WORK = defaults(look)


def check(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA [KEY=VALUE]",
            help="Data sets: folders, datalists or tables of cases; and volumes. With --for, also "
            "overrides of the configuration, such as recipe.labels=[1,2].",
        ),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="CONFIG",
            help="Configuration that is to be trained on the data: lists how much of each label "
            "is left at its spacing.",
        ),
    ] = WORK["config"],
    layout: LayoutOption = WORK["layout"],
    channels: Channels = WORK["channels"],
    read: Read = None,
    as_json: Json = False,
) -> None:
    """Read every volume of a data set and list what is wrong or noteworthy.

    volumediff check DATA --for wavelet_128 recipe=label_diffusion recipe.labels=[1,2]
    """
    from volumediff.commands._tables import findings
    from volumediff.data.check import has_errors

    paths, overrides = inputs_and_words(data)
    rows = look(
        paths,
        layout=spec_of(layout),
        channels=names_of(channels),
        read=read or (),
        config=config,
        overrides=overrides,
    )
    if as_json:
        print_json([vars(row) for row in rows])
    else:
        findings(rows)
    if has_errors(rows):
        raise typer.Exit(1)
