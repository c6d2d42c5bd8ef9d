"""The way back from a prepared volume to the grid and the intensities of its file, as JSON."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from volumediff.data.grid import Grid
from volumediff.data.remarks import Remark

__all__ = ["PreprocessingRecord"]


@dataclass(frozen=True, eq=False)
class PreprocessingRecord:
    """What is needed to bring an array back to the grid and the intensities of its file.

    Arguments:
        native: the file's grid; `write(path, array, like=record.native)`
        canonical: the same grid with axes along R, A, S
        shape: of the prepared volume
        step, origin: voxel i of the prepared volume lies at i * step + origin in canonical voxels
        limits: per channel the intensities that became -1 and 1, or all that the rule has
            values for
        findings: what was treated on the way, with the file's name
    """

    native: Grid
    canonical: Grid
    shape: tuple[int, int, int]
    step: tuple[float, float, float]
    origin: tuple[float, float, float]
    limits: tuple[tuple[float, ...], ...]
    findings: tuple[Remark, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid of the prepared volume."""
        move = np.diag([*self.step, 1.0])
        move[:3, 3] = self.origin
        return Grid(self.shape, self.canonical.affine @ move)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""

        def plain(grid: Grid) -> dict[str, Any]:
            header = grid.header.hex() if grid.header else None
            return {"shape": grid.shape, "affine": grid.affine.tolist(), "header": header}

        return {
            "native": plain(self.native),
            "canonical": plain(self.canonical),
            "shape": self.shape,
            "step": self.step,
            "origin": self.origin,
            "limits": self.limits,
            "findings": [vars(f) for f in self.findings],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PreprocessingRecord":
        """The record that `to_json` described."""

        def grid(v: dict[str, Any]) -> Grid:
            header = bytes.fromhex(v["header"]) if v["header"] else None
            return Grid(tuple(v["shape"]), np.array(v["affine"], np.float64), header)

        return cls(
            grid(values["native"]),
            grid(values["canonical"]),
            tuple(values["shape"]),
            tuple(values["step"]),
            tuple(values["origin"]),
            tuple(tuple(limits) for limits in values["limits"]),
            tuple(Remark(**f) for f in values["findings"]),
        )
