"""Calibrations: statistics and thresholds of a method, from healthy volumes new to its model.

Thresholds are quantiles of the normalized healthy maps. `calibrate.fit` makes a `Calibration` for
one method and one model; it is stored as one safetensors file with a record.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt
from torch import Tensor

from volumediff.anomaly.normalization import Statistics
from volumediff.errors import DataError
from volumediff.metrics.calibration_error import Probability
from volumediff.metrics.detection import Histogram
from volumediff.storage.records import Record
from volumediff.storage.tensors import load, save

__all__ = ["Calibration"]


class StoredProbability(Record):
    """Steps of `metrics.calibration.Probability`."""

    edges: Annotated[tuple[float, ...], Field(min_length=1)]
    values: Annotated[tuple[float, ...], Field(min_length=1)]


class StoredCalibration(Record):
    """What a calibration's file says beside its tensors."""

    format: Literal[3] = 3
    fingerprint: str
    scores: Annotated[tuple[float, ...], Field(min_length=1)]
    each: NonNegativeInt
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
    """

    fingerprint: str
    statistics: Statistics
    healthy: Histogram
    scores: tuple[float, ...]
    validation_threshold: float | None = None
    each: tuple[Histogram, ...] = ()
    errors: Float[Tensor, "m n"] | None = None
    probability: Probability | None = None

    @property
    def volumes(self) -> int:
        """Number of healthy volumes."""
        return len(self.scores)

    def save(self, path: Path) -> None:
        """Writes one file, whole and with its SHA-256."""
        tensors = {f"statistics.{k}": v for k, v in self.statistics.items()}
        for name, h in {"healthy": self.healthy, **_numbered(self.each)}.items():
            tensors[f"{name}.keys"] = torch.from_numpy(h.keys.astype(np.int32))
            tensors[f"{name}.counts"] = torch.from_numpy(h.healthy.astype(np.int64))
        if self.errors is not None:
            tensors["errors"] = self.errors
        record = StoredCalibration(
            fingerprint=self.fingerprint,
            scores=self.scores,
            each=len(self.each),
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
            counts = tensors.pop(f"{name}.counts").numpy()
            return Histogram(tensors.pop(f"{name}.keys").numpy(), counts, np.zeros_like(counts))

        errors = tensors.pop("errors", None)
        try:
            healthy = histogram("healthy")
            each = tuple(histogram(f"volume-{i}") for i in range(meta.each))
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
        )


def _numbered(histograms: Sequence[Histogram]) -> dict[str, Histogram]:
    return {f"volume-{i}": h for i, h in enumerate(histograms)}
