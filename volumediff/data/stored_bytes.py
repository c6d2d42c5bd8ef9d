"""Voxels of formats whose header nibabel reads, out of a stream that is checked to its end."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.stream import Source
from volumediff.errors import DataError

__all__ = ["chosen_frames", "voxels"]


def voxels(
    content: Source, shape: tuple[int, ...], dtype: np.dtype, policy: ReadPolicy
) -> Shaped[np.ndarray, "x y z f"]:
    """The next voxels of a stream, frames last.

    Arguments:
        shape: of the volume as its header says it: three sizes, or four with frames
        dtype: of the stored numbers
        policy: the budget

    Raises:
        DataError: no 3D volume of real numbers, more than the budget, or fewer bytes than that
    """
    path = content.path
    if len(shape) not in (3, 4) or min(shape) < 1 or dtype.kind not in "iuf":
        raise DataError(f"{path}: expected a 3D volume of real numbers, got {dtype} {shape}.")
    sizes = (*shape, 1) if len(shape) == 3 else shape
    need = dtype.itemsize * int(np.prod(sizes, dtype=object))
    if max(need, 4 * need // dtype.itemsize) > policy.budget_bytes:
        raise DataError(
            f"{path}: {shape} voxels are more than the budget of "
            f"{policy.budget_bytes / 2**30:.3g} GiB; {remedy('budget_bytes=N')}."
        )
    got = 0
    if need <= content.most_bytes:
        buffer = np.empty(need, np.uint8)
        got = content.into(memoryview(buffer))
    if got < need:
        raise DataError(
            f"{path}: expected {need} bytes of voxels, got {got or 'fewer'}; the file is cut off, "
            "copy or export it again."
        )
    return buffer.view(dtype).reshape(sizes, order="F")


def chosen_frames(
    raw: Shaped[np.ndarray, "x y z f"], policy: ReadPolicy, path: Path
) -> Shaped[np.ndarray, "x y z g"]:
    """The frames that the policy takes.

    Raises:
        DataError: there are several, and nobody has decided
    """
    frames = raw.shape[3]
    if frames > 1 and policy.frames == "refuse":
        raise DataError(
            f"{path}: expected one 3D volume, got {frames} frames; "
            f"{remedy('frames=channels', 'frames=0')}."
        )
    if isinstance(policy.frames, int):
        if policy.frames >= frames:
            raise DataError(f"{path}: has {frames} frames, no frame {policy.frames}.")
        return raw[..., policy.frames : policy.frames + 1]
    return raw
