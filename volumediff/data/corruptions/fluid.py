r"""Lesions whose shapes a flow has made, with looks that suit the contrast.

A ball P₀ of a given volume is carried by advection and diffusion,

.. math:: \frac{\partial P}{\partial τ} = -∇\cdot(V P) + ∇\cdot(D\, ∇P), \qquad ∇\cdot V = 0,

with a stationary V, the curl of smooth random potentials, and a constant D. Both are solved as
they stand rather than step by step: P(1) = G_{√(2D)} * (P₀ ∘ exp(-V)), the flow map by scaling and
squaring, the diffusion by its Gaussian. A flow without divergence keeps the volume, so that
lesions have the volume that was drawn, whatever their shape.

The signal s = (x + 1) / 2 under the lesion becomes

.. math:: s' = s + P\,\bigl(β\,(\bar s - s) + A\,(1 + τ n)\bigr),

with the mean s̄ of the place, so that a large β wipes the anatomy out, a change A in units of the
volume's own range and a texture n. In T1w lesions are mostly darker, in T2w and FLAIR brighter:
which of both the volume is, is given, or read from the volume itself, from whether the depth of
the brain, white matter, is clearly brighter than its cortex. Of the cortex only what is brighter
than half-way from fluid to white matter counts: on coarse grids the fluid of the sulci darkens
most of its voxels, and FLAIR would look like T1w.

Large lesions may push what surrounds them away; vessels that contrast agent lights up are drawn
too, and are no lesions.

References:
    Liu et al. (2025), UNA: Unraveling normal anatomy via fluid-driven anomaly randomization,
        arXiv:2501.13370: shapes by transport of masks or Perlin noise with an ODE solver, signs by
        contrast; A and texture are this project's
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool3d

from volumediff import randomness
from volumediff.data._draws import between, check_range
from volumediff.data._fields import exponential, gaussian, identity, sample, smooth_noise, warp
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import Box, box, foreground_voxel, offsets_mm

__all__ = ["Fluid", "divergence_free"]

Pair = tuple[float, float]
Spacing = tuple[float, float, float]

_CORTEX_MM, _DEPTH_MM = 5.0, 9.0
_CLEARLY = 0.09  # of the range: white matter minus cortex, .11 and more in nine T1w
_TISSUE = 0.15  # of the range: what is so near to the median of the depth is white matter
_FLUID = 0.35  # of the range: what is deep and so far from white matter is a ventricle
_NEAR_MM = 4.0  # width of what is near a ventricle
_SEEN = 0.02  # change of the signal, of a range of 1, below which nothing can be seen
_REACH = 3.0  # radii from the centre at which nothing is pushed any more
_STRIDE = 7  # voxels between those that quantiles are taken of: enough for a look
_EDGE = 0.05  # P below which a voxel is outside of the lesion


@dataclass(frozen=True)
class Fluid(Corruption):
    """One or several lesions with shapes that a flow has made.

    Arguments:
        count: smallest and largest number of lesions
        volume_ml: smallest and largest volume of each, drawn on a logarithmic scale
        transport: largest displacement by the flow, in radii of the ball
        edge_mm: smallest and largest √(2D), which softens the border
        change: smallest and largest |A|, in units of the range between dark and bright tissue,
            drawn on a logarithmic scale
        erased: smallest and largest β
        texture: largest τ
        sign: 1 where lesions are mostly brighter than their place (FLAIR, T2w), -1 where they are
            mostly darker (T1w); None reads it from each volume
        usual: probability that a lesion has that sign
        white_matter: probability that a lesion's centre lies in white matter, as the volume shows
            it; the others lie anywhere
        periventricular: probability that one in white matter lies near a ventricle
        core: probability that a lesion above 1 ml has a core of another look
        push_mm: largest displacement around lesions above 4 ml
        vessels: probability that vessels are bright
    """

    kind: ClassVar[str] = "fluid"
    distracts: ClassVar[bool] = True
    count: tuple[int, int] = (1, 5)
    volume_ml: Pair = (0.03, 50.0)
    transport: float = 1.5
    edge_mm: Pair = (0.5, 3.0)
    change: Pair = (0.08, 0.9)
    erased: Pair = (0.0, 1.0)
    texture: float = 0.4
    sign: Literal[1, -1] | None = None
    usual: float = 0.85
    white_matter: float = 0.0
    periventricular: float = 0.0
    core: float = 0.3
    push_mm: float = 5.0
    vessels: float = 0.15

    def __post_init__(self) -> None:
        check_range("volume_ml", self.volume_ml, 1e-6, 1e4)
        check_range("edge_mm", self.edge_mm, 0.0, 20.0)
        check_range("change", self.change, 1e-3, 2.0)
        check_range("erased", self.erased, 0.0, 1.0)
        if not 1 <= self.count[0] <= self.count[1]:
            raise ValueError(f"count: expected two ascending numbers from 1 on, got {self.count}.")
        for name in ("usual", "white_matter", "periventricular", "core", "vessels"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}.")
        for name in ("transport", "texture", "push_mm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}.")

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: Spacing,
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with its lesions, and P where they can be seen."""
        foreground_voxel(foreground, key, "any")  # refuses an empty foreground
        s, amount = (x + 1) / 2, torch.zeros_like(x[:1])
        look = _LesionLook.of(s, foreground, spacing_mm, self.sign)
        if randomness.uniform(key, "vessels") < self.vessels:
            s = _with_vessels(s, foreground, spacing_mm, key)
        low, high = self.count
        for i in range(low + int(randomness.uniform(key, "count") * (high - low + 1))):
            lesion = randomness.key(key, "lesion", i)
            s, amount = self._with_lesion(s, amount, look, foreground, spacing_mm, lesion)
        changed = torch.where(foreground, (2 * s - 1).clamp(-1, 1), x)
        return changed, amount * foreground

    def _with_lesion(
        self,
        s: Tensor,
        amount: Tensor,
        look: "_LesionLook",
        foreground: Tensor,
        spacing_mm: Spacing,
        key: int,
    ) -> tuple[Tensor, Tensor]:
        low, high = self.volume_ml
        available = float(foreground.sum()) * math.prod(spacing_mm) / 1000
        volume = min(low * (high / low) ** randomness.uniform(key, "volume"), available / 4)
        radius = (3000 * volume / (4 * math.pi)) ** (1 / 3)
        centre = foreground_voxel(self._places(look, foreground, key), key, "centre")
        shape = tuple(foreground.shape[1:])
        reach = (1 + self.transport) * radius + 3 * self.edge_mm[1] + 2 * max(spacing_mm)
        window = box(shape, centre, [reach / mm for mm in spacing_mm])
        cut = (slice(None), *window)
        if volume > 4 and self.push_mm:
            push = self.push_mm * randomness.uniform(key, "push")
            s, amount = _pushed(s, amount, foreground, centre, radius, push, spacing_mm)
        edge = between(self.edge_mm, key, "edge")
        p = self._shape(window, centre, radius, edge, spacing_mm, key).to(s) * foreground[cut]
        changed = self._painted(s[cut], p, look, spacing_mm, radius, key)
        if volume > 1 and randomness.uniform(key, "core") < self.core:
            inner = self._shape(window, centre, radius / 2, edge / 2, spacing_mm, key).to(s)
            inner = inner * p  # its flow is another one, and may leave the lesion
            changed = self._painted(
                changed, inner, look, spacing_mm, radius, randomness.key(key, "core")
            )
        changed = changed.clamp(0, 1)
        difference = (changed - s[cut]).abs().amax(0, keepdim=True)
        # the neighbours' too: a lesion has no holes where it happens to look like its place
        seen = (max_pool3d(difference[None], 3, stride=1, padding=1)[0] > _SEEN) & (p > _EDGE)
        s, amount = s.clone(), amount.clone()
        s[cut] = changed
        amount[cut] = torch.maximum(amount[cut], p * seen)
        return s, amount

    def _places(self, look: "_LesionLook", foreground: Tensor, key: int) -> Tensor:
        """Where the centre of a lesion may be."""
        if randomness.uniform(key, "white matter") >= self.white_matter or not look.white.any():
            return foreground
        near = look.white & look.near
        if randomness.uniform(key, "periventricular") < self.periventricular and near.any():
            return near
        return look.white

    def _shape(
        self,
        window: Box,
        centre: tuple[int, int, int],
        radius: float,
        edge: float,
        spacing_mm: Spacing,
        key: int,
    ) -> Float[Tensor, "1 _ _ _"]:
        """P in a window: a ball carried by a flow, its border softened."""
        offset = offsets_mm(window, centre, spacing_mm, torch.zeros(()))
        if self.transport:
            shape = tuple(offset.shape[1:])
            v = divergence_free(shape, radius / 2, spacing_mm, key)
            v = v * (self.transport * radius * randomness.uniform(key, "transport"))
            u = exponential(-v / torch.tensor(spacing_mm).view(3, 1, 1, 1))
            offset = sample(offset, identity(shape) + u)
        # a linear edge of one voxel: as sharp as the grid can show
        step = math.prod(spacing_mm) ** (1 / 3)
        p = ((radius - offset.square().sum(0, keepdim=True).sqrt()) / step + 0.5).clamp(0, 1)
        return gaussian(p, tuple(edge / mm for mm in spacing_mm))

    def _painted(
        self,
        s: Tensor,
        p: Tensor,
        look: "_LesionLook",
        spacing_mm: Spacing,
        radius: float,
        key: int,
    ) -> Tensor:
        """The signal in a window with the look of a lesion where P is."""
        weight = p.sum().clamp_min(1e-6)
        erased = between(self.erased, key, "erased")
        noise = torch.ones_like(p)
        if self.texture:
            grain = max(radius * (0.1 + 0.4 * randomness.uniform(key, "grain")), min(spacing_mm))
            sigma = tuple(grain / mm for mm in spacing_mm)
            n = smooth_noise((1, *p.shape[1:]), sigma, key, "texture").to(s)
            noise = 1 + self.texture * randomness.uniform(key, "roughness") * n
        channels = []
        for c, (signal, sign, size) in enumerate(zip(s, look.signs, look.ranges, strict=True)):
            usual = randomness.uniform(key, "usual", c) < self.usual
            mild, strong = self.change
            change = mild * (strong / mild) ** randomness.uniform(key, "change", c)
            change *= size * (sign if usual else -sign)
            mean = (signal * p[0]).sum() / weight
            channels.append(signal + p[0] * (erased * (mean - signal) + change * noise)[0])
        return torch.stack(channels)


