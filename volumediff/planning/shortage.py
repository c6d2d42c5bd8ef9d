"""When memory runs out: one line with the memory policy that the planner suggests."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from volumediff.errors import DataError, UsageError
from volumediff.settings.run_config import RunConfig
from volumediff.shapes import Shape
from volumediff.system.resources import available_memory

__all__ = ["advice", "explained", "is_shortage"]

# What torch says where it has no class of its own for it.
SIGNS = ("defaultcpuallocator: can't allocate", "not enough memory", "out of memory")


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)


@contextmanager
def explained(
    config: RunConfig, *, mode: str, device: torch.device | str, shape: Shape | None = None
) -> Iterator[None]:
    """Turns a lack of memory inside the block into one line with advice.

    Arguments:
        config: what runs inside
        mode: train or infer
        device: where it runs
        shape: voxels of the volume, if they are not those of the configuration

    Raises:
        DataError: memory ran out
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise DataError(advice(config, mode=mode, device=device, shape=shape)) from None


def advice(
    config: RunConfig, *, mode: str, device: torch.device | str, shape: Shape | None = None
) -> str:
    """What ran out of memory, and what to do: found by the planner, once for each size."""
    place = torch.device(device)
    return _advice(config.to_yaml(), mode, place, _total_gb(place), shape)


@lru_cache(maxsize=16)
def _advice(
    text: str, mode: str, device: torch.device, total_gb: float, shape: Shape | None
) -> str:
    # Loaded when it is needed: fake tensors are not light.
    from volumediff.config.yaml_text import parse_yaml
    from volumediff.planning.planner import at_shape, plan, volume_shape, words
    from volumediff.settings.run_config import parse

    config = at_shape(parse(parse_yaml(text)), shape)
    begin = f"out of memory on {device} ({total_gb:.1f} GB)"
    try:
        found = plan(config, mode="train" if mode == "train" else "infer", vram_gb=total_gb)
        size = "×".join(map(str, volume_shape(config)))
    except UsageError:
        return f"{begin}; use smaller volumes or crops, or memory.checkpoint=true."
    card, changed = found.chosen.card_gb, words(found.chosen.policy)
    if mode != "train":
        changed = f"the memory policy {changed.replace('memory.', '')}"
    begin += f" with volumes of {size}"
    if not found.fits:
        return f"{begin}; no memory policy fits; what would fit: {'; or '.join(found.remedies)}."
    if repr(found.chosen.policy) == repr(config.memory):
        return (
            f"{begin}; these settings need {card:.1f} GB by the plan, so something else takes "
            "memory there, or its limit is lower."
        )
    return f"{begin}; use {changed}, which needs {card:.1f} GB."


def _total_gb(device: torch.device) -> float:
    """Memory of the device; of the CPU, what this process may have."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return available_memory() / 1e9
