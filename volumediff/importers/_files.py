"""Checkpoint files as flat mappings of names to tensors; the one place that may meet a pickle.

Safetensors hold numbers and nothing else. Other tools publish pickles, which may run any code when
they are loaded; these are read only where the user asked for it, and by torch's restricted reader,
which builds tensors and plain containers and refuses everything else.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch._weights_only_unpickler import UnpicklingError

from volumediff.errors import DataError, UsageError

__all__ = ["PICKLES", "checkpoint_of", "read"]

PICKLES = (".pt", ".pth", ".pkl", ".ckpt")
SHOWN = 6  # of several checkpoints in a folder


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path means: the file itself, or the only one in a folder.

    Raises:
        UsageError: neither file nor folder, or not one checkpoint in it
    """
    if not path.is_dir():
        return path
    endings = (".safetensors", *PICKLES)
    found = sorted(p for p in path.rglob("*") if p.suffix in endings and p.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{path}: has no checkpoint ({', '.join(endings)}); give one.")
    names = ", ".join(p.relative_to(path).as_posix() for p in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UsageError(f"{path}: has {len(found)} checkpoints ({names}{more}); give one of them.")


def read(
    path: Path, *, weights_only_pickle: bool = False, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; nested mappings have names joined by dots.

    Arguments:
        path: .safetensors, or .pt, .pth, .pkl or .ckpt
        weights_only_pickle: whether a pickle may be read, with torch's restricted reader
        without: outermost names of a pickle that are left out, whatever they hold

    Raises:
        UsageError: no such file, an unknown kind of file, or a pickle that nobody allowed
        DataError: the file is damaged or holds something else than numbers
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a checkpoint.")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise DataError(f"{path}: is no sound safetensors file ({error}).") from None
    if path.suffix not in PICKLES:
        raise UsageError(
            f"{path}: expected .safetensors, or {', '.join(PICKLES)} with weights_only_pickle."
        )
    if not weights_only_pickle:
        raise UsageError(
            f"{path}: is a pickle, which may hold code; convert it to safetensors where you trust "
            "it, or have its tensors alone read with weights_only_pickle."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise DataError(f"{path}: cannot be read as a file of tensors ({reason}).") from None
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if name not in without}
    return dict(_flat(content, "", path))


def _flat(content: Any, prefix: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected named tensors, got {type(content).__name__}.")
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.", path)
        elif isinstance(value, Tensor | int | float):
            yield f"{prefix}{name}", torch.as_tensor(value)
        else:
            raise DataError(
                f"{path}: {prefix}{name} is of type {type(value).__name__}, expected a tensor."
            )
