"""Calibrations: what the maps of a method look like on healthy volumes that are new to its model.

Thresholds are quantiles of the normalized healthy maps. `calibrate.fit` makes a `Calibration` for
one method and one model; it is stored as safetensors and JSON.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly.normalization import Statistics
from volumediff.errors import DataError
from volumediff.metrics.calibration import Probability
from volumediff.metrics.detection import Histogram
from volumediff.storage.atomic import atomic

__all__ = ["Calibration"]

FORMAT = 2


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a method and a model give on healthy volumes.

    Arguments:
        fingerprint: identifies the method's blocks; another method refuses it
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

    def save(self, path: Path | str) -> None:
        """Writes `path`.safetensors and `path`.json; the JSON, written last, has its hash."""
        tensors = {f"statistics.{k}": v.contiguous() for k, v in self.statistics.items()}
        for name, h in {"healthy": self.healthy, **_numbered(self.each)}.items():
            tensors[f"{name}.keys"] = torch.from_numpy(h.keys.astype(np.int32))
            tensors[f"{name}.counts"] = torch.from_numpy(h.healthy.astype(np.int64))
        if self.errors is not None:
            tensors["errors"] = self.errors.contiguous()
        data = safetensors.torch.save(tensors)
        meta = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "scores": self.scores,
            "each": len(self.each),
            "validation_threshold": self.validation_threshold,
            "probability": None if self.probability is None else asdict(self.probability),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for ending, content in (("safetensors", data), ("json", json.dumps(meta).encode())):
            with atomic(f"{path}.{ending}") as file:
                file.write(content)

    @staticmethod
    def load(path: Path | str) -> "Calibration":
        """Reads what `save` wrote.

        Raises:
            DataError: a file is missing, damaged or of another format
        """
        try:
            data = Path(f"{path}.safetensors").read_bytes()
            meta: dict[str, Any] = json.loads(Path(f"{path}.json").read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no readable calibration ({error}); fit it again.") from error
        known = isinstance(meta, dict) and meta.get("format") == FORMAT
        if not known or hashlib.sha256(data).hexdigest() != meta.get("sha256"):
            raise DataError(
                f"{path}: the calibration is damaged or of another version; fit again."
            )
        tensors = safetensors.torch.load(data)

        def histogram(name: str) -> Histogram:
            counts = tensors.pop(f"{name}.counts").numpy()
            return Histogram(tensors.pop(f"{name}.keys").numpy(), counts, np.zeros_like(counts))

        errors = tensors.pop("errors", None)
        healthy = histogram("healthy")
        each = tuple(histogram(f"volume-{i}") for i in range(meta["each"]))
        return Calibration(
            fingerprint=meta["fingerprint"],
            statistics={k.removeprefix("statistics."): v for k, v in tensors.items()},
            healthy=healthy,
            scores=tuple(meta["scores"]),
            validation_threshold=meta["validation_threshold"],
            each=each,
            errors=errors,
            probability=_probability(meta.get("probability")),
        )


def _numbered(histograms: Sequence[Histogram]) -> dict[str, Histogram]:
    return {f"volume-{i}": h for i, h in enumerate(histograms)}


def _probability(values: Mapping[str, Sequence[float]] | None) -> Probability | None:
    if values is None:
        return None
    return Probability(tuple(values["edges"]), tuple(values["values"]))
