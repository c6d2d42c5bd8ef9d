r"""PaDiM: a Gaussian of features at every position,

.. math:: a_p = \sqrt{(f_p - μ_p)^T (Σ_p + ε I)^{-1} (f_p - μ_p)}.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.fitted._source import FeatureSource
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Requirement
from volumediff.randomness import generator

__all__ = ["PaDiM"]


@dataclass(frozen=True, kw_only=True)
class PaDiM(Fitted):
    """Mahalanobis distance to the healthy features at the same place, for aligned volumes.

    Means and covariances are gathered volume by volume (Welford, 1962). With P positions and k
    features, fitting takes 8 P k² bytes and the fit 4 P k²: 16 MB for 64³ voxels, stride 4 and
    k = 32, and 1 GB for 256³ voxels, where stride 8 needs 130 MB.

    Arguments:
        features: of the model
        dimensions: number k of features, drawn at random once; all where there are fewer
        ridge: ε, for fewer volumes than features

    References:
        Defard et al. (2020), PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection
        and Localization, arXiv:2011.08785
    """

    features: FeatureSource = field(default_factory=FeatureSource)
    dimensions: int = 32
    ridge: float = 0.01

    def __post_init__(self) -> None:
        if self.dimensions < 1 or not self.ridge > 0:
            raise ValueError(
                f"expected dimensions >= 1 and ridge > 0, got {self.dimensions} and {self.ridge}."
            )

    @property
    def recipe(self) -> tuple[Any, ...]:
        """All arguments."""
        return self.features, self.dimensions, self.ridge

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Such features."""
        return (self.features.needed("fitted padim"),)

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """Means and Cholesky factors of the covariances, with n - 1.

        Raises:
            ValueError: fewer than two volumes, or volumes on different grids
        """
        assert model is not None, "checked"
        n = 0
        channels = mean = scatter = torch.empty(0)
        for example in examples:
            f = self.features(model, example).cpu()
            if n == 0:
                order = torch.randperm(len(f), generator=generator(key, "padim", len(f)))
                channels = order[: self.dimensions].sort().values
                k, grid = len(channels), tuple(f.shape[1:])
                mean = torch.zeros((grid[0] * grid[1] * grid[2], k), dtype=torch.float64)
                scatter = torch.zeros((*mean.shape, k), dtype=torch.float64)
            elif tuple(f.shape[1:]) != grid:
                raise ValueError(
                    f"padim: expected features on the grid {grid}, got {tuple(f.shape[1:])}; "
                    "align the volumes to one grid, or use patchcore."
                )
            n += 1
            row = _rows(f[channels]).double()
            delta = row - mean
            mean += delta / n
            scatter.baddbmm_(delta[:, :, None], (row - mean)[:, None, :])
        if n < 2:
            raise ValueError(f"padim: expected at least two volumes, got {n}.")
        scatter /= n - 1
        torch.diagonal(scatter, dim1=1, dim2=2).add_(self.ridge)
        factor = torch.linalg.cholesky(scatter).float()
        found = {"channels": channels, "mean": mean.float(), "factor": factor}
        return Fit({**found, "grid": torch.tensor(grid)}, n)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The distance at every position, interpolated to the voxels.

        Raises:
            ValueError: a volume on another grid
        """
        assert model is not None, "checked"
        learnt = self.learnt.to(example.x)
        grid = self.features.grid(example.x)
        if list(grid) != learnt["grid"].tolist():
            raise ValueError(
                f"fitted padim: expected a volume with features on the grid "
                f"{tuple(learnt['grid'].tolist())}, got {grid}; align the volume first."
            )
        f = _rows(self.features(model, example)[learnt["channels"]])
        delta = (f - learnt["mean"])[:, :, None]
        white = torch.linalg.solve_triangular(learnt["factor"], delta, upper=False)
        return RawLocalization(
            self.features.voxels(white.norm(dim=(1, 2)).view(grid), example), None
        )


def _rows(f: Tensor) -> Tensor:
    """(f, d, h, w) -> (d h w, f)."""
    return f.flatten(1).T
