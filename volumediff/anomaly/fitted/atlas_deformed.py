"""The healthy atlas, bent onto each volume before it is compared with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.data.diffeomorphic import (
    Bending,
    bent,
    displacement_of,
    log_jacobian,
    matched,
    velocity_mm,
)
from volumediff.tunable import Tunable, tunable

__all__ = ["AtlasDeformed"]

ROUNDS = 2  # of the fit: to the mean as it is, then to the sharper one


@dataclass(frozen=True, kw_only=True)
class AtlasDeformed(Fitted):
    r"""Deviation from the healthy atlas after a smooth, invertible deformation φ of it,

    .. math:: a = \frac{|x - T(μ∘φ)|}{s∘φ + δ\,\mathrm{median}(s∘φ)}, \qquad φ = \exp(v),

    averaged over channels: wide ventricles and sulci that lie elsewhere are no anomaly. Fitting
    deforms every training volume to their mean, twice, and keeps all of them in half precision.

    Arguments:
        floor: share δ of the median deviation in the foreground that is added to s
        smooth_mm: standard deviation of the Gaussian that smooths the velocity v after every
            step: what is narrower is not deformed
        robust: residuals beyond so many robust deviations hardly deform the atlas, so that
            lesions are not explained by it
        match: whether intensities of the atlas go through T, the mean of x over the voxels of
            equal μ∘φ, in place of none; for scanners of another contrast

    References:
        Avants et al. (2011), A reproducible evaluation of ANTs similarity metric performance in
        brain image registration (means of deformed volumes, in rounds)
    """

    of_model: ClassVar[bool] = False
    floor: float = tunable(0.1, Tunable.PARAMETER)
    smooth_mm: float = tunable(6.0, Tunable.PARAMETER)
    robust: float = 3.0
    match: bool = True

    @property
    def bending(self) -> Bending:
        """How freely the atlas is deformed."""
        return Bending(smooth_mm=self.smooth_mm, robust=self.robust)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """How freely; floor and matching come later."""
        return (self.bending,)

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """Mean and deviation, with n - 1, of the volumes deformed to their mean.

        Raises:
            ValueError: fewer than two volumes, or volumes on different grids
        """
        kept: list[tuple[Tensor, Tensor]] = []
        spacing = (1.0, 1.0, 1.0)
        for example in examples:
            x, spacing = example.x[0].half().cpu(), example.spacing_mm
            if kept and x.shape != kept[0][0].shape:
                raise ValueError(
                    f"atlas: expected volumes of shape {tuple(kept[0][0].shape)}, got "
                    f"{tuple(x.shape)}; align the volumes to one grid."
                )
            kept.append((x, example.foreground[0].cpu()))
        if len(kept) < 2:
            raise ValueError(f"atlas: expected at least two healthy volumes, got {len(kept)}.")
        mean = sum(x.double() for x, _ in kept).float() / len(kept)
        squares = torch.zeros_like(mean, dtype=torch.float64)
        for _ in range(ROUNDS):
            total = torch.zeros_like(mean, dtype=torch.float64)
            squares = torch.zeros_like(total)
            for x, inside in kept:
                v = self._velocity(mean, x.float(), inside, spacing)
                back = bent(x.float(), -v, spacing_mm=spacing).double()
                total += back
                squares += back.square()
            mean = (total / len(kept)).float()
        n = len(kept)
        variance = ((squares - total.square() / n) / (n - 1)).clamp(min=0)
        return Fit({"mean": mean[None], "std": variance.sqrt().float()[None]}, n)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The absolute z-score; the pseudo-healthy volume is the deformed atlas mean."""
        mean, std = (self.learnt.tensors[name][0].float() for name in ("mean", "std"))
        x, inside = example.x[0].float().cpu(), example.foreground[0].cpu()
        spacing = example.spacing_mm
        if mean.shape != x.shape:
            raise ValueError(
                f"fitted atlas_deformed: expected a volume on the atlas grid "
                f"{tuple(mean.shape)}, got {tuple(x.shape)}; align the volume first."
            )
        v = self._velocity(mean, x, inside, spacing)
        near, unit = (bent(y, v, spacing_mm=spacing) for y in (mean, std))
        if self.match:
            near = torch.stack([matched(m, y, inside=inside[0]) for m, y in zip(near, x, strict=True)])
        middle = inside_quantile(unit[None], 0.5, foreground=inside[None].expand_as(unit[None]))
        unit = unit + (self.floor * middle if middle > 0 else 1.0)
        a = ((x - near).abs() / unit).mean(dim=0, keepdim=True) * inside
        shrunk = log_jacobian(displacement_of(v, spacing_mm=spacing), spacing_mm=spacing)
        like = example.x
        return RawLocalization(
            a[None].to(like), near[None].to(like), {"log_jacobian": shrunk[None].to(like)}
        )

    def _velocity(
        self,
        mean: Float[Tensor, "c d h w"],
        x: Float[Tensor, "c d h w"],
        inside: Bool[Tensor, "1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "3 d h w"]:
        """v, by the mean over channels."""
        return velocity_mm(
            mean.mean(0),
            x.mean(0),
            inside=inside[0],
            spacing_mm=spacing_mm,
            bending=self.bending,
        )
