r"""Feature distillation: an encoder learns what a diffusion model sees at times of a policy,

.. math::
    j \sim \pi(\cdot | x), \qquad T_j(x) = E_D(z_{t_j}, t_j), \qquad
    \ell = \overline{\lVert n(P E(x)) - n(T_j(x)) \rVert^2} - R_j
           - (R_j - b(x)) \log \pi(j | x) + (R_j - b(x))^2 - \beta H(\pi(\cdot | x)),

with E_D the encoder of the frozen denoiser, E that of the student, which sees the volume itself, P
a projection and n the standardisation over channels. The reward of a time says how well the labels
m are read off its features by a linear head of its own, R_j = -CE(h_j(T_j(x)), m). Rewards and the
baseline b are constants in the term of the policy, whose mean gradient is that of the mean reward.

Policy and baseline are linear in the student's features, which they do not change; labels reach
heads and policy alone, never the student.

References:
    Yang and Wang (2023), Diffusion Model as Representation Learner (RepFusion), arXiv:2308.10916;
    Williams (1992), REINFORCE, Machine Learning 8
"""

from collections.abc import Sequence
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.features.grids import upright
from volumediff.model import Model, full_coordinates
from volumediff.networks._base import Network
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace
from volumediff.supervised_segmentation import UNIT_MM

__all__ = ["FeatureDistillation", "TimePolicy", "teacher_features"]

Features = Float[Tensor, "b f d2 h2 w2"]


class TimePolicy(nn.Module):
    """π(j | x) and the baseline b(x), linear in the mean features of a volume.

    Arguments:
        features: channels
        times: number of times to choose from
    """

    def __init__(self, features: int, times: int) -> None:
        super().__init__()
        self.choice = nn.Linear(features, times)
        self.baseline = nn.Linear(features, 1)
        nn.init.zeros_(self.choice.weight)  # no time is preferred at first
        nn.init.zeros_(self.choice.bias)

    def forward(
        self, pooled: Float[Tensor, "b f"]
    ) -> tuple[Float[Tensor, "b j"], Float[Tensor, "b"]]:
        """log π and b."""
        return self.choice(pooled).log_softmax(1), self.baseline(pooled)[:, 0]


