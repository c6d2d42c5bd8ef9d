r"""Mean and variance of a volume's channels from its slabs, and what a group norm makes of them.

Slabs are merged in one go, in float64 (Chan, Golub and LeVeque 1979), for n_i voxels each:

.. math:: \mu = \sum_i \tfrac{n_i}{n} \mu_i, \qquad
          \sigma^2 = \sum_i \tfrac{n_i}{n} \big(\sigma_i^2 + (\mu_i - \mu)^2\big)

A group norm is then affine, :math:`s \hat x + b = a x + c` with

.. math:: a = s\, r, \quad r = (\sigma_g^2 + \epsilon)^{-1/2}, \qquad c = b - a\, \mu_g, \qquad
          \sigma_g^2 = \langle \sigma_c^2 + (\mu_c - \mu_g)^2 \rangle_{c \in g}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from volumediff.networks._norm_act import runs_fused
from volumediff.networks._norm_act_group import dense

__all__ = ["Affine", "SlabMoments"]

AXES = (2, 3, 4)
EPS = 1e-5  # of the kernel that measures half precision on the CPU


class SlabMoments:
    """Mean and variance per sample and channel, of slabs that come one by one.

    Arguments:
        fused: whether Triton kernels measure, see `norm_act`
    """

    def __init__(self, *, fused: bool | None = None) -> None:
        self.count = 0
        self._fused = fused
        self._slabs: list[tuple[int, Tensor, Tensor]] = []
        self._result: tuple[Tensor, Tensor] | None = None

    @property
    def fused(self) -> bool:
        """Whether Triton kernels measured."""
        return bool(self._fused)

    def update(self, slab: Tensor) -> None:
        """Adds the voxels of a slab (b, c, d, h, w); all but the last have as many planes."""
        # The first slab decides for all of its volume.
        self._fused = self._fused if self._slabs else runs_fused(slab, self._fused)
        if self._fused:
            from volumediff.networks._norm_act_triton import statistics

            self._slabs.append(statistics(slab, slab.shape[1]))
        else:
            self._slabs.append((slab[0, 0].numel(), *_measured(slab)))
        self.count += self._slabs[-1][0]
        self._how = slab.dtype, slab.device.type

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (b, c) in float64."""
        if self._result is None and self._fused:
            from volumediff.networks._affine_triton import merged_moments

            self._result = merged_moments(self._slabs, count=self.count)
            self._slabs.clear()
        if self._result is None:
            numbers, means, spreads = zip(*self._slabs, strict=True)
            mean, spread = torch.stack((*means, *spreads)).double().chunk(2)
            number = numbers[0] if len(set(numbers)) == 1 else _per_slab(numbers, mean)
            self._result = _merged(numbers, mean, _variance(mean, spread, number, *self._how))
            self._slabs.clear()
        return self._result

    def replace(self, numbers: Sequence[int], mean: Tensor, variance: Tensor) -> None:
        """Makes these the moments of several parts (n, b, c) together, in float64."""
        self.count, self._result = sum(numbers), _merged(numbers, mean, variance)
        self._slabs.clear()


