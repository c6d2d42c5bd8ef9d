"""Checkpoints: safetensors and JSON under a SHA-256 manifest, atomic, verified, two kept.

    RUN/checkpoints/last-<step>/  weights, ema, optimizer (.safetensors), state.json, manifest.json
                                  and training.safetensors of tasks that go on with more
    RUN/checkpoints/best-<step>/  weights, ema (.safetensors), state.json, manifest.json

A step that is saved again (after a resume from before it, or after its validation at the end)
becomes <kind>-<step>-<n>: the older one goes when the newer one is there.

`weights` and `ema` are complete: parameters and buffers, the latter equal in both. Randomness is
keyed by the step, so that nothing else is needed to go on bit-exactly. Nothing is ever unpickled.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from volumediff.errors import DataError
from volumediff.storage.folder import (
    MANIFEST,
    Content,
    Damaged,
    discard,
    publish,
    read_manifest,
    verify,
)
from volumediff.storage.records import Record, parse_file
from volumediff.storage.tensors import load_plain, stream

__all__ = [
    "FORMAT",
    "Bindings",
    "Checkpoint",
    "exists",
    "find",
    "optimizer_tensors",
    "restore_optimizer",
    "save",
]

FORMAT = 2
WEIGHTS = {"weights.safetensors", "ema.safetensors"}


class StoredBest(Record):
    """Metrics of the best checkpoint so far; a validation may come to nothing that is finite."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)
    __pydantic_extra__: dict[str, int | float | None]

    step: int
    score: float | None


class Bindings(Record):
    """What a run depends on beside its tensors.

    Arguments:
        files: of the run -> SHA-256
        settings: key of its configuration -> value, as JSON
    """

    files: dict[str, str]
    settings: dict[str, str]


class StoredScaling(Record):
    """How losses are scaled: by how much, and how many steps in a row that was not too much."""

    scale: float
    growth_tracker: int


class CheckpointState(Record):
    """state.json: what a run needs to go on, beside its tensors.

    Arguments:
        format: of the checkpoint
        step: updates done
        validated: step of the last validation that was finished; 0 before the first
        bound: files and settings of the run that its training depends on
        best: of the selection; None before the first
        borrowed: SHA-256 of the frozen weights that the run was trained with, if any
        least, waited: least loss and steps since then, of runs with patience
        scaling: of the loss, for training in float16
        skipped: steps whose gradients exceeded float16, so that the weights stayed
    """

    format: Literal[2]
    step: int
    validated: int
    bound: Bindings
    best: StoredBest | None
    borrowed: str
    least: float | None = None
    waited: int = 0
    scaling: StoredScaling | None = None
    skipped: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the disk.

    Arguments:
        path: its folder
        step: updates done when it was written
        state: content of state.json
    """

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def bound(self) -> Bindings:
        """Files and settings of the run that it was trained with."""
        return Bindings(**self.state["bound"])

    def tensors(
        self, name: str, *, keep: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
    ) -> dict[str, Tensor]:
        """The tensors of `weights`, `ema`, `optimizer` or `training`, on the CPU.

        Arguments:
            keep: (name, tensor) -> what is kept of it; one tensor is read after the other

        Raises:
            DataError: the file is no safetensors
        """
        advice = "remove the checkpoint to go on from the one before"
        return load_plain(self.path / f"{name}.safetensors", advice=advice, keep=keep)[0]

    def has(self, name: str) -> bool:
        """Whether it holds the tensors of a name."""
        return f"{name}.safetensors" in read_manifest(self.path).files

    @property
    def digest(self) -> str:
        """SHA-256 of the averaged weights."""
        return read_manifest(self.path).files["ema.safetensors"].sha256


def save(
    run: Path,
    kind: str,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint and removes those beyond the newest `keep` of its kind.

    Arguments:
        run: the run's folder
        kind: `last` or `best`
        step: updates done so far
        tensors: file stem -> tensors by name
        state: what else the loop needs, as JSON

    Raises:
        DataError: the disk is full or not writable; earlier checkpoints stay
    """
    folder = run / "checkpoints"
    if folder.is_symlink():
        raise DataError(
            f"{folder}: is a symbolic link, which is not followed here; put the whole run there "
            "with output=DIR."
        )
    target, again = folder / f"{kind}-{step:08d}", 0
    while target.exists():
        again += 1
        target = folder / f"{kind}-{step:08d}-{again}"
    content = {"format": FORMAT, "step": step, **state, "best": state["best"] or None}
    body = json.dumps(content, indent=1).encode()
    files: dict[str, Content] = {"state.json": body}
    for name, group in tensors.items():
        files[f"{name}.safetensors"] = partial(_write, group)
    publish(target, files)
    for place, path in _candidates(run, kind):
        if place[0] == step and path != target:
            discard(path)
    for _, path in _candidates(run, kind)[keep:]:
        discard(path)
    return target


def find(
    run: Path, kind: str, *, report: Callable[[str], None] = lambda line: None
) -> Checkpoint | None:
    """The newest checkpoint that reads back as it was written, or None if there is none at all.

    Arguments:
        report: receives one line for every damaged checkpoint that is passed over

    Raises:
        DataError: there are checkpoints, and all of them are damaged
    """
    candidates, reasons = _candidates(run, kind), []
    for (step, _), path in candidates:
        try:
            verify(path)
            if missing := WEIGHTS - set(read_manifest(path).files):
                raise Damaged(f"{MANIFEST} has no {', '.join(sorted(missing))}")
            state = parse_file(path / "state.json", CheckpointState, advice="not used")
            if state.step != step:
                raise Damaged(f"state.json is of step {state.step}")
            return Checkpoint(path, step, {**state.model_dump(), "best": _plain(state.best)})
        except (Damaged, DataError, OSError) as error:
            reasons.append(f"{path.name}: {str(error).rstrip('.')}")
            report(f"{path}: damaged, not used: {error}.")
    if candidates:
        raise DataError(
            f"{run}: all {len(candidates)} checkpoints '{kind}' are damaged ({reasons[0]}); "
            "restore one from a backup or remove the run's folder to start again."
        )
    return None


def exists(run: Path, kind: str) -> bool:
    """Whether there is a checkpoint of a kind, good or damaged; reads none."""
    return bool(_candidates(run, kind))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `<parameter>/<moment>`."""
    found = {}
    for parameter, values in optimizer.state.items():
        for moment, value in values.items():
            found[f"{names[parameter]}/{moment}"] = torch.as_tensor(value)
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Puts tensors of `optimizer_tensors` back; hyperparameters come from the configuration."""
    for parameter, name in names.items():
        prefix = f"{name}/"
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        # As in a fresh state: fused kernels count on the device of the weights, others on the CPU;
        # moments take device and layout of their weights, which say the order of operations.
        counts = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
        optimizer.state[parameter] = {
            k: v.to(counts, copy=True) if v.ndim == 0 else torch.empty_like(parameter).copy_(v)
            for k, v in state.items()
        }


def _plain(best: StoredBest | None) -> dict[str, Any]:
    return {} if best is None else best.model_dump()


def _write(tensors: Mapping[str, Tensor], file: Any) -> None:
    stream(file, tensors)


def _candidates(run: Path, kind: str) -> list[tuple[tuple[int, int], Path]]:
    """Checkpoints of a kind by step and number of the save, newest first."""
    found = []
    for path in (run / "checkpoints").glob(f"{kind}-*"):
        match = re.fullmatch(rf"{kind}-(\d+)(?:-(\d+))?", path.name)
        if match:
            found.append(((int(match[1]), int(match[2] or 0)), path))
    return sorted(found, reverse=True)
