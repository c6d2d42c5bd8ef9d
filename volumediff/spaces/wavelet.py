r"""Wavelet space: the state holds the coefficients of an orthonormal wavelet transform, z = W x.

With W^T W = I white noise stays white, and squared errors in z are squared errors in x.

Along one axis of even length N, with filters g (low pass and high pass, F taps, F even) and
periodic continuation,

.. math:: z_g[n] = \sum_{j=0}^{F-1} g[j]\, x[(2 n + 1 - F/2 + j) \bmod N],

and the inverse is the transposed map. The phase is that of PyWavelets' mode "periodization".

Channel order. One level along n axes makes 2^n bands per channel; channel `band * c + i` of the
state is band `band` of channel i of the volume, and the bits of `band` are the filters along
d, h, w (0 low, 1 high, the first axis highest): LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH. A second
level transforms *every* band again (the full packet tree), so that band = 8 * second + first and
the first c channels are the coarse volume. A tree that splits LLL alone would leave bands on two
grids; a network reads one tensor on one grid, and packets are exactly as orthonormal.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff import tiling
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["Wavelet"]

HAAR = (math.sqrt(0.5), math.sqrt(0.5))
LETTERS = "dhw"
# Tabulated filters are orthonormal to 1e-11 or better, except the truncated Meyer filter (2e-3).
TOLERANCE = 1e-9


class Wavelet(StateSpace):
    """Orthonormal wavelet packets, low pass first.

    Arguments:
        wavelet: haar, or an orthogonal wavelet of PyWavelets such as db2, sym4, coif1
        levels: 1 or 2; the stride along a transformed axis is 2 or 4
        axes: transformed axes, any of d, h, w; the others keep their size

    References:
        Friedrich et al. (2024), WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image
        Synthesis, arXiv:2402.19043
    """

    exact = True

    def __init__(self, wavelet: str = "haar", levels: int = 1, axes: str = "dhw") -> None:
        super().__init__()
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}.")
        if not axes or len(set(axes)) != len(axes) or set(axes) - set(LETTERS):
            raise ValueError(f"axes must be some of the letters d, h, w, got {axes!r}.")
        self.low = HAAR if wavelet == "haar" else _low_pass(wavelet)
        # The quadrature mirror of the low pass; the sign is the one of PyWavelets.
        self.high = tuple((-1) ** j * g for j, g in enumerate(reversed(self.low)))
        self.levels = levels
        self.axes = tuple(i + 2 for i, a in enumerate(LETTERS) if a in axes)

    @property
    def stride(self) -> Shape:
        d, h, w = (2**self.levels if axis in self.axes else 1 for axis in (2, 3, 4))
        return d, h, w

    def channels(self, c: int) -> int:
        return c * math.prod(self.stride)

    def analysis(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        return self._transform(tiling.pad(x, self.padded(x.shape[2:])))

    def synthesis(
        self, raw: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        if raw.shape[1] % self.channels(1):
            raise ValueError(
                f"expected a multiple of {self.channels(1)} state channels, got {raw.shape[1]}."
            )
        x = _widened(raw)
        for _ in range(self.levels):
            for axis in self.axes:
                low, high = x.chunk(2, dim=1)
                x = _join(low, high, axis, self.low, self.high)
        x = x.to(raw.dtype)
        return x if shape is None else tiling.crop(x, shape)

    def noise(self, field: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        self._check_field(field)
        return self._transform(field)

    def mask(self, m: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d2 h2 w2"]:
        m = tiling.pad(m, self.padded(m.shape[2:]))
        for _ in range(self.levels):
            for axis in self.axes:
                m = _dependence(m, axis, taps=len(self.low))
        return m

    def _transform(self, x: Tensor) -> Tensor:
        z = _widened(x)
        for _ in range(self.levels):
            for axis in reversed(self.axes):  # the last one split has the highest bit: d
                z = torch.cat(_split(z, axis, self.low, self.high), dim=1)
        return z.to(x.dtype)


def _low_pass(wavelet: str) -> tuple[float, ...]:
    """The taps g of a named orthogonal wavelet, in the order of the equation above."""
    import pywt

    names = [n for n in pywt.wavelist(kind="discrete") if pywt.Wavelet(n).orthogonal]
    taps = tuple(reversed(pywt.Wavelet(wavelet).dec_lo)) if wavelet in names else ()
    # orthonormal: <g, g shifted by 2k> = [k = 0]
    defects = [
        abs(math.fsum(a * b for a, b in zip(taps, taps[k:], strict=False)) - (k == 0))
        for k in range(0, len(taps), 2)
    ]
    if not taps or max(defects) > TOLERANCE:
        raise ValueError(
            f"wavelet must be orthogonal (haar, db2 to db38, sym2 to sym20, coif1 to coif17), "
            f"got {wavelet!r}."
        )
    return taps


def _widened(x: Tensor) -> Tensor:
    """Half precision is transformed in float32: a volume is small beside a network's activations,
    and the result is rounded once instead of once per tap and axis."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _periodic(x: Tensor, axis: int, size: int) -> Tensor:
    """The first `size` entries of the periodic continuation along an axis."""
    if size == x.shape[axis]:
        return x
    return x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])


def _split(
    x: Tensor, axis: int, low: tuple[float, ...], high: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Low and high band along an axis of even length, tap by tap on the even and odd voxels.

    For the Haar filter this is the butterfly (even + odd, even - odd) / sqrt(2) without copies.
    Sums of views and not a convolution: on CUDA a float32 convolution may run in TF32.
    """
    half = len(low) // 2
    n = x.shape[axis] // 2
    if half > 1:
        x = x.roll(half - 1, axis)
    phases = [_periodic(p, axis, n + half - 1) for p in x.unflatten(axis, (n, 2)).unbind(axis + 1)]
    views = [phases[j % 2].narrow(axis, j // 2, n) for j in range(len(low))]
    return _weighted(views, low), _weighted(views, high)


def _weighted(views: Sequence[Tensor], taps: Sequence[float]) -> Tensor:
    total = views[0] * taps[0]
    for view, tap in zip(views[1:], taps[1:], strict=True):
        total.add_(view, alpha=tap)
    return total


def _join(
    z_low: Tensor, z_high: Tensor, axis: int, low: tuple[float, ...], high: tuple[float, ...]
) -> Tensor:
    """The transpose of `_split`, which is its inverse."""
    half = len(low) // 2
    n = z_low.shape[axis]
    bands = [z_low, z_high]
    if half > 1:
        # voxel 2m + p meets tap p + 2q at entry m - q: continue the bands to the left
        bands = [_periodic(z.roll(half - 1, axis), axis, n + half - 1) for z in bands]
    views = [z.narrow(axis, half - 1 - q, n) for z in bands for q in range(half)]
    phases = [_weighted(views, [*low[p::2], *high[p::2]]) for p in (0, 1)]
    x = torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)
    return x.roll(1 - half, axis) if half > 1 else x


def _dependence(m: Tensor, axis: int, *, taps: int) -> Tensor:
    """The maximum over the voxels that enter a coefficient along one axis."""
    size = m.shape[axis]
    if taps > 2:
        m = _periodic(m.roll(taps // 2 - 1, axis), axis, size + taps - 2)
    return m.unfold(axis, taps, 2).amax(-1)
