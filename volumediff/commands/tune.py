"""`volumediff tune`: noise level, guidance strength and widths of a row, on validation volumes."""

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volumediff.commands._options import (
    Classifier,
    DataRoot,
    Device,
    Json,
    Memory,
    Run,
    Seed,
    Truth,
    Which,
    WhichOption,
    print_json,
    say,
    trained_run,
)
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.tunable import Tunable
    from volumediff.tuning.search import Budget

__all__ = ["tune"]


GRID = "auto, none, or values such as "


def tune(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the row to start from."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Row by name or YAML file.")] = "scan",
    classifier: Classifier = None,
    levels: Annotated[
        str,
        typer.Option("--levels", help=f"Log-SNRs of the noisiest level: {GRID}-3,-1.5,0."),
    ] = "auto",
    guidance: Annotated[
        str, typer.Option("--guidance", help=f"Strengths of guidances: {GRID}1,2,4.")
    ] = "auto",
    parameters: Annotated[
        str, typer.Option("--parameters", help=f"Of a baseline: {GRID}1,2,4,8.")
    ] = "auto",
    widths: Annotated[
        str, typer.Option("--widths", help=f"Of post-processing, in mm: {GRID}0,1,2.")
    ] = "none",
    volumes: Annotated[
        int | None,
        typer.Option("--volumes", min=1, help="Most volumes of each part, kept in memory."),
    ] = None,
    truth: Annotated[
        Truth, typer.Option("--truth", help="Lesions of the validation volumes.")
    ] = Truth.synthetic,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Where to stop: seconds such as 600, or 5000calls."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="YAML file of the row that was chosen.")
    ] = None,
    which: WhichOption = Which.best,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    data: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Choose a row's noise level, guidance strength and widths on the run's validation volumes.

    volumediff tune RUN --method ddpm -o ddpm_tuned.yaml

    Figures are kept in RUN/tuning: the same command goes on. Test volumes are never read.
    """
    from volumediff.commands._tuned_views import picture, tabulated
    from volumediff.storage.atomic import atomic, write_text
    from volumediff.tuning.tune import tune as search

    grids, limits = _grids(levels, guidance, parameters, widths), _budget(budget)

    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"-o {out}: expected a name that ends with .yaml, as --method takes it.")
    trained = trained_run(run, which, device, data, memory)
    trained.localizes()
    found, file = search(
        trained,
        method,
        overrides=overrides or [],
        runs={"classifier": classifier},
        grids=grids,
        seed=seed,
        limit=volumes,
        truth=truth.value,
        budget=limits,
        report=say,
    )
    with atomic(file.with_suffix(".png")) as picture_file:
        picture_file.write(picture(found))
    if out is not None:
        write_text(out, found.to_yaml())
    if as_json:
        print_json(found.to_json())
    else:
        tabulated(found)
    say(f"figures: {file}, picture: {file.with_suffix('.png')}")
    then = ["volumediff", "calibrate", str(run), "--method", str(out or "FILE.yaml")]
    then += [] if classifier is None else ["--classifier", str(classifier)]
    say(
        f"{'wrote ' + str(out) if out else 'write the row with -o FILE.yaml'}; then fit its "
        f"thresholds: {shlex.join(then)}"
    )


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
