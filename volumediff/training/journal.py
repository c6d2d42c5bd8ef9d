"""Progress of a run: one line per step in metrics.jsonl, progress.png, and the terminal.

The numbers of a step follow from the configuration, all but its duration (`seconds`, from waiting
for the samples to the average of the weights).

On a terminal a progress bar, elsewhere (batch systems) a plain line now and then. A resumed run
forgets the lines beyond its checkpoint, so that every step stands in the file once.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from volumediff.errors import printable
from volumediff.optimization.metrics_file import read_metrics
from volumediff.storage.atomic import write_text

__all__ = ["TrainingJournal", "duration"]

# Seconds between two plain lines, and between two writes of the buffered metrics.
PAUSE = 15.0
FLUSH = 2.0


class TrainingJournal:
    """Metrics file and terminal of the main process; silent in the others.

    Arguments:
        run: the run's folder
        active: whether this is the main process
        steps: where the run ends
    """

    def __init__(self, run: Path, *, active: bool, steps: int) -> None:
        from rich.console import Console

        self.path = run / "metrics.jsonl"
        self.active = active
        self.steps = steps
        self.console = Console(file=sys.stderr)
        self._bar: Any = None
        self._file: Any = None
        self._said = self._flushed = 0.0

    def line(self, text: str) -> None:
        """One line for the user."""
        if self.active:
            self.console.print(printable(text), soft_wrap=True, highlight=False, markup=False)

    def start(self, step: int, *, validated: bool = True) -> None:
        """Goes on after `step` updates, whose validation is done again if it was not finished."""
        if not self.active:
            return
        rows = [
            row
            for row in read_metrics(self.path, before=step)
            if validated or row["step"] < step or "loss" in row
        ]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(self.path, "a", encoding="utf-8")
        self._first, self._began = step, time.monotonic()
        if self.console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.steps, completed=step)

    def record(self, row: Mapping[str, Any]) -> None:
        """Keeps the numbers of a step (`step` and what belongs to it)."""
        if not self.active:
            return
        now = time.monotonic()
        self._file.write(json.dumps(dict(row)) + "\n")
        if now - self._flushed > FLUSH:
            self._file.flush()
            self._flushed = now
        if "loss" not in row:
            return
        if self._bar is not None:
            text = f"loss {row['loss']:.4f}"
            self._bar.update(self._task, completed=row["step"], description=text)
        elif now - self._said > PAUSE or row["step"] == self.steps:
            pace = (now - self._began) / max(row["step"] - self._first, 1)
            left = pace * (self.steps - row["step"])
            self.line(
                f"step {row['step']}/{self.steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
                f"{pace:.3f} s/step  {duration(left)} left"
            )
            self._said = now

    def plot(self) -> None:
        """Redraws progress.png from the metrics so far."""
        if self.active and self._file is not None:
            self._file.flush()
            _plot(read_metrics(self.path), self.path.with_name("progress.png"))

    def __enter__(self) -> "TrainingJournal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()


def duration(seconds: float) -> str:
    """In the largest unit that fits: minutes, hours or days."""
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    losses = [(r["step"], r["loss"]) for r in rows if "loss" in r]
    if not losses:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*_thinned(losses), strict=True), lw=0.8, color="0.6", label="training loss")
    for name, colour in (("validation_loss", "tab:blue"), ("localization_ap", "tab:red")):
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if not points:
            continue
        target = axes.twinx() if name == "localization_ap" else axes
        target.plot(*zip(*points, strict=True), "o-", ms=3, color=colour, label=name)
        if target is not axes:
            target.set_ylabel("voxel AP on synthetic lesions", color=colour)
    if min(value for _, value in losses) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper right")
    partial = path.with_name(".partial-progress.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def _thinned(points: list[tuple[int, float]], most: int = 500) -> list[tuple[int, float]]:
    """Means over windows, so that long runs stay readable."""
    width = max(len(points) // most, 1)
    windows = [points[i : i + width] for i in range(0, len(points), width)]
    return [(w[-1][0], sum(v for _, v in w) / len(w)) for w in windows]
