"""The channels of a case on the grid of the first: others are resampled to it."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data.grid import agree
from volumediff.data.remarks import Remark
from volumediff.data.resampling import onto
from volumediff.data.volume import Volume
from volumediff.errors import DataError

__all__ = ["called", "on_first_grid", "remarks_of"]


def on_first_grid(
    images: Sequence[Volume], findings: list[Remark]
) -> tuple[Float[Tensor, "c d h w"], list[Bool[np.ndarray, "d h w"]]]:
    """All channels on the first image's grid, and where each has voxels of its own."""
    first, channels, covered = images[0], [], []
    for image in images:
        findings += remarks_of(image)
        x = torch.from_numpy(image.array)
        where = np.ones(first.grid.shape, bool)
        difference = agree(first.grid, image.grid)
        if difference:
            x, seen = onto(x, image.grid, first.grid, fill=float(image.array.min()))
            where = seen[0].numpy()
            if not where.any():
                raise DataError(
                    f"{image.path}: does not overlap with {first.path}; check that both belong "
                    "to one case."
                )
            text = f"{called(image)}: resampled to the grid of {called(first)} ({difference}); it "
            text += f"covers {where.mean():.0%}"
            findings.append(Remark("warning", "resampled", text))
        elif image.native.axes != first.native.axes:
            text = f"{called(image)}: axes {image.native.axes} in the file, aligned with "
            text += f"{first.native.axes} of {called(first)}"
            findings.append(Remark("warning", "orientation_differs", text))
        channels.append(x)
        covered += [where] * len(x)
    return torch.cat(channels).clone(), covered


def remarks_of(volume: Volume) -> list[Remark]:
    """The remarks on a volume, with its name."""
    return [Remark(f.severity, f.code, f"{called(volume)}: {f.message}") for f in volume.findings]


def called(volume: Volume) -> str:
    """What messages call a volume."""
    return volume.path.name if volume.path else "a volume"
