"""`volumediff tune`: noise level, guidance strength and widths, on validation volumes."""

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volumediff.api.run import Run
from volumediff.commands._options import (
    Classifier,
    Json,
    Method,
    MethodWords,
    Seed,
    TruthChoice,
    defaults,
    print_json,
    say,
)
from volumediff.commands._run_choice import RunChoice, with_run
from volumediff.commands._written import WrittenFiles
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.tunable import Tunable
    from volumediff.tuning.search import Budget

__all__ = ["tune"]


GRID = "auto, none, or values such as "
WORK = defaults(Run.tune)


@with_run(without=["domain"])
def tune(
    run: RunChoice,
    overrides: MethodWords = None,
    method: Method = WORK["method"],
    classifier: Classifier = WORK["classifier"],
    levels: Annotated[
        str,
        typer.Option(
            "--levels", help=f"Noise levels to try, as log-SNR of the noisiest: {GRID}-3,-1.5,0."
        ),
    ] = "auto",
    guidance: Annotated[
        str, typer.Option("--guidance", help=f"Guidance strengths to try: {GRID}1,2,4.")
    ] = "auto",
    parameters: Annotated[
        str, typer.Option("--parameters", help=f"Parameters of a baseline to try: {GRID}1,2,4,8.")
    ] = "auto",
    widths: Annotated[
        str, typer.Option("--widths", help=f"Post-processing widths in mm to try: {GRID}0,1,2.")
    ] = "none",
    volumes: Annotated[
        int | None,
        typer.Option(
            "--volumes",
            min=1,
            help="Largest number of volumes per part of the split; they are kept in memory.",
        ),
    ] = None,
    truth: Annotated[
        TruthChoice,
        typer.Option("--truth", help="Lesions that the method is tuned on: synthetic, or label."),
    ] = WORK["truth"],
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Limit of the search: seconds such as 600, or network calls such as 5000calls.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="YAML file to which the chosen method is written."),
    ] = None,
    seed: Seed = WORK["seed"],
    as_json: Json = False,
) -> None:
    """Choose a method's noise level, guidance strength and widths on the run's validation volumes.

    volumediff tune --run runs/brain --method ddpm -o ddpm_tuned.yaml

    Measurements are kept in RUN/tuning: the same command goes on. Test volumes are never read.
    """
    from volumediff.commands._tuned_views import picture, tabulated
    from volumediff.storage.atomic import atomic, write_text

    grids, limits = _grids(levels, guidance, parameters, widths), _budget(budget)

    if output is not None and output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"-o {output}: expected a name that ends with .yaml, for --method.")
    loaded = run.load()
    written = WrittenFiles(*([] if output is None else [output]), loaded.folder / "tuning")
    found, file = loaded.tune(
        method,
        overrides=overrides or [],
        classifier=classifier,
        grids=grids,
        volumes=volumes,
        truth=truth.value,
        budget=limits,
        seed=seed,
        report=say,
    )
    with atomic(file.with_suffix(".png")) as picture_file:
        picture_file.write(picture(found))
    if output is not None:
        write_text(output, found.to_yaml())
    if as_json:
        print_json(found.to_json())
    else:
        tabulated(found)
    then = ["volumediff", "calibrate", "--run", str(run.place)]
    then += ["--method", str(output or "FILE.yaml")]
    then += [] if classifier is None else ["--classifier", str(classifier)]
    if output is None:
        say("the method is not written: give the same command with -o FILE.yaml")
    written.finish(look=file.with_suffix(".png"), then=shlex.join(then))


def _grids(
    levels: str, guidance: str, parameters: str, widths: str
) -> "dict[Tunable, tuple[float, ...]]":
    """What is searched; an empty tuple stands for the documented grid of an axis."""
    from volumediff.tunable import Tunable

    asked = {
        Tunable.LOG_SNR: ("--levels", levels),
        Tunable.STRENGTH: ("--guidance", guidance),
        Tunable.PARAMETER: ("--parameters", parameters),
        Tunable.WIDTH: ("--widths", widths),
    }
    return {
        kind: _values(option, word, negative=kind is Tunable.LOG_SNR)
        for kind, (option, word) in asked.items()
        if word != "none"
    }


def _values(option: str, word: str, *, negative: bool) -> tuple[float, ...]:
    if word == "auto":
        return ()
    try:
        values = tuple(float(part) for part in word.split(","))
    except ValueError:
        values = (math.nan,)
    low = -math.inf if negative else 0.0
    if not all(low <= value and math.isfinite(value) for value in values):
        kind = "numbers" if negative else "numbers >= 0"
        raise UsageError(f"{option} {word}: expected auto, none, or {kind} such as 1,2,4.")
    return tuple(dict.fromkeys(values))


def _budget(word: str | None) -> "Budget":
    from volumediff.tuning.search import Budget

    if word is None:
        return Budget()
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|calls)?", word)
    if match is None:
        raise UsageError(f"--budget {word}: expected seconds such as 600, or 5000calls.")
    amount = float(match[1])
    return Budget(calls=amount) if match[2] == "calls" else Budget(seconds=amount)