@dataclass(frozen=True)
class _LesionLook:
    """What lesions look like in a volume, per channel.

    Arguments:
        signs: 1 where they are mostly brighter, -1 where they are mostly darker
        ranges: between dark and bright tissue
        white: deep voxels of white matter's brightness in the first channel
        near: what is near a ventricle
    """

    signs: tuple[float, ...]
    ranges: tuple[float, ...]
    white: Bool[Tensor, "1 d h w"]
    near: Bool[Tensor, "1 d h w"]

    @classmethod
    def of(
        cls, s: Tensor, foreground: Tensor, spacing_mm: Spacing, sign: int | None
    ) -> "_LesionLook":
        depth = gaussian(foreground.float(), tuple(_DEPTH_MM / mm for mm in spacing_mm))
        depth = depth.masked_fill(~foreground, 0.0)
        inside = depth[foreground][::_STRIDE]
        shallow, deep = inside.quantile(0.3), inside.quantile(0.7)
        cortex, depths = (depth > 0) & (depth <= shallow), depth >= deep
        signs, ranges, middles = [], [], []
        for signal in s:
            levels = signal[foreground[0]][::_STRIDE]
            low, high = levels.quantile(torch.tensor([0.05, 0.95]).to(signal))
            white, shell = signal[depths[0]].median(), signal[cortex[0]]
            tissue = shell[shell > (low + white) / 2]
            grey = tissue.median() if len(tissue) else low
            darker = bool(white - grey > _CLEARLY * (high - low))
            signs.append(float(sign) if sign is not None else -1.0 if darker else 1.0)
            ranges.append(float(high - low))
            middles.append(white)
        away = (s[:1] - middles[0]).abs() / max(ranges[0], 1e-6)
        ventricle = depths & (away > _FLUID)
        return cls(
            tuple(signs),
            tuple(ranges),
            white=(depth > shallow) & (away < _TISSUE),
            near=gaussian(ventricle.float(), tuple(_NEAR_MM / mm for mm in spacing_mm)) > 0.1,
        )


