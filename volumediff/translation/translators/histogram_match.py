r"""Baseline: the source itself, with its histogram matched to that of the targets,

.. math:: \hat x = Q_T(F_x(x)),

with F_x the distribution of the volume's foreground and Q_T the mean quantiles of the training
targets. Contrasts that are each other's inverse, as T1w and FLAIR are in parts, stay so.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.component import handed_in
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.translation.translators._base import TranslationPair
from volumediff.translation.translators._baseline import TranslationBaseline

__all__ = ["HistogramMatch"]

LEVELS = np.linspace(0, 1, 257)  # of the quantiles


@dataclass(frozen=True, repr=False)
class HistogramMatch(TranslationBaseline):
    """A copy of one source channel in the intensities of the targets.

    Arguments:
        source: the channel that is copied, 0 being the first of the sources
        quantiles: of each target channel, as `fit` finds them
    """

    source: int = 0
    quantiles: Float[np.ndarray, "t q"] | None = handed_in(None)

    def fit(self, pairs: Iterable[TranslationPair]) -> "HistogramMatch":
        found = [quantiles_of(pair.targets, pair.foreground[0]) for pair in pairs]
        if not found:
            raise ValueError("expected at least one training volume, got none.")
        return replace(self, quantiles=np.mean(found, axis=0))

    def draws(
        self,
        model: Model,
        sources: Float[Tensor, "1 s d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        key: int,
        condition: Condition,
    ) -> Iterator[Float[Tensor, "1 t d h w"]]:
        assert self.quantiles is not None, "fit comes first"
        if not 0 <= self.source < sources.shape[1]:
            raise ValueError(
                f"source: expected a channel from 0 to {sources.shape[1] - 1}, got {self.source}."
            )
        x = sources[0, self.source : self.source + 1]
        (own,) = quantiles_of(x, foreground[0, 0])
        ranks = np.interp(x[0].double().cpu().numpy(), *_rising(own, LEVELS))
        matched = [np.interp(ranks, LEVELS, q) for q in self.quantiles]
        yield torch.from_numpy(np.stack(matched))[None].to(sources)

    def __repr__(self) -> str:
        return f"HistogramMatch(source={self.source})"


def quantiles_of(
    x: Float[Tensor, "c d h w"], inside: Bool[Tensor, "d h w"]
) -> Float[np.ndarray, "c q"]:
    """Quantiles of each channel's foreground."""
    return np.quantile(x[:, inside].double().cpu().numpy(), LEVELS, axis=1).T


def _rising(
    points: Float[np.ndarray, "q"], values: Float[np.ndarray, "q"]
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Equal points once, with the mean of their values."""
    places, index = np.unique(points, return_inverse=True)
    return places, np.bincount(index, values) / np.bincount(index)
