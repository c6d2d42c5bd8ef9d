"""`volumediff check`: read every volume of a data set and list what is wrong."""

from typing import Annotated

import typer

from volumediff.api.data_sets import check as look
from volumediff.api.data_sets import checking
from volumediff.commands._account import Strict
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
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run that is to work on the data: a folder, a model file or the name of a model. "
            "Lists what differs from the volumes that it was trained on.",
        ),
    ] = WORK["run"],
    layout: LayoutOption = WORK["layout"],
    channels: Channels = WORK["channels"],
    read: Read = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Read every volume of a data set and list what is wrong or noteworthy.

    volumediff check DATA --for wavelet_128 recipe=label_diffusion recipe.labels=[1,2]

    volumediff check DATA --run t1w
    """
    from volumediff.commands._check_lines import CheckLines

    paths, overrides = inputs_and_words(data)
    shown = CheckLines(quiet=as_json)
    found = checking(
        paths,
        layout=spec_of(layout),
        channels=names_of(channels),
        read=read or (),
        config=config,
        overrides=overrides,
        run=run,
        start=shown.start,
    )
    rows = []
    for lines in found:
        shown.add(lines)
        rows += lines if as_json else ()
    if as_json:
        print_json([vars(row) for row in rows])
    shown.finish()
    if shown.errors or (strict and shown.left_out):
        raise typer.Exit(1)
