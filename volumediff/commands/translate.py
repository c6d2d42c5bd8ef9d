"""`volumediff translate`: options of the command; their defaults are in `inference.options`."""

from typing import Annotated

import typer

from volumediff.api.files import translate_files
from volumediff.commands import _completion
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import (
    Channels,
    Force,
    LayoutOption,
    OutFolder,
    Overwrite,
    Seed,
    defaults,
    finish,
    inputs_and_words,
    names_of,
    say,
    spec_of,
)
from volumediff.commands._run_choice import RunChoice, with_run
from volumediff.commands._written import WrittenFiles

__all__ = ["translate"]

WORK = defaults(translate_files)


@accounts
@with_run()
def translate(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT|KEY=VALUE",
            help="Volumes, folders of cases, datalists or tables of cases; and overrides "
            "of the method, such as samples=5 (write ./a=b for a path with =).",
        ),
    ],
    run: RunChoice,
    output: OutFolder,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Name of a translation method, or a YAML file; that of the run by default.",
            autocompletion=_completion.methods,
        ),
    ] = WORK["method"],
    channels: Channels = WORK["channels"],
    layout: LayoutOption = WORK["layout"],
    seed: Seed = WORK["seed"],
    force: Force = WORK["force"],
    overwrite: Overwrite = WORK["overwrite"],
    strict: Strict = False,
) -> None:
    """Make the missing channels of cases, such as FLAIR of T1w, on the grid of their first image.

    volumediff translate DATA --run runs/t1w_to_flair -o out/ samples=5
    """
    written, (inputs, words) = WrittenFiles(output), inputs_and_words(given)
    account_for(inputs, layout=spec_of(layout), channels=names_of(channels), strict=strict)
    summary = translate_files(
        run.load(),
        inputs,
        output,
        method=method,
        overrides=words,
        channels=names_of(channels),
        layout=spec_of(layout),
        seed=seed,
        force=force,
        overwrite=overwrite,
        report=say,
    )
    there = summary.done or summary.skipped
    then = f"volumediff evaluate {output} --truth DATA --report" if there else ""
    written.finish(then=then)
    finish(summary)
