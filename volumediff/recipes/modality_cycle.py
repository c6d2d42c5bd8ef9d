r"""A volume given one of its channels, in two directions with one network:

.. math:: p(x\,|\,(1 - M)\, x_i, M) \quad\text{and}\quad p(x\,|\,x_j),

forth from the channel i with a region M of it hidden, back from the channel j with nothing hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.data.regions import Region, Slabs
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["ModalityCycle"]


@dataclass(frozen=True)
class ModalityCycle(Recipe):
    """The volume; one channel of it, and the mask of what is hidden of that one, are conditions.

    Each direction is drawn half of the time. The channels that are not shown are 0, which tells
    the directions apart.

    Arguments:
        region: what is hidden on the way forth
        source: i, the channel that is shown on the way forth
        through: j, the channel that is shown on the way back
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Liang et al. (2023), Modality Cycles with Masked Conditional Diffusion for Unsupervised
        Anomaly Segmentation in MRI, arXiv:2308.16150; there the way back has a U-Net of its own
    """

    teaches: ClassVar[str] = "modality_cycle"
    needs_foreground: ClassVar[bool] = True
    shows_mask: ClassVar[bool] = True
    region: Region = field(default_factory=Slabs)
    source: int = 0
    through: int = 1
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.source, self.through) < 0 or self.source == self.through:
            raise ValueError(
                "expected two different channels as source and through, got "
                f"{self.source} and {self.through}."
            )

    @property
    def classes(self) -> int:
        return 0

    def problem(self, c: int) -> str | None:
        """Both channels must be there."""
        if max(self.source, self.through) < c:
            return None
        return (
            f"expected volumes with the channels {self.source} and {self.through}, got {c} of "
            "them; name them, as in data.channels=[FLAIR,T2w]."
        )

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c, c) if self.atlas else (c,)

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        m = subject.region(self.region, key)
        if uniform(key, "direction") < 0.5:
            channel = self.source
        else:
            channel, m = self.through, torch.zeros_like(m)
        hint = self.hint(subject.x[None], m[None], channel)[0]
        return Target(subject.x, (*shown(self, atlas), hint), mask=m)

    def hint(
        self, x: Float[Tensor, "b c d h w"], m: Float[Tensor, "b 1 d h w"], channel: int
    ) -> Float[Tensor, "b c d h w"]:
        """One channel outside of a region, 0 elsewhere.

        Raises:
            ValueError: the volume has not the two channels
        """
        problem = self.problem(x.shape[1])
        if problem:
            raise ValueError(f"recipe modality_cycle: {problem}")
        hint = torch.zeros_like(x)
        hint[:, channel] = x[:, channel] * (1 - m[:, 0])
        return hint
