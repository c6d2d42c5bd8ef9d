"""The healthy atlas, bent onto each volume before it is compared with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
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
from volumediff.data.grid import Grid
from volumediff.data.intensity import BACKGROUND
from volumediff.data.registration import RegistrationVolume, align_affine
from volumediff.data.resampling import onto
from volumediff.tunable import Tunable, tunable

__all__ = ["AtlasDeformed"]

ROUNDS = 2  # of the fit: to the mean as it is, then to the sharper one


@dataclass(frozen=True, kw_only=True)
class AtlasDeformed(Fitted):
    r"""Deviation from the healthy atlas after a smooth, invertible deformation φ of it,

    .. math:: a = \frac{|x - T(μ∘φ)|}{s∘φ + δ\,\mathrm{median}(s∘φ)}, \qquad
              φ(p) = A^{-1} \exp(v)(p),

    averaged over channels, A being the best affine map: wide ventricles and sulci that lie
    elsewhere are no anomaly. It is weighted by the share of healthy volumes that show tissue at
    the place, for masks of brains differ. Fitting deforms every training volume to their mean,
    twice, and keeps all of them in half precision.

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
    match: bool = False

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
        squares, share = torch.zeros_like(mean, dtype=torch.float64), torch.zeros_like(mean[:1])
        for _ in range(ROUNDS):
            total = torch.zeros_like(mean, dtype=torch.float64)
            squares, share = torch.zeros_like(total), torch.zeros_like(mean[:1])
            for x, inside in kept:
                v = self._velocity(mean, x.float(), inside, spacing)
                back = bent(x.float(), -v, spacing_mm=spacing).double()
                total += back
                squares += back.square()
                share += bent(inside.float(), -v, spacing_mm=spacing) / len(kept)
            mean = (total / len(kept)).float()
        n = len(kept)
        variance = ((squares - total.square() / n) / (n - 1)).clamp(min=0)
        std = variance.sqrt().float()
        return Fit({"mean": mean[None], "std": std[None], "tissue": share[None]}, n)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The absolute z-score; the pseudo-healthy volume is the deformed atlas mean."""
        known = {name: t[0].float() for name, t in self.learnt.tensors.items()}
        x, inside = example.x[0].float().cpu(), example.foreground[0].cpu()
        spacing, shape = example.spacing_mm, known["mean"].shape
        if shape != x.shape:
            raise ValueError(
                f"fitted atlas_deformed: expected a volume on the atlas grid {tuple(shape)}, got "
                f"{tuple(x.shape)}; align the volume first."
            )
        moved = self._affine(known, x, inside, spacing)
        v = self._velocity(moved["mean"], x, inside, spacing)
        moved = {name: bent(t, v, spacing_mm=spacing) for name, t in moved.items()}
        near, unit = moved["mean"], moved["std"]
        if self.match:
            pairs = zip(near, x, strict=True)
            near = torch.stack([matched(m, y, inside=inside[0]) for m, y in pairs])
        middle = inside_quantile(unit[None], 0.5, foreground=inside[None].expand_as(unit[None]))
        unit = unit + (self.floor * middle if middle > 0 else 1.0)
        a = ((x - near).abs() / unit).mean(dim=0, keepdim=True) * moved["tissue"] * inside
        larger = log_jacobian(displacement_of(v, spacing_mm=spacing), spacing_mm=spacing)
        like = example.x
        trace = {"log_jacobian": larger[None].to(like)}
        return RawLocalization(a[None].to(like), near[None].to(like), trace)

    def _affine(
        self,
        known: Mapping[str, Tensor],
        x: Float[Tensor, "c d h w"],
        inside: Bool[Tensor, "1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> dict[str, Tensor]:
        """The atlas on the volume's grid, after the affine map that fits best."""
        d, h, w = x.shape[1:]
        grid = Grid((d, h, w), np.diag([*spacing_mm, 1.0]))
        brain = (known["tissue"][0] > 0.5).numpy()
        matrix = align_affine(
            RegistrationVolume(known["mean"].mean(0).numpy(), brain, grid),
            RegistrationVolume(x.mean(0).numpy(), inside[0].numpy(), grid),
            skull=False,
        )
        source = Grid(grid.shape, matrix @ grid.affine)
        fills = {"mean": BACKGROUND, "std": 0.0, "tissue": 0.0}
        return {n: onto(t, source, grid, fill=fills[n])[0] for n, t in known.items()}

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
