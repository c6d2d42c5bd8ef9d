r"""Mean and variance of a volume's channels from its slabs, and what a group norm makes of them.

Slabs are merged by the update of Chan, Golub and LeVeque (1979), in float64. A group norm is then
affine, :math:`s \hat x + b = a x + c` with

.. math:: a = s\, (\sigma_g^2 + \epsilon)^{-1/2}, \qquad c = b - a\, \mu_g, \qquad
          \sigma_g^2 = \langle \sigma_c^2 + (\mu_c - \mu_g)^2 \rangle_{c \in g}
"""

import torch
from torch import Tensor

from volumediff.networks._norm_act_group import dense

__all__ = ["SlabMoments", "coefficients"]

AXES = (2, 3, 4)


class SlabMoments:
    """Running mean and variance per sample and channel.

    Arguments:
        dtype: of the voxels
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def update(self, slab: Tensor) -> None:
        """Adds the voxels of a slab (b, c, d, h, w)."""
        number = slab[0, 0].numel()
        mean, variance = (m.double() for m in _moments(slab))
        self.join(number, mean, variance * number)

    def join(self, number: int, mean: Tensor, squares: Tensor) -> None:
        """Adds voxels by their number, mean, and sum of squares around the mean."""
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = number, mean, squares
            return
        total = self.count + number
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * number / total)
        self.mean = self.mean + delta * (number / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (b, c) in float64."""
        assert self.mean is not None, "something was measured"
        assert self.squares is not None, "something was measured"
        return self.mean, self.squares / self.count


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (b, c), accumulated in float32 or wider and without a wide copy of x."""
    b, c = x.shape[:2]
    if x.dtype in (torch.float32, torch.float64):
        variance, mean = torch.var_mean(x, AXES, correction=0)
    elif x.device.type == "cpu":
        # A reduction would cast the whole slab first; the kernel of the group norm does not. With
        # float32 parameters it returns its statistics in float32.
        ones, eps = torch.ones(c), 1e-5
        x = dense(x.contiguous(memory_format=torch.channels_last_3d))
        number = x[0, 0].numel()
        _, mean, inverse = torch.native_group_norm(x, ones, ones, b, c, number, c, eps)
        variance = (inverse.double().pow(-2) - eps).clamp_min(0)
    else:
        mean = x.mean(AXES, dtype=torch.float32)
        # Around zero, in float32: its rounding stays below that of voxels in half precision.
        norm = torch.linalg.vector_norm(x, 2, AXES, dtype=torch.float32).double()
        variance = (norm.square() / x[0, 0].numel() - mean.double().square()).clamp_min(0)
    return mean, variance


def coefficients(
    mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """(a, c) of shape (b, c), in the dtype of scale and shift.

    Arguments:
        mean, variance: per sample and channel, in float64
        scale, shift: s and b, per sample and channel
    """
    size = mean.shape[1] // groups
    means = mean.unflatten(1, (groups, size))
    middle = means.mean(2, keepdim=True)
    spread = (variance.unflatten(1, (groups, size)) + (means - middle).square()).mean(2)
    inverse = (spread + eps).rsqrt().repeat_interleave(size, dim=1)
    a = scale.double() * inverse
    c = shift.double() - a * middle.squeeze(2).repeat_interleave(size, dim=1)
    return a.to(scale.dtype), c.to(scale.dtype)
