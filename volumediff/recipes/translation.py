r"""Channels of a volume given its other channels,

.. math:: p(x_T\,|\,x_S), \qquad S = \{1, \ldots, c\} \setminus T,

such as FLAIR given T1w. The network sees x_S beside the noisy x_T, both in the state space; every
source is an image of its own, so that an autoencoder of single channels serves any number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["Translation"]


@dataclass(frozen=True)
class Translation(Recipe):
    """The target channels; all other channels of the volume are the condition.

    Arguments:
        targets: channels that are drawn, by their names in data.channels or by their numbers,
            0 being the first and -1 the last
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Saharia et al. (2022), Palette: Image-to-Image Diffusion Models, arXiv:2111.05826
        Friedrich et al. (2024), cWDM: Conditional Wavelet Diffusion Models for Cross-Modality 3D
        Medical Image Synthesis, arXiv:2411.17203
    """

    teaches: ClassVar[str] = "translation"
    targets: tuple[int | str, ...] = (-1,)
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets: expected one or more different channels, got {list(self.targets)}."
            )

    @property
    def classes(self) -> int:
        return 0

    def numbered(self, names: Sequence[str] | None) -> "Translation":
        known = {name: i for i, name in enumerate(names or ())}
        unknown = [t for t in self.targets if isinstance(t, str) and t not in known]
        if unknown:
            raise ValueError(
                f"targets: expected names of data.channels ({', '.join(known) or 'none'}), got "
                f"{unknown[0]}."
            )
        return replace(self, targets=tuple(known.get(t, t) for t in self.targets))

    def problem(self, c: int) -> str | None:
        """Why volumes of c channels cannot be translated."""
        numbers = [t for t in self.targets if isinstance(t, int)]
        beyond = [t for t in numbers if not -c <= t < c]
        if beyond:
            return (
                f"targets: expected channels from 0 to {c - 1}, got {beyond[0]}; name them, as in "
                "data.channels=[T1w,FLAIR] recipe.targets=[FLAIR]."
            )
        if len({t % c for t in numbers}) < len(numbers):
            return f"targets: expected different channels, got {numbers}, of {c} channels."
        if c <= len(self.targets):
            return (
                f"expected volumes with a channel beside the {len(self.targets)} that are drawn, "
                f"got {c} channels in all; name them, as in data.channels=[T1w,FLAIR]."
            )
        return None

    def diffused(self, c: int) -> tuple[int, ...]:
        return tuple(t % c for t in self.targets if isinstance(t, int))

    def given(self, c: int) -> tuple[int, ...]:
        """Numbers of the source channels, in the order of the volume."""
        return tuple(i for i in range(c) if i not in self.diffused(c))

    def channels(self, c: int) -> int:
        return len(self.targets)

    def image_channels(self, c: int) -> tuple[int, ...]:
        sources = (1,) * (c - len(self.targets))
        return (c, *sources) if self.atlas else sources

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        x, c = subject.x, len(subject.x)
        sources = (x[i : i + 1] for i in self.given(c))
        return Target(x[list(self.diffused(c))], (*shown(self, atlas), *sources))
