r"""Geometry of an alignment: the original grid, the template's, and the affine map T between.

.. math:: x_\text{template} = T\, x_\text{native}, \qquad
          V_\text{template} = \det(T)\, V_\text{native}

in RAS millimetres. T changes where the voxels of the image lie, not the voxels: an image with
affine A is resampled from :math:`T A` once, whatever was registered before, and maps go back by
the same resampling from the template's grid to :math:`T A`. Labels take the closest voxel both
ways: on average they keep their volume.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from volumediff.data.grid import Grid, canonical_grid
from volumediff.data.resampling import nearest_onto, onto

__all__ = ["Alignment", "Decomposition", "decomposed"]


@dataclass(frozen=True)
class Decomposition:
    """An affine map as rotation, shear and scale, A = R K diag(s).

    Arguments:
        scales: along the native R, A, S axes
        shears: K's entries above its diagonal of ones: xy, xz, yz
        rotation_degrees: angle of R, in [0, 180]
        mirrored: whether left and right are exchanged
    """

    scales: tuple[float, float, float]
    shears: tuple[float, float, float]
    rotation_degrees: float
    mirrored: bool


def decomposed(matrix: Float[np.ndarray, "4 4"]) -> Decomposition:
    """Rotation, shears and scales by the Cholesky factor of AᵀA."""
    a = matrix[:3, :3]
    upper = np.linalg.cholesky(a.T @ a).T  # K diag(s)
    scales = np.diag(upper)
    k = upper / scales
    rotation = a @ np.linalg.inv(upper)
    mirrored = bool(np.linalg.det(a) < 0)
    cosine = (np.trace(-rotation if mirrored else rotation) - 1) / 2
    return Decomposition(
        (float(scales[0]), float(scales[1]), float(scales[2])),
        (float(k[0, 1]), float(k[0, 2]), float(k[1, 2])),
        float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        mirrored,
    )


@dataclass(frozen=True, eq=False)
class Alignment:
    """The way of one image to the template and back.

    Arguments:
        native: the file's grid; `write(path, array, like=alignment.native)`
        template: the grid that it was brought to
        matrix: T, native to template millimetres (RAS)
    """

    native: Grid
    template: Grid
    matrix: Float[np.ndarray, "4 4"]

    @property
    def volume_scale(self) -> float:
        """det T: millilitres in the template per native millilitre."""
        return float(np.linalg.det(self.matrix[:3, :3]))

    @property
    def moved(self) -> Grid:
        """The image's canonical voxels, in the millimetres of the template."""
        grid = canonical_grid(self.native)
        return Grid(grid.shape, self.matrix @ grid.affine)

    def apply(
        self, x: Float[np.ndarray, "c d h w"], *, fill: float
    ) -> Float[np.ndarray, "c od oh ow"]:
        """Intensities on the template's grid, interpolated linearly; `fill` outside the image."""
        return onto(torch.from_numpy(x), self.moved, self.template, fill=fill)[0].numpy()

    def apply_labels(self, y: UInt8[np.ndarray, "1 d h w"]) -> UInt8[np.ndarray, "1 od oh ow"]:
        """Labels on the template's grid, each voxel that of the closest one."""
        return nearest_onto(torch.from_numpy(y), self.moved, self.template).numpy()

    def back(
        self, x: Float[np.ndarray, "c d h w"], *, fill: float
    ) -> Float[np.ndarray, "c od oh ow"]:
        """A map of the template's grid on the image's canonical voxels."""
        return onto(torch.from_numpy(x), self.template, self.moved, fill=fill)[0].numpy()

    def back_labels(self, y: UInt8[np.ndarray, "1 d h w"]) -> UInt8[np.ndarray, "1 od oh ow"]:
        """Labels or a mask of the template's grid on the image's canonical voxels."""
        return nearest_onto(torch.from_numpy(y), self.template, self.moved).numpy()

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""

        def plain(grid: Grid) -> dict[str, Any]:
            header = grid.header.hex() if grid.header else None
            return {"shape": grid.shape, "affine": grid.affine.tolist(), "header": header}

        return {
            "native_to_template": self.matrix.tolist(),
            "volume_scale": self.volume_scale,
            "native": plain(self.native),
            "template": plain(self.template),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Alignment":
        """The alignment that `to_json` described."""

        def grid(v: dict[str, Any]) -> Grid:
            d, h, w = v["shape"]
            header = bytes.fromhex(v["header"]) if v["header"] else None
            return Grid((d, h, w), np.array(v["affine"], np.float64), header)

        matrix = np.array(values["native_to_template"], np.float64)
        return cls(grid(values["native"]), grid(values["template"]), matrix)
