"""Estimates of host memory, disk and time of a run."""

import statistics
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from volumediff.data.splits import Split
from volumediff.optimization.metrics_file import read_metrics
from volumediff.planning.step import crop_shape, volume_shape
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import POPULATION
from volumediff.tasks import build_task

__all__ = ["Estimates", "estimates"]

GB = 1e9
# Resident size of a process after importing the training loop: 0.25 GB, and its own heap.
PROCESS_GB = 0.4
# torch.utils.data.DataLoader keeps so many batches per worker ready.
PREFETCH = 2
# Steps that must have been measured before a run's speed is believed, and how many are used.
FEWEST, LATEST = 20, 200


@dataclass(frozen=True)
class Estimates:
    """Host memory, disk and time of a run.

    Arguments:
        main_gb: main process, with what a checkpoint holds while it is written
        worker_gb: one loader worker
        workers: number of them
        offload_gb: what the policy keeps in host memory
        cache_gb: one prepared volume on the disk
        cases: number of them, if it is known
        checkpoints_gb: those that are kept, and the one being written
        seconds: of a step, if enough of them were measured in the run's folder
        steps: that are left
    """

    main_gb: float
    worker_gb: float
    workers: int
    offload_gb: float
    cache_gb: float
    cases: int | None
    checkpoints_gb: float
    seconds: float | None
    steps: int

    @property
    def host_gb(self) -> float:
        """All host memory."""
        return self.main_gb + self.offload_gb + self.workers * self.worker_gb

    @property
    def hours(self) -> float | None:
        """Until the last step."""
        return None if self.seconds is None else self.seconds * self.steps / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "host_gb": self.host_gb, "hours": self.hours}


def estimates(config: RunConfig, *, training: bool, offload_gb: float) -> Estimates:
    """Host memory, disk and time of a configuration.

    Arguments:
        config: the run; its folder tells the speed, where there is one
        training: inference has no loader workers and writes no checkpoints
        offload_gb: what its policy keeps in host memory
    """
    with torch.device("meta"):
        task = build_task(config)
    state = sum(t.numel() * t.element_size() for t in task.state().values())
    frozen = sum(t.numel() * t.element_size() for t in task.module.state_dict().values()) - state
    c, voxels = config.data.channel_count, prod(volume_shape(config))
    volume = 4 * c * voxels
    micro = config.optim.batch_size // config.optim.accumulate
    sample = micro * 4 * c * prod(crop_shape(config))
    copies = 2 if config.data.augmentation is None else 3  # read, padded or cut, changed
    worker = copies * (volume + voxels) + PREFETCH * sample
    rows = read_metrics(config.output / "metrics.jsonl") if training else []
    timed = [row for row in rows if "seconds" in row]
    enough = len(timed) >= FEWEST
    done = timed[-1]["step"] if timed else 0
    return Estimates(
        # weights, their average and two moments; the last two exist in training alone
        main_gb=PROCESS_GB + ((4 * state if training else state) + frozen + volume) / GB,
        worker_gb=PROCESS_GB + worker / GB,
        workers=config.data.workers if training else 0,
        offload_gb=offload_gb,
        cache_gb=(volume + 2 * voxels) / GB,  # foreground and labels, a byte each
        cases=_cases(config),
        # two of the last step with moments, the best one without, and one in the making
        checkpoints_gb=((4 + 4 + 2 + 4) * state + frozen) / GB if training else 0.0,
        seconds=statistics.median(r["seconds"] for r in timed[-LATEST:]) if enough else None,
        steps=max(config.optim.steps - done, 0),
    )


def _cases(config: RunConfig) -> int | None:
    if config.data.root == POPULATION:
        return config.data.population.subjects
    path: Path = config.output / "splits.json"
    if not path.is_file():
        return None
    split = Split.load(path)
    return len(split.train) + len(split.validation)
