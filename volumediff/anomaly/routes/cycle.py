"""From one modality to another and back, with a part hidden on the way forth."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.needs.model import PredictsMeans
from volumediff.anomaly.needs.training import TrainedOn
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import needs_sampler
from volumediff.component import Requirement
from volumediff.condition import Condition
from volumediff.data.regions import Region, Slabs
from volumediff.randomness import key
from volumediff.recipes.modality_cycle import ModalityCycle
from volumediff.samplers._base import Sampler

__all__ = ["Cycle"]


@dataclass(frozen=True)
class Cycle(Route):
    r"""From the channel i to the channel j and back, region by random region,

    .. math:: \tilde x_j \sim p(x_j\,|\,(1 - M)\, x_i, M), \qquad
              \hat x_i = E[x_i\,|\,\tilde x_j], \qquad
              a = \sum_M M\, a_M \Big/ \sum_M M,

    with a_M the map of channel i, and 0 where no region was. What is hidden is imagined as
    healthy tissue, and what has no counterpart in the other modality does not come back. Of x
    nothing but the channel i is looked at. The way forth is a chain from pure noise, the way back
    one prediction from pure noise: that is the mean, which a U-Net would learn. For checkpoints of
    the recipe modality_cycle, which name i and j.

    Arguments:
        region: how regions are drawn
        count: number of regions; each costs a chain and one call

    References:
        Liang et al. (2023), Modality Cycles with Masked Conditional Diffusion for Unsupervised
        Anomaly Segmentation in MRI, arXiv:2308.16150
    """

    chain: ClassVar[bool] = False
    own_map: ClassVar[bool] = False
    region: Region = field(default_factory=Slabs)
    count: int = 8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least 1 region, got {self.count}.")

    def noise_levels(self) -> list[Level]:
        """Pure noise."""
        return [Level(1.0)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do."""
        needs_sampler("cycle", sampler)

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A network that knows both directions; the way back is a mean."""
        return TrainedOn(ModalityCycle), PredictsMeans()

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume, with the channel i of the way back, and the map."""
        i = context.model.recipe.source
        total, weight = torch.zeros_like(context.x[:, :1]), torch.zeros_like(context.x[:, :1])
        healthy = torch.zeros_like(total)
        for draw in range(self.count):
            m = self.region(
                context.foreground[0],
                spacing_mm=context.spacing_mm,
                key=key(context.key, "mask", draw),
            )
            m = m[None].to(context.x.dtype)
            came = _back(context, _forth(context, m, sampler))[:, i : i + 1]
            total += m * context.compare(_with(context.kept, i, came))
            healthy += m * came
            weight += m
        context.maps.append(total / weight.clamp(min=1))
        own = context.x[:, i : i + 1]
        mean = torch.where(weight > 0, healthy / weight.clamp(min=1), own)
        yield _with(context.x, i, mean)


def _forth(
    context: MethodContext, m: Float[Tensor, "1 1 d h w"], sampler: Sampler
) -> Float[Tensor, "1 c d h w"]:
    """A volume drawn given the channel i outside of a region."""
    z = sampler.sample(
        context.denoise,
        context.model.kernel,
        context.model.kernel.prior(context.noise(-1).to(context.x)),
        sampler.times(context.schedule, start=1.0),
        condition=_told(context, context.x, m, context.model.recipe.source),
        noise=context.noise,
    )
    return context.decode(z)


def _back(context: MethodContext, x: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "1 c d h w"]:
    """The mean volume given the channel j of another."""
    condition = _told(context, x, torch.zeros_like(x[:, :1]), context.model.recipe.through)
    z_1 = context.model.kernel.prior(context.noise(-2).to(x))
    return context.decode(context.denoise(z_1, context.times(1.0), condition).x0)


def _told(context: MethodContext, x: Tensor, m: Tensor, channel: int) -> Condition:
    return context.model.told(context.condition, (context.model.recipe.hint(x, m, channel),), m)


def _with(x: Tensor, i: int, channel: Tensor) -> Float[Tensor, "1 c d h w"]:
    """The volume with another channel i."""
    return torch.cat([x[:, :i], channel, x[:, i + 1 :]], dim=1)
