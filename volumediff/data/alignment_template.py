"""Templates that volumes are aligned to: intensities, a mask of the object, and a grid.

The default is the MNI152 T1 at 1 mm without skull that nilearn carries, so nothing is downloaded.

References:
    Fonov et al. (2009), Unbiased nonlinear average age-appropriate brain templates
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from volumediff.data.foreground import foreground
from volumediff.data.grid import Grid
from volumediff.data.resampling import axis_weights, resample
from volumediff.data.volume import check_grids, read
from volumediff.errors import DataError
from volumediff.storage.digests import sha256

__all__ = ["Template", "coarsened", "mni152", "template_from"]


@dataclass(frozen=True, eq=False)
class Template:
    """What volumes are aligned with.

    Arguments:
        name: for records and messages
        x: intensities
        object: voxels of the brain, or of whatever else the template shows
        grid: axes along R, A, S
        tissue: shares of grey and white matter, by which brains are extracted from heads
    """

    name: str
    x: Float[np.ndarray, "d h w"]
    object: Bool[np.ndarray, "d h w"]
    grid: Grid
    tissue: Float[np.ndarray, "2 d h w"] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of voxels and geometry."""
        geometry = repr((self.grid.shape, self.grid.affine.tolist()))
        return sha256(self.x.astype("<f4").tobytes(), np.packbits(self.object).tobytes(), geometry)

    def at(self, spacing_mm: float) -> "Template":
        """The same on a grid of cubes around the same centre; averaged where it gets coarser."""
        x, grid = coarsened(self.x, self.grid, spacing_mm=(spacing_mm,) * 3)
        share, _ = coarsened(self.object.astype(np.float32), self.grid, spacing_mm=grid.spacing_mm)
        return Template(f"{self.name} at {spacing_mm:g} mm", x, share >= 0.5, grid)


def mni152() -> Template:
    """The MNI152 T1 at 1 mm, 197 x 233 x 189 voxels, skull-stripped."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    x = np.asarray(image.dataobj, dtype=np.float32)
    d, h, w = x.shape
    grid = Grid((d, h, w), np.asarray(image.affine, np.float64))
    loaders = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    tissue = [np.asarray(load(resolution=1).dataobj, dtype=np.float32) for load in loaders]
    return Template("mni152", x, x > 0, grid, np.stack(tissue))


def template_from(path: Path | str, mask: Path | str | None = None) -> Template:
    """A template of the user.

    Arguments:
        path: NIfTI file of one volume
        mask: of the object, on the same grid; None takes the foreground, which is right for a
            template without skull

    Raises:
        DataError: a file is refused, the grids differ, or there is no object
    """
    volume = read(path)
    if len(volume.array) != 1:
        raise DataError(f"{path}: expected a template of one channel, got {len(volume.array)}.")
    x = volume.array[0]
    if mask is None:
        inside = foreground(x, "auto")
    else:
        marked = read(mask, kind="label")
        check_grids(volume, marked)
        inside = marked.array[0] > 0
    if not inside.any():
        raise DataError(f"{mask or path}: shows no object; give a mask of the template.")
    return Template(Path(path).name, x, inside, volume.grid)


def coarsened(
    x: Float[np.ndarray, "d h w"], grid: Grid, *, spacing_mm: tuple[float, float, float]
) -> tuple[Float[np.ndarray, "od oh ow"], Grid]:
    """The volume at another spacing around the same centre, anti-aliased."""
    shape, matrices, move = [], [], np.eye(4)
    for axis, (n, has, wanted) in enumerate(
        zip(grid.shape, grid.spacing_mm, spacing_mm, strict=True)
    ):
        step = wanted / has
        size = max(1, math.ceil(n / step - 1e-6))
        origin = (n - 1) / 2 - (size - 1) / 2 * step
        # the outermost voxels may lie half a step outside: they repeat the border
        weights = axis_weights(n, size, step=step, origin=origin)
        empty = (weights == 0).all(1)
        first, last = empty.clone(), empty.clone()
        first[size // 2 :], last[: size // 2] = False, False
        weights[first, 0], weights[last, -1] = 1.0, 1.0
        shape.append(size)
        matrices.append(weights)
        move[axis, axis], move[axis, 3] = step, origin
    values = resample(torch.from_numpy(x)[None], (matrices[0], matrices[1], matrices[2]), fill=0.0)
    return values[0].numpy(), Grid((shape[0], shape[1], shape[2]), grid.affine @ move)
