r"""A learned filter of features in Fourier space,

.. math:: y = \mathcal F^{-1}(W \cdot \mathcal F x).

W is a function of frequency, not of the index of a coefficient: it stands on a grid of frequencies
in cycles per voxel, and is interpolated to those of the volume at hand. The same filter thus acts
on volumes of any size, on crops and on the whole volume that they are cut from. Frequencies are
periodic, of period one along full axes; along the last axis there are those of a real signal.

On the planes where the spectrum of a real volume is its own mirror image only the Hermitian part
of W counts, as everywhere in a transform back to real numbers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._layers import whole

__all__ = ["FrequencyFilter"]

AT_ONCE = 4  # channels that are transformed together: their complex spectra are large


class FrequencyFilter(nn.Module):
    """W per channel, 1 at the start; computed in float32 or wider.

    Arguments:
        channels: number of channels
        grid: frequencies per axis on which W is learned, even, so that 1/2 is one of them
        plane: filter within each slice of the first axis instead of the volume

    References:
        Wu et al. (2022), MedSegDiff, arXiv:2211.00611 (FF-Parser); there W has one entry per
        coefficient of a single image size, 545 MB for 64 channels at 128³
    """

    halo = (0, 0, 0)

    def __init__(self, channels: int, *, grid: int = 16, plane: bool = False) -> None:
        super().__init__()
        if grid < 2 or grid % 2:
            raise ValueError(f"grid: expected an even number of frequencies, got {grid}.")
        self.axes = (3, 4) if plane else (2, 3, 4)
        self.global_axes = "hw" if plane else "dhw"
        shape = (channels, *(grid,) * (len(self.axes) - 1), grid // 2 + 1)
        # Two real tensors: checkpoints and optimizers know no complex ones.
        self.real = nn.Parameter(torch.ones(shape))
        self.imaginary = nn.Parameter(torch.zeros(shape))

    @whole
    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        sizes = [x.shape[axis] for axis in self.axes]
        with torch.autocast(x.device.type, enabled=False):
            parts = [
                self._filtered(x[:, i : i + AT_ONCE].to(dtype), slice(i, i + AT_ONCE), sizes).to(
                    x.dtype
                )
                for i in range(0, x.shape[1], AT_ONCE)
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _filtered(self, x: Tensor, channels: slice, sizes: Sequence[int]) -> Tensor:
        real, imaginary = (p[channels].to(x.dtype) for p in (self.real, self.imaginary))
        for axis, n in enumerate(sizes):
            half = axis == len(sizes) - 1
            matrix = _interpolation(n, real.shape[axis + 1], half=half, device=x.device)
            matrix = matrix.to(x.dtype)
            real, imaginary = (
                torch.tensordot(p, matrix, dims=([axis + 1], [1])).movedim(-1, axis + 1)
                for p in (real, imaginary)
            )
        if len(sizes) < 3:
            real, imaginary = real[:, None], imaginary[:, None]
        spectrum = torch.fft.rfftn(x, dim=self.axes)
        spectrum = spectrum * torch.complex(real.contiguous(), imaginary.contiguous())
        return torch.fft.irfftn(spectrum, s=sizes, dim=self.axes)


def _interpolation(
    n: int, points: int, *, half: bool, device: torch.device
) -> Float[Tensor, "f p"]:
    """Linear interpolation from a grid of frequencies to those of n voxels.

    Arguments:
        half: frequencies 0 to 1/2 on the points of a half axis, else 0 to 1 on a periodic one
    """
    period = 2 * (points - 1) if half else points
    count = n // 2 + 1 if half else n
    place = torch.arange(count, dtype=torch.float64, device=device) / n * period
    low = place.floor().long()
    share = (place - low)[:, None]
    high = (low + 1).clamp_max(points - 1) if half else (low + 1) % points
    identity = torch.eye(points, dtype=torch.float64, device=device)
    return identity[low] * (1 - share) + identity[high] * share
