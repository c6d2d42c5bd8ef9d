"""Calibrations: statistics and thresholds of a method, from healthy volumes new to its model.

Thresholds are quantiles of the normalized healthy maps. `calibrate.fit` makes a `Calibration` for
one method and one model; it is stored as one safetensors file with a record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from volumediff.anomaly.normalization import Statistics
from volumediff.errors import DataError
from volumediff.metrics.calibration_error import Probability
from volumediff.metrics.detection import Histogram, total
from volumediff.metrics.superlevel import CountByThreshold, UpperPart
from volumediff.storage.records import Record
from volumediff.storage.tensors import load, save

__all__ = ["Calibration"]


class StoredProbability(Record):
    """Steps of `metrics.calibration_error.Probability`."""

    edges: Annotated[tuple[float, ...], Field(min_length=1)]
    values: Annotated[tuple[float, ...], Field(min_length=1)]


class StoredUpperPart(Record):
    """What a file says of an `UpperPart`, with the steps of its number of components."""

    shape: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
    voxel_ml: PositiveFloat
    floor: float


class StoredCalibration(Record):
    """What a calibration's file says beside its tensors."""

    format: Literal[4] = 4
    fingerprint: str
    scores: Annotated[tuple[float, ...], Field(min_length=1)]
    each: NonNegativeInt
    finding_ml: NonNegativeFloat
    upper: tuple[StoredUpperPart, ...]
    validation_threshold: float | None
    probability: StoredProbability | None


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a method and a model give on healthy volumes.

    Arguments:
        fingerprint: identifies the method's components; another method refuses it
        statistics: those of the method's normalization
        healthy: histogram of the finished healthy maps in the foreground
        scores: volume scores of the healthy volumes
        validation_threshold: best Dice on validation volumes, once `validate` was called
        each: histogram of each healthy volume
        errors: mean of the map of each run, a row per healthy volume; None without runs
        probability: of a lesion by map value, on the same volumes
        finding_ml: smallest volume of a finding, in millilitres
        upper: the upper part of each healthy map
        counts: number of findings of each healthy map by threshold, of at least `finding_ml`
    """

    fingerprint: str
    statistics: Statistics
    healthy: Histogram
    scores: tuple[float, ...]
    validation_threshold: float | None = None
    each: tuple[Histogram, ...] = ()
    errors: Float[Tensor, "m n"] | None = None
    probability: Probability | None = None
    finding_ml: float = 0.0
    upper: tuple[UpperPart, ...] = ()
    counts: tuple[CountByThreshold, ...] = ()

    @property
    def volumes(self) -> int:
        """Number of healthy volumes."""
        return len(self.scores)

    def without(self, number: int) -> "Calibration":
        """The calibration without one of its healthy volumes, for a rule that is tried on it.

        The statistics stay: its map is normalized with those of the other volumes already.
        """

        def rest(parts: tuple) -> tuple:
            return parts[:number] + parts[number + 1 :]

        each, kept = rest(self.each), [i for i in range(self.volumes) if i != number]
        return replace(
            self,
            healthy=total(each),
            scores=rest(self.scores),
            each=each,
            errors=None if self.errors is None else self.errors[kept],
            upper=rest(self.upper),
            counts=rest(self.counts),
        )

    def save(self, path: Path) -> None:
        """Writes one file, whole and with its SHA-256."""
        tensors = {f"statistics.{k}": v for k, v in self.statistics.items()}
        for name, h in {"healthy": self.healthy, **_numbered(self.each)}.items():
            tensors[f"{name}.keys"] = torch.from_numpy(h.keys.astype(np.int32))
            # most values of a map occur once: half of the file would be zeros of int64
            fits = h.healthy.max(initial=0) <= np.iinfo(np.int32).max
            counts = h.healthy.astype(np.int32 if fits else np.int64)
            tensors[f"{name}.counts"] = torch.from_numpy(counts)
        if self.errors is not None:
            tensors["errors"] = self.errors
        for i, (part, steps) in enumerate(zip(self.upper, self.counts, strict=True)):
            tensors |= _stored(f"upper-{i}", part, steps)
        record = StoredCalibration(
            fingerprint=self.fingerprint,
            scores=self.scores,
            each=len(self.each),
            finding_ml=self.finding_ml,
            upper=tuple(
                StoredUpperPart(shape=part.shape, voxel_ml=part.voxel_ml, floor=part.floor)
                for part in self.upper
            ),
            validation_threshold=self.validation_threshold,
            probability=self.probability and StoredProbability(**asdict(self.probability)),
        )
        save(path, tensors, record)

    @staticmethod
    def load(path: Path) -> "Calibration":
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing, damaged or of another format
        """
        advice = "remove it to calibrate again"
        tensors, meta = load(path, StoredCalibration, advice=advice)

        def histogram(name: str) -> Histogram:
            counts = tensors.pop(f"{name}.counts").numpy().astype(np.int64)
            return Histogram(tensors.pop(f"{name}.keys").numpy(), counts, np.zeros_like(counts))

        errors = tensors.pop("errors", None)
        try:
            healthy = histogram("healthy")
            each = tuple(histogram(f"volume-{i}") for i in range(meta.each))
            upper = [_upper(tensors, f"upper-{i}", part) for i, part in enumerate(meta.upper)]
        except KeyError as error:
            raise DataError(f"{path}: damaged: has no {error}; {advice}.") from None
        return Calibration(
            fingerprint=meta.fingerprint,
            statistics={k.removeprefix("statistics."): v for k, v in tensors.items()},
            healthy=healthy,
            scores=meta.scores,
            validation_threshold=meta.validation_threshold,
            each=each,
            errors=errors,
            probability=meta.probability and Probability(**dict(meta.probability)),
            finding_ml=meta.finding_ml,
            upper=tuple(part for part, _ in upper),
            counts=tuple(steps for _, steps in upper),
        )


def _numbered(histograms: Sequence[Histogram]) -> dict[str, Histogram]:
    return {f"volume-{i}": h for i, h in enumerate(histograms)}


def _stored(name: str, part: UpperPart, steps: CountByThreshold) -> Mapping[str, Tensor]:
    return {
        f"{name}.index": torch.from_numpy(part.index),
        f"{name}.values": torch.from_numpy(part.values),
        f"{name}.levels": torch.from_numpy(steps.levels),
        f"{name}.counts": torch.from_numpy(steps.counts),
    }


def _upper(
    tensors: dict[str, Tensor], name: str, meta: StoredUpperPart
) -> tuple[UpperPart, CountByThreshold]:
    index, values, levels, counts = (
        tensors.pop(f"{name}.{part}").numpy() for part in ("index", "values", "levels", "counts")
    )
    part = UpperPart(meta.shape, meta.voxel_ml, index, values, meta.floor)
    return part, CountByThreshold(levels, counts, meta.floor)
