r"""Power of a volume by spatial frequency: too little of it at high frequencies is blur.

.. math:: P(f) = \operatorname{mean}_{|\nu| \approx f} \left| \sum_x (v_x - \bar v)\,
          e^{-2 \pi i \nu \cdot x} \right|^2 \Big/ n

over shells of equal width around its multiples, up to the lowest of the three Nyquist frequencies,
ν in cycles per millimetre. The width is such that no shell is empty. White noise of variance σ²
has P = σ² at every frequency.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.shapes import Shape

__all__ = ["frequencies", "power_spectrum"]

Triple = tuple[float, float, float]


def frequencies(shape: Shape, spacing_mm: Triple) -> list[float]:
    """Middle of each shell in cycles per millimetre; as many shells as half the shortest axis."""
    width, count = _shells(shape, spacing_mm)
    return [(i + 1) * width for i in range(count)]


def power_spectrum(v: Float[Tensor, "d h w"], *, spacing_mm: Triple) -> Float[Tensor, "s"]:
    """P of every shell, in float64."""
    shape = (v.shape[0], v.shape[1], v.shape[2])
    width, count = _shells(shape, spacing_mm)
    power = torch.fft.rfftn((v - v.mean()).double()).abs() ** 2 / v.numel()
    axes = [
        torch.fft.fftfreq(n, s, dtype=torch.float64)
        for n, s in zip(shape, spacing_mm, strict=True)
    ]
    axes[2] = torch.fft.rfftfreq(shape[2], spacing_mm[2], dtype=torch.float64)
    grid = torch.meshgrid(*(a.to(v.device) for a in axes), indexing="ij")
    radius = torch.stack(grid).square().sum(0).sqrt()
    # Of a real volume half of the frequencies stand for two each.
    last = shape[2] // 2
    twice = torch.full((last + 1,), 2.0, dtype=torch.float64, device=v.device)
    twice[0] = 1
    if shape[2] % 2 == 0:
        twice[last] = 1
    weight = twice.expand_as(power)
    shell = (radius / width + 0.5).long() - 1
    inside = (shell >= 0) & (shell < count)
    sums = power.new_zeros(count).index_add(0, shell[inside], (power * weight)[inside])
    members = power.new_zeros(count).index_add(0, shell[inside], weight[inside])
    return sums / members


def _shells(shape: Shape, spacing_mm: Triple) -> tuple[float, int]:
    """Width of the shells, and how many there are."""
    count = max(min(shape) // 2, 1)
    return min(0.5 / s for s in spacing_mm) / count, count
