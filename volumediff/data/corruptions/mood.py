"""The kinds of synthetic anomalies of the MOOD challenge, in a sphere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._draws import between, check_range
from volumediff.data._fields import sample
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import (
    Box,
    box,
    foreground_voxel,
    foreign,
    inside,
    length_mm,
    offsets_mm,
)

__all__ = ["KINDS", "Mood"]


@dataclass(frozen=True, eq=False)
class _Ball:
    """A sphere and what is in the window around it: the arguments that the kinds share."""

    x: Tensor  # the whole volume
    window: Box
    centre: tuple[int, int, int]
    offset_mm: Tensor  # from the centre, (3, ...)
    radius_mm: float
    spacing_mm: tuple[float, float, float]
    foreground: Tensor
    donor: Callable[[int], Tensor]
    key: int

    @property
    def inner(self) -> Tensor:
        return self.x[(slice(None), *self.window)]

    def sign(self) -> int:
        return 1 if randomness.uniform(self.key, "sign") < 0.5 else -1

    def at(self, offset_mm: Tensor) -> Tensor:
        """The volume at other offsets from the centre."""
        mm = torch.tensor(self.spacing_mm).to(offset_mm).view(3, 1, 1, 1)
        centre = torch.tensor(self.centre).to(offset_mm).view(3, 1, 1, 1)
        return sample(self.x, centre + offset_mm / mm)

    def direction(self) -> Tensor:
        v = randomness.normal((3,), self.key, "direction")
        return (v / v.norm()).to(self.x).view(3, 1, 1, 1)


def _addition(ball: _Ball) -> Tensor:
    return ball.inner + ball.sign() * between((0.4, 0.6), ball.key, "addition")


def _noise(ball: _Ball) -> Tensor:
    sigma = between((0.1, 0.6), ball.key, "sigma")
    return ball.inner + sigma * randomness.normal(tuple(ball.inner.shape), ball.key, "noise").to(
        ball.x
    )


def _sink(ball: _Ball) -> Tensor:
    return ball.at(ball.offset_mm * (2 - _reach(ball)))


def _source(ball: _Ball) -> Tensor:
    return ball.at(ball.offset_mm * _reach(ball))


def _shift(ball: _Ball) -> Tensor:
    length = between((0.5, 2.0), ball.key, "shift") * ball.radius_mm
    return ball.at(ball.offset_mm + length * ball.direction())


def _reflection(ball: _Ball) -> Tensor:
    axis = int(randomness.uniform(ball.key, "axis") * 3)
    if ball.x.shape[axis + 1] == 1:  # nothing to reflect in a slice
        axis = max(range(3), key=lambda i: ball.x.shape[i + 1])
    turned = ball.offset_mm.clone()
    turned[axis] = -turned[axis]
    return ball.at(turned)


def _interpolation(ball: _Ball) -> Tensor:
    place = foreground_voxel(ball.foreground, ball.key, "source")
    patch = foreign(ball.donor(ball.key), ball.x, ball.window, place, 1.0)
    return torch.lerp(ball.inner, patch, between((0.3, 1.0), ball.key, "factor"))


def _constant(ball: _Ball) -> Tensor:
    return torch.full_like(ball.inner, between((-1.0, 1.0), ball.key, "constant"))


def _reach(ball: _Ball) -> Tensor:
    return (ball.offset_mm.norm(dim=0, keepdim=True) / ball.radius_mm).clamp(max=1)


KINDS: dict[str, Callable[[_Ball], Tensor]] = {
    "addition": _addition,
    "noise": _noise,
    "sink": _sink,
    "source": _source,
    "shift": _shift,
    "reflection": _reflection,
    "interpolation": _interpolation,
    "constant": _constant,
}


@dataclass(frozen=True)
class Mood(Corruption):
    r"""A sphere with its centre c in the foreground, changed in one of eight ways,

    .. math::
        \text{addition, noise}\quad & x ± v,\quad x + σ n \\
        \text{source, sink}\quad & x(c + ρ (p - c)),\quad x(c + (2 - ρ)(p - c)) \\
        \text{shift, reflection}\quad & x(p + o),\quad x(c + S (p - c)) \\
        \text{interpolation, constant}\quad & (1 - a)\, x + a\, x_{donor}(p + o),\quad v

    with ρ = |p - c| / r, v in ±[0.4, 0.6] and σ in [0.1, 0.6] (0.2 to 0.3 and 0.05 to 0.3 of
    intensities in [0, 1]), o of 0.5 to 2 radii, S a change of sign along one axis. The amount is 1
    where x changed.

    Arguments:
        kinds: of which one is drawn; all of them have the same chance
        radius: smallest and largest r, as shares of the longest side of the volume

    References:
        Zimmerer et al. (2022), MOOD 2020: A Public Benchmark for Out-of-Distribution Detection
        and Localization on Medical Images, IEEE TMI 41(10)
    """

    kind: ClassVar[str] = "mood"
    kinds: tuple[str, ...] = tuple(KINDS)
    radius: tuple[float, float] = (0.05, 0.13)

    def __post_init__(self) -> None:
        check_range("radius", self.radius, 0.0, 1.0)
        unknown = [k for k in self.kinds if k not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(
                f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}."
            )

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the changed sphere, and 1 where it changed."""
        d, h, w = x.shape[1:]
        centre = foreground_voxel(foreground, key, "centre")
        radius = between(self.radius, key, "radius") * length_mm((d, h, w), spacing_mm)
        radius = max(radius, 1.5 * max(spacing_mm))  # neighbours of the centre are inside
        window = box((d, h, w), centre, [radius / mm + 1 for mm in spacing_mm])
        offset = offsets_mm(window, centre, spacing_mm, x)
        ball = _Ball(x, window, centre, offset, radius, spacing_mm, foreground, donor, key)
        kind = self.kinds[int(randomness.uniform(key, "kind") * len(self.kinds))]
        inner = offset.norm(dim=0, keepdim=True) <= radius
        changed, amount = x.clone(), torch.zeros_like(x[:1])
        part = (slice(None), *window)
        changed[part] = torch.where(inner, KINDS[kind](ball), ball.inner)
        amount[part] = inner.to(x)
        return inside(x, changed, amount, foreground)
