"""`volumediff evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import LayoutOption, Seed, out_line, say, spec_of

__all__ = ["evaluate"]


def evaluate(
    folders: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Folders of maps.")],
    truth: Annotated[Path, typer.Option("--truth", help="Data set with masks or boxes.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to write; the first OUT by default.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Column of participants.tsv that makes groups.")
    ] = None,
    layout: LayoutOption = "auto",
    report: Annotated[bool, typer.Option("--report", help="Write report.html too.")] = False,
    replicates: Annotated[
        int, typer.Option("--replicates", min=0, help="Of the bootstrap.")
    ] = 1000,
    seed: Seed = 0,
    allow_seen: Annotated[
        bool,
        typer.Option(
            "--allow-seen",
            help="Go on although a model has seen volumes before; figures with and without them.",
        ),
    ] = False,
    namesakes: Annotated[
        bool,
        typer.Option(
            "--namesakes",
            help="Patients with the names of those that a model has seen are other people.",
        ),
    ] = False,
) -> None:
    """Compare maps of one or more methods with truth masks; the first is the one in question."""
    from volumediff.commands._tables import measures
    from volumediff.evaluation.evaluate import evaluate as compare
    from volumediff.evaluation.records import to_json
    from volumediff.evaluation.summary import verdicts, without_seen
    from volumediff.outputs.export import write_json
    from volumediff.reporting.curves import write_curves
    from volumediff.reporting.report import report_of

    spec = spec_of(layout)
    results = compare(
        folders,
        truth,
        by=by,
        layout=spec,
        seed=seed,
        replicates=replicates,
        allow_seen=allow_seen,
        namesakes=namesakes,
        report=say,
    )
    target = out or folders[0]
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "evaluation.json", {"truth": str(truth), "methods": to_json(results)})
    pictures = write_curves(target, results)
    measures(results)
    for line in verdicts(results):
        out_line(line)
    for line in verdicts(without_seen(results)):
        out_line(f"without the volumes that were seen before: {line}")
    if report:
        report_of(target / "report.html", results, truth, by=by, layout=spec, pictures=pictures)
        out_line(f"wrote {target / 'report.html'}")
