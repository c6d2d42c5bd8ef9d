"""`volumediff evaluate`: results against truth, generated volumes against real ones."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.evaluation import evaluate as compare
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import LayoutOption, Read, Seed, defaults, out_line, say, spec_of
from volumediff.commands._written import WrittenFiles
from volumediff.errors import UsageError
from volumediff.memory.heap import retain_heap

__all__ = ["evaluate"]

WORK = defaults(compare)


class AbsentChoice(StrEnum):
    skip = "skip"
    one = "one"


class MissedChoice(StrEnum):
    worst = "worst"
    skip = "skip"


@accounts
def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="OUT", help="Folders of results, one for each method."),
    ],
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            help="Data set with masks or boxes; for translations, with the measured channels.",
        ),
    ] = WORK["truth"],
    real: Annotated[
        Path | None,
        typer.Option(
            "--real", help="Data set of real volumes, to compare generated volumes with them."
        ),
    ] = WORK["real"],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="With --real: the run that drew the volumes. Real volumes are prepared as it "
            "asks, and its training volumes are known.",
        ),
    ] = WORK["run"],
    features: Annotated[
        Path | None,
        typer.Option(
            "--features",
            help="With --real: a table of feature vectors (.csv, .tsv), a safetensors file of "
            "Med3D, or a run, for KID, the Fréchet distance, precision and recall.",
        ),
    ] = WORK["features"],
    training: Annotated[
        Path | None,
        typer.Option(
            "--training",
            help="With --real: the data set that the model was trained on, to find copies; by "
            "default the training volumes of RUN.",
        ),
    ] = WORK["training"],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Output folder; the first OUT if none is given."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Column of participants.tsv whose values define subgroups."),
    ] = WORK["by"],
    layout: LayoutOption = WORK["layout"],
    read: Read = None,
    patients: Annotated[
        str | None,
        typer.Option(
            "--patients",
            metavar="TABLE|PATTERN",
            help="Whose the cases are, for results of other programs: a table with the columns "
            "case and patient, or a regular expression that finds the patient in a case's name.",
        ),
    ] = WORK["patients"],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="1,2,...",
            help="Label values of segmentations to compare; by default those that the methods "
            "know.",
        ),
    ] = None,
    tolerance_mm: Annotated[
        float | None,
        typer.Option(
            "--tolerance-mm",
            help="Tolerance of the normalized surface dice; by default the longest side of a "
            "voxel.",
        ),
    ] = WORK["tolerance_mm"],
    absent: Annotated[
        AbsentChoice,
        typer.Option(
            "--absent",
            help="A label that neither truth nor segmentation of a volume has: leave it out, or "
            "count it as perfect.",
        ),
    ] = AbsentChoice.skip,
    missed: Annotated[
        MissedChoice,
        typer.Option(
            "--missed",
            help="Distances of a label that only truth or segmentation has: the diagonal of the "
            "volume, or leave them out.",
        ),
    ] = MissedChoice.worst,
    segment_with: Annotated[
        Path | None,
        typer.Option(
            "--segment-with",
            metavar="RUN",
            help="Segmentation run; compares its lesions in translated and in measured channels.",
        ),
    ] = WORK["segment_with"],
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
    strict: Strict = False,
) -> None:
    """Compare maps, segmentations or translations with the truth, or generated volumes with real.

    The first folder is compared with the others.

    volumediff evaluate out/thor out/scan --truth DATA --report

    volumediff evaluate samples/ --real DATA --run RUN --report
    """
    from volumediff.commands._tables import generated, measures, segmented, translated
    from volumediff.evaluation.evaluate import localizations, segmentations, translations
    from volumediff.evaluation.summary import verdicts, without_seen
    from volumediff.settings.sections import POPULATION

    retain_heap()
    target = output or folders[0]
    written = WrittenFiles(target)
    data = truth or real
    if data is not None and str(data) != POPULATION:
        account_for([data], layout=spec_of(layout), channels=None, strict=strict)
    results = compare(
        folders,
        truth,
        real=real,
        run=run,
        features=features,
        training=training,
        output=target,
        html=report,
        by=by,
        layout=spec_of(layout),
        read=read or (),
        patients=patients,
        labels=_numbers(labels),
        tolerance_mm=tolerance_mm,
        absent=absent.value,
        missed=missed.value,
        segment_with=segment_with,
        replicates=replicates,
        seed=seed,
        allow_seen=allow_seen,
        same_names=same_names,
        report=say,
    )
    if real is not None:
        generated(results)
    else:
        maps = localizations(results)
        if maps:
            measures(maps)
        for line in verdicts(maps):
            out_line(line)
        for line in verdicts(without_seen(maps)):
            out_line(f"without the volumes that were seen before: {line}")
        if found := segmentations(results):
            segmented(found)
        if found := translations(results):
            translated(found)
    page = target / "report.html" if report else None
    written.finish(look=page, then="" if report else "the same with --report, for a page of it")


def _numbers(text: str | None) -> list[int] | None:
    """`1,2` as numbers.

    Raises:
        UsageError: something else
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--labels {text}: expected label values such as 1,2.")
    return [int(word) for word in words]
