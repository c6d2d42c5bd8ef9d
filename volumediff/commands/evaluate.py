"""`volumediff evaluate`: maps against truth."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.functions import evaluate as compare
from volumediff.commands._options import LayoutOption, Seed, defaults, out_line, say, spec_of

__all__ = ["evaluate"]

WORK = defaults(compare)


def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="OUT", help="Folders of results, one for each method."),
    ],
    truth: Annotated[Path, typer.Option("--truth", help="Data set with masks or boxes.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Output folder; the first OUT if none is given."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Column of participants.tsv whose values define subgroups."),
    ] = WORK["by"],
    layout: LayoutOption = WORK["layout"],
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html into the output folder.")
    ] = WORK["html"],
    replicates: Annotated[
        int, typer.Option("--replicates", min=0, help="Number of bootstrap replicates.")
    ] = WORK["replicates"],
    seed: Seed = WORK["seed"],
    allow_seen: Annotated[
        bool,
        typer.Option(
            "--allow-seen",
            help="Continue although a model has seen some of the volumes, and report results with "
            "and without them.",
        ),
    ] = WORK["allow_seen"],
    same_names: Annotated[
        bool,
        typer.Option(
            "--same-names",
            help="Treat patients with the same name as one that a model has seen as other people.",
        ),
    ] = WORK["same_names"],
) -> None:
    """Compare maps of one or more methods with truth masks; the first is the method in question.

    volumediff evaluate out/thor out/scan --truth DATA --report
    """
    from volumediff.commands._tables import measures
    from volumediff.evaluation.summary import verdicts, without_seen

    target = output or folders[0]
    results = compare(
        folders,
        truth,
        output=target,
        html=report,
        by=by,
        layout=spec_of(layout),
        replicates=replicates,
        seed=seed,
        allow_seen=allow_seen,
        same_names=same_names,
        report=say,
    )
    measures(results)
    for line in verdicts(results):
        out_line(line)
    for line in verdicts(without_seen(results)):
        out_line(f"without the volumes that were seen before: {line}")
    if report:
        out_line(f"wrote {target / 'report.html'}")
