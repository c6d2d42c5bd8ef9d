r"""Contract of segmentation methods: a trained run and a volume in, labels and their spread out.

A method is one YAML in `configs/segmentation`, `{name: label_diffusion, samples: 5}`: the name is
a file of this folder, or `package.module:Class`; the other keys are arguments of its constructor.
With p_l the probabilities of the labels and p_0 = 1 - \sum_l p_l that of the background,

    y = argmax_l p_l,  h = -Σ_l p_l log p_l,

where overlapping labels that sum to more than one are scaled to sum to one in h.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from volumediff import config
from volumediff.condition import Condition

__all__ = ["Segmentation", "Segmenter", "load_segmenter"]

Labels = Float[Tensor, "1 l d h w"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a method says about one volume.

    Arguments:
        values: label values, in the order of the channels
        probabilities: p_l of each label, without the background
        variance: of the memberships over the samples, v_l; None for methods that draw none
        samples: the memberships of every sample, if they were asked for
    """

    values: tuple[int, ...]
    probabilities: Labels
    variance: Labels | None = None
    samples: Float[Tensor, "n l d h w"] | None = None

    @property
    def shares(self) -> Float[Tensor, "1 _ d h w"]:
        """p_0, p_1, ..., the background first, scaled to sum to one."""
        every = self._every
        return every / every.sum(dim=1, keepdim=True)

    @property
    def labels(self) -> UInt8[Tensor, "1 1 d h w"]:
        """y, the value of the most probable label; 0 for the background."""
        values = torch.tensor(
            [0, *self.values], dtype=torch.uint8, device=self.probabilities.device
        )
        return values[self._every.argmax(dim=1, keepdim=True)]

    @property
    def entropy(self) -> Float[Tensor, "1 1 d h w"]:
        """h in nats, the background included."""
        share = self.shares
        return -torch.special.xlogy(share, share).sum(dim=1, keepdim=True)

    @property
    def _every(self) -> Float[Tensor, "1 _ d h w"]:
        p = self.probabilities
        return torch.cat([(1 - p.sum(dim=1, keepdim=True)).clamp_min(0), p], dim=1)


class Segmenter(ABC):
    """A method that segments with the result of a trained run."""

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raises ValueError, with the reason, for a model with which the method is meaningless."""

    @abstractmethod
    def segment(
        self,
        model: nn.Module,
        x: Float[Tensor, "1 c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        spacing_mm: tuple[float, float, float],
        key: int,
        condition: Condition = Condition(),  # noqa: B008 - frozen and empty
    ) -> Segmentation:
        """Segments one volume; the same arguments give the same bits.

        Arguments:
            model: what the run's task trains, in evaluation mode
            x: the volume, as preprocessed for training
            foreground: voxels of the imaged object
            spacing_mm: voxel size along d, h, w
            key: of everything that is drawn
            condition: what else the network is conditioned on
        """


def load_segmenter(name: str, overrides: Sequence[str] = ()) -> Segmenter:
    """A segmentation method.

    Arguments:
        name: of a file that ships with the package, the path of a YAML file, or
            `package.module:Class`
        overrides: `key=value` overrides, such as `samples=10` or `sampler.steps=50`

    Raises:
        UsageError: unknown file, key or component, or a wrong value
    """
    if ":" in name:
        tree = config.overridden({"name": name}, overrides)
    else:
        tree = config.load(config.config_path("segmentation", name), overrides)
    return config.build("segmenter", tree, where=name)
