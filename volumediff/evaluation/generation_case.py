"""What is kept of a volume that is compared: a few kilobytes, whatever its size."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from volumediff.data.foreground import foreground
from volumediff.evaluation.generation_features import VolumeFeatures
from volumediff.evaluation.generation_volumes import ComparedVolume
from volumediff.metrics.consistency import through_plane
from volumediff.metrics.memorization import thumbnails
from volumediff.metrics.power_spectrum import power_spectrum

__all__ = ["LEVELS", "VolumeSummary", "summary_of"]

LEVELS = np.linspace(0, 1, 201)
"""Levels of the quantiles of the intensities."""


@dataclass(frozen=True, eq=False)
class VolumeSummary:
    """One volume.

    Arguments:
        case, patient: whose it is
        quantiles: of the intensities of every channel, at `LEVELS`
        foreground_ml: volume above Otsu's threshold, in one part and without holes
        labels_ml: label value -> its volume; empty without labels
        power: by frequency, mean over the channels
        through_plane: consistency of the slices along d, h, w, see `metrics.consistency`
        thumbnails: for `metrics.memorization`; of a training volume the first and the last alone
        vector: features; None without
    """

    case: str
    patient: str
    quantiles: Float[np.ndarray, "c q"]
    foreground_ml: float
    labels_ml: dict[int, float]
    power: Float[np.ndarray, "s"]
    through_plane: tuple[float, float, float]
    thumbnails: Float[np.ndarray, "k c a b e"]
    vector: Float[np.ndarray, "f"] | None


def summary_of(volume: ComparedVolume, features: VolumeFeatures | None) -> VolumeSummary:
    """The summary of a volume."""
    x, spacing = volume.x, volume.spacing_mm
    voxel_ml = float(np.prod(spacing)) / 1000
    inside = foreground(x[0].numpy(), "otsu")
    labels: dict[int, float] = {}
    if volume.label is not None:
        values, counts = np.unique(volume.label.numpy(), return_counts=True)
        labels = {int(v): float(n) * voxel_ml for v, n in zip(values, counts, strict=True) if v}
    spectra = torch.stack([power_spectrum(channel, spacing_mm=spacing) for channel in x])
    return VolumeSummary(
        volume.case.id,
        volume.case.patient,
        np.quantile(x.flatten(1).numpy(), LEVELS, axis=1).T,
        float(inside.sum()) * voxel_ml,
        labels,
        spectra.mean(0).numpy(),
        through_plane(x.mean(0), foreground=torch.from_numpy(inside), spacing_mm=spacing),
        thumbnails(x),
        None if features is None else np.asarray(features.of(volume), np.float64),
    )
