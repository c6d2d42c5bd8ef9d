"""`volumediff tune`: noise level, guidance strength and widths of a row, on validation volumes."""

import math
import re
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.inference.search import Budget
    from volumediff.tunable import Tunable

__all__ = ["tune"]


class _Which(StrEnum):
    best = "best"
    last = "last"


class _Truth(StrEnum):
    synthetic = "synthetic"
    label = "label"


GRID = "auto, none, or values such as "


def tune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the row to start from."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Row by name or YAML file.")] = "scan",
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
        _Truth, typer.Option("--truth", help="Lesions of the validation volumes.")
    ] = _Truth.synthetic,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Where to stop: seconds such as 600, or 5000calls."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="YAML file of the row that was chosen.")
    ] = None,
    which: Annotated[_Which, typer.Option("--which", help="Checkpoint of the run.")] = _Which.best,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    memory: Annotated[
        list[str] | None,
        typer.Option("--memory", metavar="KEY=VALUE", help="Memory policy, such as slab=32."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of lesions and noise.")] = 0,
    data: Annotated[
        str | None, typer.Option("--data", help="Where the run's data are now, if moved.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose a row's noise level, guidance strength and widths on the run's validation volumes.

    volumediff tune RUN --method ddpm -o ddpm_tuned.yaml

    Figures are kept in RUN/tuning: the same command goes on. Test volumes are never read.
    """
    import json

    from volumediff.data.atomic import atomic
    from volumediff.inference.trained import load_trained
    from volumediff.inference.tune import tune as search
    from volumediff.inference.tuned_views import picture, tabulated
    from volumediff.training.folder import write_text

    grids, limits = _grids(levels, guidance, parameters, widths), _budget(budget)

    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"-o {out}: expected a name that ends with .yaml, as --method takes it.")
    trained = load_trained(run, which=which.value, device=device, memory=memory or [])
    if data is not None:
        moved = trained.config.data.model_copy(update={"root": data})
        trained = replace(trained, config=trained.config.model_copy(update={"data": moved}))
    trained.localizes()
    found, file = search(
        trained,
        method,
        overrides=overrides or [],
        grids=grids,
        seed=seed,
        limit=volumes,
        truth=truth.value,
        budget=limits,
        report=_say,
    )
    with atomic(file.with_suffix(".png")) as picture_file:
        picture_file.write(picture(found))
    if out is not None:
        write_text(out, found.to_yaml())
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    else:
        tabulated(found)
    _say(f"figures: {file}, picture: {file.with_suffix('.png')}")
    row = out or "FILE.yaml"
    _say(
        f"{'wrote ' + str(out) if out else 'write the row with -o FILE.yaml'}; then fit its "
        f"thresholds: volumediff calibrate {run} --method {row}"
    )


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


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
    from volumediff.inference.search import Budget

    if word is None:
        return Budget()
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|calls)?", word)
    if match is None:
        raise UsageError(f"--budget {word}: expected seconds such as 600, or 5000calls.")
    amount = float(match[1])
    return Budget(calls=amount) if match[2] == "calls" else Budget(seconds=amount)