class FeatureDistillation(nn.Module):
    """A student's encoder, and what chooses the times at which the teacher is looked at.

    Arguments:
        space: volumes <-> states, the teacher's
        network: whose encoder is the student
        recipe: labels, which say what a time is worth
        width: channels of the teacher's deepest features
        times: in (0, 1], to choose from
        entropy: β, what keeps all times in play
        dtype: in which the networks compute
    """

    diffuses: ClassVar[bool] = False

    def __init__(
        self,
        space: StateSpace,
        network: Network,
        recipe: Recipe,
        *,
        width: int,
        times: Sequence[float],
        entropy: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.space, self.network, self.recipe, self.dtype = space, network, recipe, dtype
        self.times, self.entropy = tuple(times), entropy
        features, classes = network.anatomy.channels, len(recipe.labels) + 1
        self.projection = nn.Conv3d(features, width, 1)
        self.policy = TimePolicy(features, len(self.times))
        self.heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for _ in self.times)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        buffers = self.space.buffers()
        return next(chain(self.network.parameters(), buffers), torch.empty(0)).device

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs."""
        return self.network

    def features(self, z: Float[Tensor, "b k d h w"], condition: Condition) -> Features:
        """What the student sees in clean states."""
        told = _placed(self.network, z, condition, self.dtype)
        found = self.network.features(z.to(self.dtype), z.new_zeros(len(z)), told)
        return found.to(z.dtype)

    def loss(self, batch: Batch, teacher: Model) -> Float[Tensor, "b"]:
        """One loss per sample; it follows from the sample and its key.

        Arguments:
            batch: coded labels, and the volume as the last image
            teacher: what is distilled
        """
        with torch.no_grad():
            z = self.space.encode(batch.images[-1])
        mine = self.features(z, batch.condition)
        log_p, baseline = self.policy(standardised(mine.detach()).flatten(2).mean(2))
        chances = log_p.detach().cpu()
        chosen = [self._drawn(p, key) for p, key in zip(chances, batch.keys, strict=True)]
        j = torch.tensor(chosen, device=z.device)
        t = torch.tensor([self.times[i] for i in chosen], dtype=torch.float64, device=z.device)
        seen = teacher_features(teacher, z, t, batch)
        error = self.read_error(seen, chosen, batch.x)
        gap = standardised(self.projection(mine)) - standardised(seen)
        entropy = -(log_p.exp() * log_p).sum(1)
        advantage = -error.detach() - baseline
        return (
            gap.square().flatten(1).mean(1)
            + error
            - advantage.detach() * log_p.gather(1, j[:, None])[:, 0]
            + advantage.square()
            - self.entropy * entropy
        )

    def read_error(
        self, seen: Features, chosen: Sequence[int], x: Float[Tensor, "b c d h w"]
    ) -> Float[Tensor, "b"]:
        """Cross entropy of the labels that the heads read off the teacher's features.

        Arguments:
            seen: features of the teacher
            chosen: the time of each sample
            x: coded labels, whose shares are averaged over the cells of the features
        """
        d, h, w = upright(self.space, seen).shape[2:]
        labels = self.recipe.coding.decode(x, spacing_mm=UNIT_MM)
        shares = torch.cat([(1 - labels.sum(1, keepdim=True)).clamp(0, 1), labels], dim=1)
        truth = F.adaptive_avg_pool3d(shares, (d, h, w))
        parts = zip(chosen, standardised(seen), strict=True)
        logits = torch.cat([self.heads[j](each[None]) for j, each in parts])
        log_p = upright(self.space, logits).log_softmax(1)
        return -(truth * log_p).sum(1).flatten(1).mean(1)

    def grid(self, shape: Shape) -> Shape:
        """Grid of the states of a volume."""
        return self.space.grid(shape)

    @staticmethod
    def _drawn(log_p: Float[Tensor, "_"], key: int) -> int:
        """The time of a sample, from its key alone."""
        total = log_p.double().exp().cumsum(0)
        below = (total <= uniform(key, "time") * float(total[-1])).sum()
        return min(int(below), len(log_p) - 1)


@torch.no_grad()
def teacher_features(
    teacher: Model, z: Float[Tensor, "b k d h w"], t: Float[Tensor, "b"], batch: Batch
) -> Features:
    """The deepest features of a denoiser that sees volumes behind noise.

    Arguments:
        teacher: told nothing but where a crop lies
        z: states of the volumes
        t: times in (0, 1]
        batch: the volumes, the last images, and the keys of their noise
    """
    noise = teacher.noise(batch.keys, tuple(batch.images[-1].shape[1:]))(0)
    shown, level = teacher.kernel.shown(teacher.kernel.corrupt(z, t, noise.to(z)), t)
    told = _placed(teacher.network, z, batch.condition, teacher.dtype)
    found = teacher.network.features(shown.to(teacher.dtype), level.to(z.dtype), told)
    return found.to(z.dtype)


def standardised(features: Float[Tensor, "*_ f d h w"]) -> Float[Tensor, "*_ f d h w"]:
    """Mean 0 and variance 1 over the channels of every position."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    low = wide.mean(-4, keepdim=True)
    spread = wide.var(-4, keepdim=True, correction=0)
    return ((wide - low) * (spread + 1e-5).rsqrt()).to(features.dtype)


def _placed(network: Network, z: Tensor, condition: Condition, dtype: torch.dtype) -> Condition:
    """The condition of a network that is told nothing but where its crop lies."""
    place = condition.coordinates
    if place is None and network.coordinates:
        place = full_coordinates(z).expand(len(z), -1, -1, -1, -1)
    return Condition(coordinates=None if place is None else place.to(dtype))
