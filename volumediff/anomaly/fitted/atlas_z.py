"""The healthy atlas: mean and deviation at every voxel, without a network."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.tunable import Tunable, tunable

__all__ = ["AtlasZ"]


@dataclass(frozen=True, kw_only=True)
class AtlasZ(Fitted):
    """Deviation from the healthy atlas, a = mean_c |x - μ| / (s + δ median(s)), at each voxel.

    For volumes aligned to one grid. Fitting keeps two volumes in float64.

    Arguments:
        floor: share δ of the median deviation in the foreground that is added to s
    """

    of_model: ClassVar[bool] = False
    floor: float = tunable(0.1, Tunable.PARAMETER)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Nothing: the floor is added later."""
        return ()

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """Mean and deviation, with n - 1, one volume at a time (Welford, 1962).

        Raises:
            ValueError: fewer than two volumes, or volumes on different grids
        """
        n, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for example in examples:
            x = example.x.double().cpu()
            if n and x.shape != mean.shape:
                raise ValueError(
                    f"atlas: expected volumes of shape {tuple(mean.shape[1:])}, got "
                    f"{tuple(x.shape[1:])}; align the volumes to one grid."
                )
            n += 1
            delta = x - mean
            mean = mean + delta / n
            squares = squares + delta * (x - mean)
        if n < 2:
            raise ValueError(f"atlas: expected at least two healthy volumes, got {n}.")
        return Fit({"mean": mean.float(), "std": (squares / (n - 1)).sqrt().float()}, n)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The absolute z-score; the pseudo-healthy volume is the atlas mean."""
        tensors = self.learnt.to(example.x)
        mean, std = tensors["mean"].to(example.x), tensors["std"].to(example.x)
        if mean.shape != example.x.shape:
            raise ValueError(
                f"fitted atlas_z: expected a volume on the atlas grid {tuple(mean.shape[1:])}, "
                f"got {tuple(example.x.shape[1:])}; align the volume first."
            )
        inside = example.foreground.expand_as(std)
        middle = inside_quantile(std, 0.5, foreground=inside)
        unit = std + (self.floor * middle if middle > 0 else 1.0)
        a = ((example.x - mean).abs() / unit).mean(dim=1, keepdim=True)
        return RawLocalization(a * example.foreground, mean)
