"""The demo: train on simulated healthy subjects, find lesions in others, compare, report.

    DIR/run/          the trained run, as volumediff train leaves it
    DIR/test/         held-out subjects with lesions, as NIfTI with masks and participants.tsv
    DIR/maps/<row>/   maps of the method and of the baselines, as volumediff localize writes them
    DIR/metrics.json  DIR/table.md  DIR/report.html, with its curves as PNG

Every step is the command that a user would give; the same demo again goes on where it stopped.
Test lesions come from a family of shapes and strengths that neither training nor calibration uses.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from volumediff.config import ROOTS, expected, load, suggestion
from volumediff.data.anomalies import KINDS, TEST, insert
from volumediff.data.grid import Grid
from volumediff.data.population import Population
from volumediff.data.volume import write
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.evaluate import evaluate, localizations
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.summary import group_table, verdicts
from volumediff.evaluation.to_json import to_json
from volumediff.inference.localize_files import localize
from volumediff.inference.options import LocalizeOptions
from volumediff.outputs.export import write_json
from volumediff.randomness import key
from volumediff.reporting.curves import write_curves
from volumediff.reporting.report import report_of
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Which, load_trained
from volumediff.samples.sources import simulated
from volumediff.settings.run_config import RunConfig, parse
from volumediff.settings.sections import POPULATION
from volumediff.storage.atomic import atomic
from volumediff.training.loop import train
from volumediff.training.run_folder import sessions_of

__all__ = [
    "Clock",
    "DemoConfig",
    "Test",
    "load_demo",
    "run_demo",
    "table",
    "write_test",
]

HEALTHY = "healthy"
# Files hold 1 to 1001 in the foreground and 0 outside, so that the mask survives in the file.
UNITS, OFFSET = 500.0, 1.0


class _DemoSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Test(_DemoSection):
    """Held-out subjects: numbers `first`, `first` + 1, ... of the population.

    Every subject is shown once per kind and once without a lesion.
    """

    subjects: PositiveInt = 8
    first: NonNegativeInt = 10_000
    kinds: tuple[str, ...] = KINDS
    seed: int = 0


class RowChoice(_DemoSection):
    """A method with overrides."""

    row: str
    overrides: tuple[str, ...] = ()


class DemoConfig(_DemoSection):
    """configs/demo.yaml."""

    run: dict[str, Any]
    test: Test = Test()
    which: Which = "best"
    calibration_volumes: PositiveInt | None = None
    method: RowChoice
    baselines: tuple[RowChoice, ...]
    replicates: PositiveInt = 500


def load_demo(overrides: Sequence[str] = ()) -> DemoConfig:
    """configs/demo.yaml with `a.b=c` overrides applied.

    Raises:
        UsageError: a wrong key or value; one line
    """
    path = next((r / "demo.yaml" for r in ROOTS if (r / "demo.yaml").is_file()), None)
    if path is None:
        raise UsageError("configs/demo.yaml is not installed; install the package again.")
    try:
        return DemoConfig.model_validate(load(path, overrides))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        hint = suggestion(str(first["loc"][-1]), list(DemoConfig.model_fields))
        raise UsageError(
            f"demo: {place}: {expected(first)}, got {first['input']!r}.{hint}"
        ) from None


@dataclass(frozen=True)
class Clock:
    """Lines with the time since the start."""

    say: Callable[[str], None]
    start: float

    def __call__(self, line: str) -> None:
        self.say(f"[{time.monotonic() - self.start:5.0f} s] {line}")


def run_demo(
    out: Path | str, *, overrides: Sequence[str] = (), say: Callable[[str], None]
) -> list[MethodResult]:
    """Runs the demo; the first result is the method's, the others are the baselines'.

    Arguments:
        out: folder of all outputs
        overrides: key=value settings for configs/demo.yaml, such as run.optim.steps=100
        say: receives progress lines

    Raises:
        UsageError: a wrong override, or a folder with another demo
        DataError: the disk is full
    """
    out, clock = Path(out), Clock(say, time.monotonic())
    demo = load_demo(overrides)
    config = parse({**demo.run, "output": str(out / "run")}, where="demo.run")
    if config.data.root != POPULATION:
        raise UsageError("demo.run.data.root: expected population, the demo's own subjects.")
    _check(demo, config)
    clock(f"training {config.optim.steps} steps on {config.data.population.subjects} subjects")
    train(config)
    clock("training done")
    population = simulated(config.data)
    cases = write_test(demo.test, population, out / "test")
    clock(f"{cases} held-out volumes written to {out / 'test'}")
    trained = load_trained(out / "run", which=demo.which)
    folders = []
    for choice in (demo.method, *demo.baselines):
        folders.append(out / "maps" / Path(choice.row).stem)
        summary = localize(
            trained,
            out / "test",
            folders[-1],
            LocalizeOptions(
                method=choice.row,
                overrides=choice.overrides,
                trace=False,
                calibration_volumes=demo.calibration_volumes,
            ),
            report=lambda line: None,
            announce=clock,
        )
        if summary.failed:
            name, reason = next(iter(summary.failed.items()))
            raise DataError(f"{folders[-1]}: {name}: {reason}")
        clock(f"localized with {choice.row}: {summary.line()}")
    results = localizations(evaluate(folders, out / "test", by="kind", replicates=demo.replicates))
    _write_results(out, demo, results, provenance(trained), clock)
    return results


def _check(demo: DemoConfig, config: RunConfig) -> None:
    unknown = [kind for kind in demo.test.kinds if kind not in KINDS]
    if unknown or not demo.test.kinds:
        raise UsageError(
            f"demo.test.kinds: expected some of {', '.join(KINDS)}, got {list(demo.test.kinds)}."
        )
    if demo.test.first < config.data.population.subjects:
        raise UsageError(
            f"demo.test.first = {demo.test.first}: expected at least "
            f"{config.data.population.subjects}, the number of training subjects."
        )


def write_test(test: Test, population: Population, folder: Path) -> int:
    """Writes every test subject with every kind of lesion; returns the number of volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(population.shape, population.affine)
    rows = ["participant_id\tkind"]
    for number in range(test.first, test.first + test.subjects):
        subject, donor = population.subject(number), population.subject(number + test.subjects)
        for kind in (*test.kinds, HEALTHY):
            x, truth = subject.x, torch.zeros_like(subject.foreground)
            if kind != HEALTHY:
                x, truth = insert(
                    x,
                    subject.foreground,
                    kind=kind,
                    key=key(test.seed, "test lesion", number, kind),
                    spacing_mm=population.spacing_mm,
                    family=TEST,
                    donor=donor.x,
                )
            case = f"sub-{number}_{kind.replace('_', '')}"
            rows.append(f"{case}\t{kind}")
            stored = ((x + 1) * UNITS + OFFSET) * subject.foreground
            write(folder / f"{case}_T1w.nii.gz", stored.numpy(), like=grid, kind="image")
            mask = truth.numpy().astype(np.uint8)
            write(folder / f"{case}_mask.nii.gz", mask, like=grid, kind="label")
    with atomic(folder / "participants.tsv") as file:
        file.write(("\n".join(rows) + "\n").encode())
    return len(rows) - 1


