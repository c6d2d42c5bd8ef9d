r"""silu(s x̂ + b) under statistics of a group of channels and a whole volume, by kernels of torch.

With u = s x̂ + b, y = silu(u), g = ∂L/∂u and means ⟨·⟩ over the group,

.. math:: \frac{\partial L}{\partial b} = \sum g, \quad
          \frac{\partial L}{\partial s} = \sum g \hat x, \quad
          \frac{\partial L}{\partial x} = \frac{1}{\sigma}
          \left(s g - \langle s g \rangle - \hat x\, \langle s g \hat x \rangle\right)

Once the moments are known this is a batch norm in evaluation mode, sample by sample: its kernels
apply mean, deviation, scale and shift in one pass, and give both sums in another, in float32 where
x is in half precision, in either layout and without a wide copy. Passes over the volume, reads and
writes: 6 forward (5 on a CPU and in float32), 14 backward.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["GroupNormAct", "dense", "moments"]

aten = torch.ops.aten


class GroupNormAct(torch.autograd.Function):
    """silu(scale x̂ + shift); keeps x, and a mean and a variance per sample and channel."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
    ) -> Tensor:
        x = dense(x)
        made = [_normalised(x[i : i + 1], scale[i], shift[i], groups, eps) for i in range(len(x))]
        moments = zip(*(moments for _, moments in made), strict=True)
        ctx.save_for_backward(x, scale, shift, *map(torch.stack, moments))
        ctx.groups = groups
        return _joined([aten.silu_(u) for u, _ in made])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *small = ctx.saved_tensors
        wanted, grad = ctx.needs_input_grad[0], dense(grad)
        parts = [
            _gradients(grad[i : i + 1], x[i : i + 1], *each, ctx.groups, with_x=wanted)
            for i, each in enumerate(zip(*small, strict=True))
        ]
        of_x, of_scale, of_shift = zip(*parts, strict=True)
        grad_x = _joined(list(of_x)) if wanted else None
        return grad_x, torch.stack(of_scale), torch.stack(of_shift), None, None


def _joined(samples: list[Tensor]) -> Tensor:
    """The batch; samples are computed one by one, so that its size changes no bits."""
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _normalised(
    x: Float[Tensor, "1 c d h w"],
    scale: Float[Tensor, "c"],
    shift: Float[Tensor, "c"],
    groups: int,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """s x̂ + b, and per channel the mean and σ² + ε of its group."""
    channels, width = x.shape[1], x.shape[1] // groups
    if x.device.type == "cpu":
        # With float32 coefficients it takes x in half precision, and has float32 statistics.
        u, mean, inverse = torch.native_group_norm(
            x, scale, shift, 1, channels, x[0, 0].numel(), groups, eps
        )
        return u, _per_channel(mean[0], inverse[0].pow(-2), width)
    # Elsewhere torch's own kernel copies volumes with channels last, and rounds statistics.
    mean, variance = moments(x.unflatten(1, (groups, -1)))
    mean, spread = _per_channel(mean[0], variance[0].add_(eps), width)
    return _affine(x, scale, shift, mean, spread), (mean, spread)


def _per_channel(mean: Tensor, spread: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Values of each of the channels, from those of groups of so many."""
    both = torch.stack((mean, spread)).repeat_interleave(width, dim=1)
    return both[0], both[1]


def moments(x: Float[Tensor, "n g w *size"]) -> tuple[Float[Tensor, "n g"], Float[Tensor, "n g"]]:
    """Mean and variance of each group, in float32 or wider without a wide copy of x."""
    axes, dtype = tuple(range(2, x.ndim)), torch.promote_types(x.dtype, torch.float32)
    if x.dtype == dtype:
        variance, mean = torch.var_mean(x, axes, correction=0)
        return mean, variance
    mean = x.mean(axes, dtype=dtype)
    # Around zero: the rounding of float32 stays below that of voxels in half precision.
    root = torch.linalg.vector_norm(x, 2, axes, dtype=dtype).mul_(x[0, 0].numel() ** -0.5)
    return mean, (root - mean).mul_(root + mean).clamp_min_(0)


def _affine(
    x: Float[Tensor, "1 c d h w"],
    scale: Float[Tensor, "c"],
    shift: Float[Tensor, "c"],
    mean: Float[Tensor, "c"],
    spread: Float[Tensor, "c"],
) -> Float[Tensor, "1 c d h w"]:
    """s (x - μ) / σ + b, in the dtype of x, computed in that of the coefficients."""
    return torch.native_batch_norm(x, scale, shift, mean, spread, False, 0.0, 0.0)[0]


def _gradients(
    grad: Float[Tensor, "1 c d h w"],
    x: Float[Tensor, "1 c d h w"],
    scale: Float[Tensor, "c"],
    shift: Float[Tensor, "c"],
    mean: Float[Tensor, "c"],
    spread: Float[Tensor, "c"],
    groups: int,
    *,
    with_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, scale and shift."""
    u = _affine(x, scale, shift, mean, spread)
    g, inverse = aten.silu_backward(grad, u), spread.rsqrt()
    # The kernels of a CPU read the first pair of moments, others the second.
    moments = mean, spread, mean, inverse
    grad_x, grad_scale, grad_shift = aten.native_batch_norm_backward(
        g, x, scale, *moments, False, 0.0, [with_x, True, True]
    )
    if not with_x:
        return None, grad_scale, grad_shift
    sums = torch.stack((grad_scale, grad_shift)).mul_(scale).unflatten(1, (groups, -1))
    means = sums.mean(2).div_(x[0, 0].numel()).repeat_interleave(sums.shape[2], dim=1)
    slope, offset = means.mul_(inverse)
    return grad_x.sub_(_affine(x, slope, offset, mean, spread)), grad_scale, grad_shift


def dense(x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
    """x as torch's normalisations take it: dense, channels last if they are, else planar.

    An axis of size 1 may have any stride, as in a slab or a single slice of a volume, and the
    kernels tell the layout by the strides: here they become those of a fresh tensor.
    """
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    if not x.is_contiguous(memory_format=layout):
        layout, x = torch.contiguous_format, x.contiguous()
    fresh = torch.empty(x.shape, device="meta", memory_format=layout)
    return x.as_strided(x.shape, fresh.stride())
