r"""Region selectors: which voxels of a volume are redrawn.

found   what a first pass found most abnormal, M = dilate(a₁ > Q_q(a₁))
given   the region that comes with the volume: `Localizer.localize(..., region=...)`
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._filters import dilate, inside_quantile
from volumediff.component import Component

__all__ = ["FoundSelector", "Given", "Selector"]


@dataclass(frozen=True)
class Selector(Component, ABC):
    """A region of a volume; `two_pass` says whether a first pass finds it, `takes_region` whether
    the caller gives it."""

    two_pass: ClassVar[bool] = False
    takes_region: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, context: MethodContext) -> Float[Tensor, "1 1 d h w"]:
        """The region, 1 inside."""


@dataclass(frozen=True)
class FoundSelector(Selector):
    """The most abnormal part of the foreground, by the map of a first pass.

    Arguments:
        quantile: q, share of the foreground that is kept
        dilate_mm: half-width of the dilation
    """

    two_pass: ClassVar[bool] = True
    quantile: float = 0.98
    dilate_mm: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share in (0, 1), got {self.quantile}.")

    def __call__(self, context: MethodContext) -> Float[Tensor, "1 1 d h w"]:
        """The most abnormal part, dilated."""
        top = inside_quantile(context.prior_map, self.quantile, foreground=context.foreground)
        m = ((context.prior_map > top) & context.foreground).to(context.x.dtype)
        m = dilate(m, radius_mm=self.dilate_mm, spacing_mm=context.spacing_mm)
        context.trace["inpaint/mask"] = m.bool()
        return m


@dataclass(frozen=True)
class Given(Selector):
    """The region that the caller gives with the volume.

    Arguments:
        dilate_mm: half-width by which the region grows
    """

    takes_region: ClassVar[bool] = True
    dilate_mm: float = 0.0

    def __call__(self, context: MethodContext) -> Float[Tensor, "1 1 d h w"]:
        """The region, dilated.

        Raises:
            ValueError: the volume came without one
        """
        if context.region is None:
            raise ValueError(
                "selector given: expected a region to redraw, got none; pass region= with the "
                "volume, or use the selector found, which finds one."
            )
        m = context.region.to(context.x.dtype)
        m = dilate(m, radius_mm=self.dilate_mm, spacing_mm=context.spacing_mm)
        context.trace["given/mask"] = m.bool()
        return m
