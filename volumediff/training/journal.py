"""Progress of a run: one line per step in metrics.jsonl, progress.png, and the terminal.

The numbers of a step follow from the configuration, all but its duration (`seconds`, from waiting
for the samples to the average of the weights).

A resumed run forgets the lines beyond its checkpoint, so that every step stands in the file once.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from volumediff.optimization.metrics_file import read_metrics
from volumediff.storage.atomic import write_text
from volumediff.terminal.messages import say
from volumediff.terminal.progress import Progress

__all__ = ["TrainingJournal"]

FLUSH = 2.0  # seconds between two writes of the buffered metrics


class TrainingJournal:
    """Metrics file and terminal of the main process; silent in the others.

    Arguments:
        run: the run's folder
        active: whether this is the main process
        steps: where the run ends
    """

    def __init__(self, run: Path, *, active: bool, steps: int) -> None:
        self.path = run / "metrics.jsonl"
        self.active = active
        self.steps = steps
        self._progress: Progress | None = None
        self._file: Any = None
        self._flushed = 0.0

    def line(self, text: str) -> None:
        """One line for the user."""
        if self.active:
            say(text)

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
        self._progress = Progress(self.steps, "steps", done=step)
        self._progress.__enter__()

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
        if self._progress is not None:
            self._progress.update(row["step"], f"loss {row['loss']:.4f}, lr {row['lr']:.2e}")

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
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)
        if self._file is not None:
            self._file.close()


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
