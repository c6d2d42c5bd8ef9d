"""Checkpoints: safetensors and JSON under a SHA-256 manifest, atomic, verified, two kept.

    RUN/checkpoints/last-<step>/  weights, ema, optimizer (.safetensors), state.json, manifest.json
    RUN/checkpoints/best-<step>/  weights, ema (.safetensors), state.json, manifest.json

`weights` and `ema` are complete: parameters and buffers, the latter equal in both. Randomness is
keyed by the step, so that nothing else is needed to go on bit-exactly. Nothing is ever unpickled.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.storage.folder import Damaged, discard, publish, verify

__all__ = ["Checkpoint", "find", "optimizer_tensors", "restore_optimizer", "save"]

FORMAT = 1


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

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `weights`, `ema` or `optimizer`, on the CPU."""
        return safetensors.torch.load_file(self.path / f"{name}.safetensors")

    @property
    def digest(self) -> str:
        """SHA-256 of the averaged weights."""
        manifest = json.loads((self.path / "manifest.json").read_bytes())
        return manifest["files"]["ema.safetensors"]["sha256"]


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
    target = folder / f"{kind}-{step:08d}"
    body = json.dumps({"format": FORMAT, "step": step, **state}, indent=1).encode()
    files: dict[str, Callable[[Any], Any]] = {"state.json": lambda file: file.write(body)}
    for name, group in tensors.items():
        files[f"{name}.safetensors"] = _writer(group)
    if target.exists():
        discard(target)
    publish(target, files)
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
    candidates = _candidates(run, kind)
    for step, path in candidates:
        try:
            verify(path)
            state = json.loads((path / "state.json").read_bytes())
            if state["format"] != FORMAT or state["step"] != step:
                raise Damaged(f"state.json is of step {state['step']}, format {state['format']}")
            return Checkpoint(path, step, state)
        except (Damaged, OSError, ValueError, KeyError) as error:
            report(f"{path}: damaged, not used: {error}.")
    if candidates:
        raise DataError(
            f"{run}: all {len(candidates)} checkpoints '{kind}' are damaged; restore one from a "
            "backup or remove the run's folder to start again."
        )
    return None


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
        # Counters stay on the CPU; moments take device and layout of their weights, as fresh ones
        # do: the order of operations depends on the layout.
        optimizer.state[parameter] = {
            k: v.clone() if v.ndim == 0 else torch.empty_like(parameter).copy_(v)
            for k, v in state.items()
        }


def _writer(tensors: Mapping[str, Tensor]) -> Callable[[Any], Any]:
    def write(file: Any) -> None:
        # Copied one group at a time: the peak is one file, not the whole checkpoint.
        group = {n: t.detach().to("cpu").contiguous() for n, t in tensors.items()}
        file.write(safetensors.torch.save(group))

    return write


def _candidates(run: Path, kind: str) -> list[tuple[int, Path]]:
    """Checkpoints of a kind, newest first."""
    found = []
    for path in (run / "checkpoints").glob(f"{kind}-*"):
        match = re.fullmatch(rf"{kind}-(\d+)", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)