def divergence_free(
    shape: tuple[int, int, int], smoothness_mm: float, spacing_mm: Spacing, *parts: int | str
) -> Float[Tensor, "3 d h w"]:
    """A velocity field without divergence, V = ∇ × A, of a root mean square of 1/√3 per axis.

    A are potentials of two scales, `smoothness_mm` and half of it. Derivatives are central
    differences, so that the central divergence is zero to rounding away from the border.

    Arguments:
        shape: of the grid
        smoothness_mm: correlation length of the coarser potentials
        spacing_mm: voxel size along d, h, w
        parts: of the key
    """
    # two voxels more on each side: central differences of central differences
    grown = tuple(n + 2 for n in shape)
    potential = torch.zeros(3, *grown)
    for octave in range(2):
        sigma = tuple(max(smoothness_mm / 2**octave / mm, 1.0) for mm in spacing_mm)
        potential += smooth_noise((3, *grown), sigma, *parts, "potential", octave) / 4**octave
    slopes = [
        [_central(potential[i], axis, mm) for axis, mm in enumerate(spacing_mm)] for i in range(3)
    ]
    v = torch.stack(
        [
            slopes[2][1] - slopes[1][2],
            slopes[0][2] - slopes[2][0],
            slopes[1][0] - slopes[0][1],
        ]
    )
    return v / v.square().sum(0).mean().sqrt().clamp_min(1e-12)