def _write_results(
    out: Path,
    demo: DemoConfig,
    results: list[MethodResult],
    source: dict[str, Any],
    clock: Clock,
) -> None:
    seconds = round(time.monotonic() - clock.start, 1)
    source = {**source, "seconds": seconds, "demo": demo.model_dump(mode="json")}
    write_json(
        out / "metrics.json",
        {
            "voxel_ap": {r.method: r.measures["voxel_ap_by_group"].value for r in results},
            "voxel_ap_interval": {
                r.method: asdict(r.measures["voxel_ap_by_group"]) for r in results
            },
            "voxel_ap_per_kind": {
                r.method: {g: asdict(m["voxel_ap"]) for g, m in r.groups.items() if g != HEALTHY}
                for r in results
            },
            "verdicts": verdicts(results),
            "methods": to_json(results),
            "manifest": source,
        },
    )
    text = table(results)
    with atomic(out / "table.md") as file:
        file.write((text + "\n").encode())
    report_of(
        out / "report.html",
        results,
        out / "test",
        by="kind of lesion",
        title="volumediff demo",
        lead=[
            f"A small diffusion model was trained on simulated healthy subjects, and "
            f"{results[0].method} looked for lesions in {demo.test.subjects} subjects that it "
            f"has never seen, each with {len(demo.test.kinds)} kinds of lesions and without. "
            "No lesion of their generator was used in training or calibration.",
            "Subjects are the MNI152 template under random smooth deformation, contrast, bias "
            "field and noise. The results show that the pipeline works and how methods compare "
            "on this task; they say nothing about patients.",
        ],
        manifest={**source, "training": sessions_of(out / "run")[-1]},
        pictures=[
            ("Training: loss and selection by step.", out / "run" / "progress.png"),
            *write_curves(out, results),
        ],
    )
    clock(f"wrote {out / 'report.html'}, metrics.json and table.md")


def table(results: Sequence[MethodResult]) -> str:
    """Voxel AP by kind as a Markdown table, then what it says about the baselines."""
    lines = [
        f"| voxel AP (95 % interval) | {' | '.join(r.method for r in results)} |",
        f"|---|{'---|' * len(results)}",
    ]
    for line in group_table(results):
        shown = []
        for number, cell in enumerate(line.cells):
            value = line.text(cell.value) or "-"
            text = f"**{value}**" if number == line.best else value
            if np.isfinite(cell.low):
                text += f" ({line.text(cell.low)} to {line.text(cell.high)})"
            shown.append(text)
        lines.append(f"| {line.heading} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(results))])