def _merged(numbers: Sequence[int], mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Of parts with so many voxels."""
    if len(numbers) == 1:
        return mean[0], variance[0]
    equal = len(set(numbers)) == 1
    weight = 1 / len(numbers) if equal else _per_slab(numbers, mean) / sum(numbers)
    merged = (weight * mean).sum(0)
    away = mean - merged
    return merged, (weight * torch.addcmul(variance, away, away)).sum(0)


def _per_slab(numbers: Sequence[int], like: Tensor) -> Tensor:
    """The numbers as a tensor (n, 1, 1), made where the other tensor is."""
    runs = ((float(number), len(list(run))) for number, run in groupby(numbers))
    return torch.cat([like.new_full((length, 1, 1), number) for number, length in runs])


def _measured(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and what says the spread (b, c), in float32 or wider and without a wide copy of x."""
    b, c = x.shape[:2]
    if x.dtype in (torch.float32, torch.float64):
        variance, mean = torch.var_mean(x, AXES, correction=0)
        return mean, variance
    if x.device.type == "cpu":
        # A reduction would cast the whole slab first; the kernel of the group norm does not. With
        # float32 parameters it returns its statistics in float32.
        ones = torch.ones(c)
        x = dense(x.contiguous(memory_format=torch.channels_last_3d))
        _, mean, inverse = torch.native_group_norm(x, ones, ones, b, c, x[0, 0].numel(), c, EPS)
        return mean, inverse
    mean = x.mean(AXES, dtype=torch.float32)
    # Around zero, in float32: its rounding stays below that of voxels in half precision.
    return mean, torch.linalg.vector_norm(x, 2, AXES, dtype=torch.float32)


def _variance(
    mean: Tensor, spread: Tensor, number: Tensor | int, dtype: torch.dtype, device: str
) -> Tensor:
    """What `_measured` found, as a variance; all in float64."""
    if dtype in (torch.float32, torch.float64):
        return spread
    if device == "cpu":
        return (spread.pow(-2) - EPS).clamp_min(0)
    return torch.addcmul(spread.square() / number, mean, mean, value=-1).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Affine:
    """What a group norm makes of a volume's moments.

    Arguments:
        a, c: per sample and channel (b, c), in the dtype of the scale
        scale: s
        middle, inverse: mean and 1/σ per group (b, g), in float64
        fused: whether Triton kernels made it
    """

    a: Tensor
    c: Tensor
    scale: Tensor
    middle: Tensor
    inverse: Tensor
    fused: bool

    @classmethod
    def of(
        cls,
        moments: tuple[Tensor, Tensor],
        scale: Tensor,
        shift: Tensor,
        *,
        groups: int,
        eps: float,
        fused: bool,
    ) -> "Affine":
        """From mean and variance, per sample and channel in float64, and s and b."""
        if fused:
            from volumediff.networks._affine_triton import norm_affine

            a, c, middle, inverse = norm_affine(moments, scale, shift, groups=groups, eps=eps)
            return cls(a, c, scale, middle, inverse, fused)
        means, variances, s, b = (t.unflatten(1, (groups, -1)) for t in (*moments, scale, shift))
        middle = means.mean(2, keepdim=True)
        deviation = means - middle
        spread = torch.addcmul(variances, deviation, deviation).mean(2, keepdim=True)
        inverse = (spread + eps).rsqrt()
        a = s * inverse
        c = b - a * middle
        a, c = (t.flatten(1).to(scale.dtype) for t in (a, c))
        return cls(a, c, scale, middle[..., 0], inverse[..., 0], fused)

    def gradients(
        self, of_a: Tensor, of_c: Tensor, count: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        r"""That of s, :math:`r\, (g_a - \mu_g g_c)`, and (P, Q) per sample and channel: the
        gradient that a voxel x has through the statistics is P + Q x, with means over the channels
        of a group and n voxels

        .. math:: Q = -\frac{r^3}{n} \langle s\, (g_a - \mu_g g_c) \rangle, \qquad
                  P = -\frac{r}{n} \langle s\, g_c \rangle - \mu_g Q

        The gradient of b is that of c.

        Arguments:
            count: voxels per channel
        """
        if self.fused:
            from volumediff.networks._affine_triton import norm_affine_gradient

            known = self.scale, self.middle, self.inverse
            of_scale, *share = norm_affine_gradient(of_a, of_c, *known, count=count)
            return of_scale, (share[0], share[1])
        s, of_a, of_c = (
            t.unflatten(1, (self.middle.shape[1], -1)) for t in (self.scale, of_a, of_c)
        )
        middle, inverse = self.middle[..., None], self.inverse[..., None]
        along = of_a - middle * of_c
        slope = (s * along).mean(2, keepdim=True) * inverse.pow(3) / -count
        offset = (s * of_c).mean(2, keepdim=True) * inverse / -count - middle * slope
        found = (t.to(s.dtype).expand_as(s).flatten(1) for t in (inverse * along, offset, slope))
        of_scale, *share = found
        return of_scale, (share[0], share[1])