def _central(field: Tensor, axis: int, step: float) -> Tensor:
    """Central difference along an axis, the outermost voxels of all axes left out."""
    core = [slice(1, -1)] * 3
    ahead, behind = list(core), list(core)
    ahead[axis], behind[axis] = slice(2, None), slice(None, -2)
    return (field[tuple(ahead)] - field[tuple(behind)]) / (2 * step)


def _pushed(
    s: Tensor,
    amount: Tensor,
    foreground: Tensor,
    centre: tuple[int, int, int],
    radius: float,
    push_mm: float,
    spacing_mm: Spacing,
) -> tuple[Tensor, Tensor]:
    """Tissue moved away from a centre, most at the radius, not at all at the brain's border."""
    window = box(tuple(foreground.shape[1:]), centre, [_REACH * radius / mm for mm in spacing_mm])
    cut = (slice(None), *window)
    offset = offsets_mm(window, centre, spacing_mm, s)
    r = offset.square().sum(0, keepdim=True).sqrt() / radius
    # r exp((1 - r²) / 2) has its largest value 1 at r = 1; it ends at the window's border
    profile = torch.exp((1 - r.square()) / 2) * (1 - r / _REACH).clamp_min(0)
    inner = gaussian(foreground[cut].float(), tuple(4.0 / mm for mm in spacing_mm))
    taper = ((inner - 0.6) / 0.4).clamp(0, 1) * foreground[cut]
    # x(p + u) takes what lies towards the centre
    velocity = -push_mm * profile * taper * offset / radius
    u = exponential(velocity / torch.tensor(spacing_mm).to(velocity).view(3, 1, 1, 1))
    s, amount = s.clone(), amount.clone()
    s[cut] = torch.where(foreground[cut], warp(s[cut], u), s[cut])
    amount[cut] = warp(amount[cut], u) * foreground[cut]
    return s, amount


def _with_vessels(s: Tensor, foreground: Tensor, spacing_mm: Spacing, key: int) -> Tensor:
    """Bright curves near the border of the brain, where two smooth fields are near zero."""
    shape = (2, *foreground.shape[1:])
    sigma = tuple(8.0 / mm for mm in spacing_mm)
    a, b = smooth_noise(shape, sigma, key, "vessels").abs()
    width = 0.1 + 0.15 * randomness.uniform(key, "width")
    inner = gaussian(foreground.float(), tuple(_CORTEX_MM / mm for mm in spacing_mm))
    near = (inner < 0.85 + 0.15 * randomness.uniform(key, "near")) & foreground
    vessel = (1 - torch.maximum(a, b)[None] / width).clamp(0, 1) * near
    bright = 0.8 + 0.2 * randomness.uniform(key, "bright")
    return torch.lerp(s, torch.full_like(s, bright), vessel)
