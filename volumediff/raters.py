r"""Whose labels a model learns, where several readers have labelled the same images.

With R readers, m_r the label map of reader r and V_v = #\{r : m_r = v\} the votes for a value v:

    majority    argmax_v V_v, or the consensus that the data set brings
    drawn       m_r, with r drawn anew for every sample
    consensus   argmax_{v > 0} V_v where at least c readers gave that value, else background, with
                c drawn from 1..R; the network is told c / R

so that a model of drawn maps has the spread of the readers, and one of the consensus is asked for
any degree of agreement. Where one person has labelled, its map is that of the only reader.

References:
    Amit et al. (2023), Annotator Consensus Prediction for Medical Image Segmentation with
        Diffusion Models, arXiv:2306.09004, equation 5 and algorithm 1
    Kohl et al. (2018), A Probabilistic U-Net for Segmentation of Ambiguous Images,
        arXiv:1806.05034, which trains on a drawn reader
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from volumediff.component import Component
from volumediff.randomness import uniform

__all__ = ["ConsensusRater", "DrawnRater", "MajorityRater", "Opinion", "Rater", "agreed"]


@dataclass(frozen=True, eq=False)
class Opinion:
    """The label map of one sample.

    Arguments:
        label: what is learnt
        level: share of the readers that agree at least, in (0, 1]; None for rules that tell none
    """

    label: UInt8[Tensor, "1 d h w"]
    level: float | None = None


@dataclass(frozen=True)
class Rater(Component):
    """Which label map of several readers is learnt.

    Attributes:
        tells: whether the network is told a level of agreement, one scalar more
        several: whether the data must have several readers for it to mean anything
    """

    tells: ClassVar[bool] = False
    several: ClassVar[bool] = True

    @abstractmethod
    def opinion(
        self,
        label: UInt8[Tensor, "1 d h w"],
        readers: UInt8[Tensor, "r d h w"] | None,
        *,
        key: int,
    ) -> Opinion:
        """The label map of a sample; everything random comes from the key.

        Arguments:
            label: the consensus
            readers: label maps of the readers; None where one person has labelled
            key: of the sample
        """

    def consensus_level(self, readers: int) -> float | None:
        """The level that is nearest to the majority of R readers; None for rules without one."""
        return None


@dataclass(frozen=True)
class MajorityRater(Rater):
    """What most readers say, or the consensus that the data set brings."""

    several: ClassVar[bool] = False

    def opinion(
        self,
        label: UInt8[Tensor, "1 d h w"],
        readers: UInt8[Tensor, "r d h w"] | None,
        *,
        key: int,
    ) -> Opinion:
        return Opinion(label)


@dataclass(frozen=True)
class DrawnRater(Rater):
    """One reader, drawn anew for every sample, so that the readers' spread is learnt."""

    def opinion(
        self,
        label: UInt8[Tensor, "1 d h w"],
        readers: UInt8[Tensor, "r d h w"] | None,
        *,
        key: int,
    ) -> Opinion:
        if readers is None:
            return Opinion(label)
        chosen = int(uniform(key, "reader") * len(readers))
        return Opinion(readers[chosen : chosen + 1])


@dataclass(frozen=True)
class ConsensusRater(Rater):
    """What at least c of R readers say, c drawn for every sample; the network is told c / R."""

    tells: ClassVar[bool] = True

    def opinion(
        self,
        label: UInt8[Tensor, "1 d h w"],
        readers: UInt8[Tensor, "r d h w"] | None,
        *,
        key: int,
    ) -> Opinion:
        maps = label if readers is None else readers
        least = 1 + int(uniform(key, "level") * len(maps))
        return Opinion(agreed(maps, least), least / len(maps))

    def consensus_level(self, readers: int) -> float | None:
        return -(-readers // 2) / max(readers, 1)


def agreed(readers: UInt8[Tensor, "r d h w"], least: int) -> UInt8[Tensor, "1 d h w"]:
    """The label with most votes where these are at least so many, else background.

    Labels with equally many votes are told apart as in the majority: the smaller value wins.
    """
    result = torch.zeros_like(readers[:1])
    most = torch.zeros_like(result)
    for value in torch.unique(readers).tolist():
        if value > 0:
            votes = (readers == value).sum(0, keepdim=True).to(torch.uint8)
            wins = votes > most
            result[wins], most[wins] = value, votes[wins]
    result[most < least] = 0
    return result
