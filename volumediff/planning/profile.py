"""A few real steps on random data: memory and seconds per stage, beside the prediction.

The first step is traced, the others are timed without the tracer, whose bookkeeping takes time. On
CUDA the allocator's own numbers stand beside the traced ones, and a lack of memory leaves a
snapshot of the allocator behind (for https://pytorch.org/memory_viz).
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volumediff.errors import UsageError
from volumediff.memory.heap import retain_heap
from volumediff.planning.planner import GB, Mode, Traced, trace
from volumediff.planning.shortage import explained, is_shortage
from volumediff.planning.step import inference_step, training_step, volume_shape
from volumediff.planning.tracer import OUTSIDE, Tracer
from volumediff.settings.run_config import RunConfig
from volumediff.system.resources import peak_memory
from volumediff.tasks import build_task, resolved

__all__ = ["Profile", "profile"]


@dataclass(frozen=True)
class Profile:
    """What a few steps took.

    Arguments:
        mode: train or infer
        device: where they ran
        planned: what the planner says about the same step
        measured: what the tracer saw
        seconds: of each stage, median over the steps
        step_seconds: of a whole step, median
        steps: that were timed
        rss_gb: resident size of the process at its largest, and before the step
        allocated_gb, reserved_gb: largest numbers of CUDA's allocator, None on the CPU
    """

    mode: Mode
    device: str
    planned: Traced
    measured: Traced
    seconds: Mapping[str, float]
    step_seconds: float
    steps: int
    rss_gb: tuple[float, float]
    allocated_gb: float | None
    reserved_gb: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; GB are 1e9 bytes."""
        return {
            "mode": self.mode,
            "device": self.device,
            "policy": vars(self.measured.policy),
            "peak_gb": self.measured.peak_gb,
            "planned_peak_gb": self.planned.peak_gb,
            "planned_card_gb": self.planned.card_gb,
            "host_gb": self.measured.host_gb,
            "stages": {
                name: {
                    "peak_gb": peak.device / GB,
                    "planned_peak_gb": self.planned.stages[name].device / GB,
                    "seconds": self.seconds[name],
                }
                for name, peak in self.measured.stages.items()
            },
            "step_seconds": self.step_seconds,
            "steps": self.steps,
            "rss_gb": self.rss_gb[0],
            "rss_before_gb": self.rss_gb[1],
            "allocated_gb": self.allocated_gb,
            "reserved_gb": self.reserved_gb,
        }


class _Stopwatch:
    """Seconds by stage, each without the stages inside it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device, self._open, self._since = device, [OUTSIDE], time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charges what happens inside to the stage."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, name = time.perf_counter(), self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def profile(config: RunConfig, *, mode: Mode = "train", steps: int = 3, snapshot: Path) -> Profile:
    """Runs one traced step and some that are timed.

    Arguments:
        config: the run; neither its data nor its folder is touched
        mode: a training step, or one pass of inference
        steps: that are timed; 0 times the traced step itself
        snapshot: where CUDA's allocator describes itself if memory runs out

    Raises:
        UsageError: the configuration has no shape, its parts do not fit, or it is for processes
            that share volumes
        DataError: memory ran out
    """
    config = resolved(config)
    if config.processes.domain > 1:
        raise UsageError(
            f"processes.domain: expected 1, since one process is measured, got "
            f"{config.processes.domain}; plan predicts each of several."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    planned = trace(config, mode=mode)
    if device.type == "cpu":
        retain_heap()  # as training does
    before = _resident_gb()
    shape = volume_shape(config)
    with (
        explained(config, mode=mode, device=device, shape=shape),
        config.memory.arithmetic(),
        _recorded(device, snapshot),
    ):
        task = build_task(config)
        task.module.to(device)
        if mode == "train":
            task.begin_training(None, fresh=True)
            task.training_only.to(device)
            step = training_step(config, task, device=device)
        else:
            step = inference_step(config, task, device=device)
        watches = [_Stopwatch(device)]
        with Tracer(device) as tracer:
            step.traced(tracer, watches[0].stage)
        watches = [watches[0].seconds] if steps == 0 else []
        for _ in range(steps):
            watch = _Stopwatch(device)
            step.run(watch.stage)
            watches.append(watch.seconds)
    stages = {name: peak for name, peak in tracer.stages.items() if name != OUTSIDE}
    cuda = device.type == "cuda"
    return Profile(
        mode=mode,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        planned=planned,
        measured=Traced(config.memory, stages),
        seconds={name: statistics.median(w[name] for w in watches) for name in stages},
        step_seconds=statistics.median(sum(w.values()) for w in watches),
        steps=steps,
        rss_gb=(_resident_gb(), before),
        allocated_gb=torch.cuda.max_memory_allocated(device) / GB if cuda else None,
        reserved_gb=torch.cuda.max_memory_reserved(device) / GB if cuda else None,
    )


def _resident_gb() -> float:
    """Largest resident size of the process so far."""
    return peak_memory() / GB


@contextmanager
def _recorded(device: torch.device, snapshot: Path) -> Iterator[None]:
    """Writes the history of CUDA's allocator if memory runs out inside the block."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_shortage(error):
            torch.cuda.memory._dump_snapshot(str(snapshot))
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
