"""Oracle Dice: what an autoencoder of masks gives back of true masks, by label and lesion size.

A segmentation in its latent space is decoded by it, so that this is about the best that one can
reach there, however well the diffusion model is trained. It is measured on the validation volumes
with the best checkpoint when training ends, written to RUN/oracle_dice.json, and copied with the
autoencoder into the runs that use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from volumediff.metrics.lesion_dice import LesionDice, lesion_dice
from volumediff.storage.records import Record, read

__all__ = [
    "ORACLE",
    "LabelOracle",
    "OracleDice",
    "OracleMeasure",
    "SizeRange",
    "oracle_in",
    "oracle_remarks",
]

ORACLE = "oracle_dice.json"
# Ends of the size ranges in voxels: cubes of 2, 4, 8 and 16 voxels, as one latent voxel of stride
# 2 or 4 stands for 8 or 64.
EDGES = (8, 64, 512, 4096)


class SizeRange(Record):
    """Lesions of `least <= voxels < below`.

    Arguments:
        least, below: ends of the range in voxels; None is without end
        lesions: how many there are in the validation volumes
        dice: their mean Dice; None without lesions
        worst: the smallest Dice
    """

    least: int
    below: int | None
    lesions: int
    dice: float | None
    worst: float | None


class LabelOracle(Record):
    """One label.

    Arguments:
        volumes: those that have it, before or after
        dice: mean Dice over these; None without any
        sizes: its lesions by size
    """

    volumes: int
    dice: float | None
    sizes: tuple[SizeRange, ...]


class OracleDice(Record):
    """oracle_dice.json of the run of an autoencoder of masks.

    Arguments:
        checkpoint, weights_sha256: what was measured
        volumes: number of validation volumes
        voxel_mm3: volume of a voxel, of the first of them
        labels: by value
    """

    checkpoint: str
    weights_sha256: str
    volumes: int
    voxel_mm3: float
    labels: dict[str, LabelOracle]

    def lines(self) -> list[str]:
        """For people: a line per label."""
        found = []
        for value, label in self.labels.items():
            if label.dice is None:
                found.append(f"  label {value}: in none of {self.volumes} validation volumes")
                continue
            known = [s for s in label.sizes if s.dice is not None]
            sizes = ", ".join(f"{_range(s)} {s.dice:.3f} ({s.lesions})" for s in known)
            found.append(
                f"  label {value}: {label.dice:.3f} in {label.volumes} volumes; lesions of so "
                f"many voxels: {sizes}"
            )
        return found


def _range(size: SizeRange) -> str:
    if size.below is None:
        return f"{size.least} and more"
    return f"{size.least} to {size.below - 1}"


@dataclass
class _OfLabel:
    """What was found of a label so far."""

    dice: list[float] = field(default_factory=list)
    lesions: list[LesionDice] = field(default_factory=list)


class OracleMeasure:
    """Collects label maps before and after the autoencoder, volume by volume.

    Arguments:
        values: of the labels
    """

    def __init__(self, values: Sequence[int]) -> None:
        self._labels = {value: _OfLabel() for value in values}
        self._volumes, self._voxel_mm3 = 0, 0.0

    def add(
        self,
        found: UInt8[Tensor, "d h w"],
        truth: UInt8[Tensor, "d h w"],
        *,
        spacing_mm: tuple[float, float, float],
    ) -> None:
        """A volume after and before the autoencoder."""
        self._volumes += 1
        self._voxel_mm3 = self._voxel_mm3 or prod(spacing_mm)
        for value, label in self._labels.items():
            a, y = found == value, truth == value
            size = int(a.sum()) + int(y.sum())
            if size:
                label.dice.append(2 * int((a & y).sum()) / size)
                label.lesions += lesion_dice(a, y, spacing_mm=spacing_mm)

    def result(self, *, checkpoint: str, digest: str) -> OracleDice:
        """Means over volumes, and over lesions of a size."""
        return OracleDice(
            checkpoint=checkpoint,
            weights_sha256=digest,
            volumes=self._volumes,
            voxel_mm3=self._voxel_mm3,
            labels={str(v): _summary(label) for v, label in self._labels.items()},
        )


def _summary(label: _OfLabel) -> LabelOracle:
    sizes = []
    for least, below in zip((1, *EDGES), (*EDGES, None), strict=True):
        dice = [
            each.dice
            for each in label.lesions
            if least <= each.voxels and (below is None or each.voxels < below)
        ]
        mean = sum(dice) / len(dice) if dice else None
        sizes.append(
            SizeRange(
                least=least,
                below=below,
                lesions=len(dice),
                dice=mean,
                worst=min(dice) if dice else None,
            )
        )
    mean = sum(label.dice) / len(label.dice) if label.dice else None
    return LabelOracle(volumes=len(label.dice), dice=mean, sizes=tuple(sizes))


def oracle_in(folder: Path) -> OracleDice | None:
    """What was measured of an autoencoder, from its run or a copy; None where it was not.

    Raises:
        DataError: the file is damaged
    """
    path = folder / ORACLE
    if not path.is_file():
        return None
    advice = "remove it and train the autoencoder again: the same command measures it anew"
    return read(path, OracleDice, advice=advice)


def oracle_remarks(oracle: OracleDice | None) -> Sequence[str]:
    """What a user should know before masks are diffused in a latent space."""
    if oracle is None:
        return (
            "space.autoencoder: what it gives back of masks was not measured, so that no bound of "
            "the Dice is known; use an autoencoder of masks (recipe=label_maps) that was trained "
            "to its end.",
        )
    first = (
        "space.autoencoder: its oracle Dice, about the best that segmentations in its space reach:"
    )
    return (first, *oracle.lines())
