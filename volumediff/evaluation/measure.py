"""One map against one truth mask: all metrics of a volume.

Everything is counted on the file's own grid, inside the foreground that the method looked at and
in the lesions: lesion voxels that it did not look at count as its lowest value. What needs a file
that is not there, such as an uncertainty map, is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from volumediff.data.read_policy import WRITTEN
from volumediff.data.volume import Volume, check_grids, read
from volumediff.evaluation.confounding import origin_of
from volumediff.evaluation.truths import Truth
from volumediff.metrics import calibration_error, detection, normative
from volumediff.metrics.boxes import Matches, Response, inside, match, response
from volumediff.metrics.boxes import boxes as boxes_of
from volumediff.metrics.consistency import through_plane
from volumediff.metrics.lesions import Lesions, lesions
from volumediff.metrics.overlap import overlap
from volumediff.outputs.export import FOREGROUND, HEALTHY, MAP, MASK, UNCERTAINTY

__all__ = ["Measured", "Restored", "measure"]

Triple = tuple[float, float, float]
NAN = float("nan")
UNKNOWN = (NAN, NAN, NAN)
# Pseudo-healthy volumes have a frame per channel.


@dataclass(frozen=True, eq=False)
class Restored:
    """The pseudo-healthy volume of a case beside the volume itself.

    Arguments:
        rqi: restoration quality; nan for a volume with a lesion
        caci: changed in the lesion and nowhere else; nan without a lesion
        before, after: features of the volume and of the pseudo-healthy volume
        through_plane: consistency of the slices along d, h, w, relative to those of the volume
    """

    rqi: float
    caci: float
    before: normative.FeatureMoments
    after: normative.FeatureMoments
    through_plane: Triple


@dataclass(frozen=True, eq=False)
class Measured:
    """Metrics of one volume.

    Arguments:
        case, patient, group: which volume, of whom, and in which subgroup
        score: volume score of the method
        abnormal: whether the truth has a lesion
        ap, auroc: of the voxels; nan without a lesion
        dice: at the thresholds that have not seen the truth, by name
        lesions: lesion by lesion, of the method's own mask if it has one
        origin: attributes of the case that say where it comes from, see `confounding`
        associated: share of the associated changes in the method's own mask; nan without any
        histogram: of the map inside and outside the lesions
        marked: share of the foreground in the method's own mask; nan without a mask
        unseen: share of the lesion outside the foreground that the method looked at
        boxes: of the method's own mask against those of the lesions
        response: of the map inside and outside the boxes of the lesions
        reliability: of the map as a probability, which validation has fitted
        errors: of the uncertainty, with the wrong voxels of the mask as the abnormal ones
        through_plane: consistency of the slices of the map along d, h, w
        restored: the pseudo-healthy volume, if the method makes one
        cost: seconds, network_calls and peak_gb, as far as known
        reference: whether a healthy volume is one of those that others are compared with
    """

    case: str
    patient: str
    group: str
    score: float
    abnormal: bool
    ap: float
    auroc: float
    dice: Mapping[str, float]
    lesions: Lesions | None
    histogram: detection.Histogram
    origin: Mapping[str, str] = field(default_factory=dict)
    associated: float = NAN
    marked: float = NAN
    unseen: float = 0.0
    boxes: Matches | None = None
    response: Response | None = None
    reliability: calibration_error.Reliability | None = None
    errors: detection.Histogram | None = None
    through_plane: Triple = UNKNOWN
    restored: Restored | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    reference: bool = False


def measure(
    path: Path,
    truth: Truth,
    sidecar: Mapping[str, Any],
    *,
    by: str | None = None,
    cost: Mapping[str, float] | None = None,
) -> Measured:
    """Metrics of one map.

    Arguments:
        path: the map; foreground, mask and the other outputs lie beside it
        truth: mask or boxes with their case
        sidecar: content of the map's JSON
        by: attribute that names the subgroup
        cost: of the case, from the ledger
    """
    volume = read(path)
    marks = truth.marks(volume)
    spacing_mm = volume.spacing_mm
    scores = torch.from_numpy(volume.array[0])
    lesion, there = marks.lesion, marks.boxes
    own, seen = _label(path, MASK), _label(path, FOREGROUND)
    whole, own = own, None if own is None else own & ~marks.ignored
    seen = (torch.ones_like(lesion) if seen is None else seen) & ~marks.ignored
    scores = torch.where(seen, scores, scores[seen].min() if bool(seen.any()) else 0.0)
    counted = seen | lesion
    counts = detection.histogram(scores, lesion, foreground=counted)
    dice = {
        name: overlap(
            (scores > value) & seen, lesion, foreground=counted, spacing_mm=spacing_mm
        ).dice
        for name, value in sidecar.get("thresholds", {}).items()
    }
    d, h, w = lesion.shape
    box = inside(there, (d, h, w))
    return Measured(
        case=truth.case,
        patient=truth.patient_in(sidecar),
        group=str(truth.attributes.get(by, "")) if by else "",
        score=float(sidecar.get("score") or 0.0),
        abnormal=bool(lesion.any()),
        ap=detection.average_precision(counts),
        auroc=detection.auroc(counts),
        dice=dice,
        lesions=None
        if whole is None
        else lesions(whole, lesion, spacing_mm=spacing_mm, ignored=marks.ignored, scores=scores),
        histogram=counts,
        origin=origin_of(truth.attributes),
        associated=NAN if whole is None else _share(whole, marks.ignored),
        marked=NAN if own is None else float((own & seen).sum()) / max(int(seen.sum()), 1),
        unseen=float((lesion & ~seen).sum()) / max(int(lesion.sum()), 1),
        boxes=None if own is None else match(boxes_of(own, scores=scores), there),
        response=response(scores, box, foreground=counted) if bool(lesion.any()) else None,
        reliability=_reliability(counts, sidecar.get("probability")),
        errors=_errors(path, volume, own, lesion, counted),
        through_plane=through_plane(scores, foreground=seen, spacing_mm=spacing_mm),
        restored=_restored(path, truth, volume, lesion.numpy(), seen.numpy()),
        cost=dict(cost or {}),
    )


def _share(mask: Bool[torch.Tensor, "d h w"], of: Bool[torch.Tensor, "d h w"]) -> float:
    """Share of some voxels in the mask; nan without any."""
    return float(mask[of].float().mean()) if bool(of.any()) else NAN


def _beside(path: Path, name: str) -> Path:
    return path.with_name(path.name.replace(MAP, name))


def _label(path: Path, name: str) -> Bool[torch.Tensor, "d h w"] | None:
    if not _beside(path, name).is_file():
        return None
    return torch.from_numpy(read(_beside(path, name), kind="label").array[0] > 0)


def _reliability(
    counts: detection.Histogram, fitted: Mapping[str, Any] | None
) -> calibration_error.Reliability | None:
    if not fitted:
        return None
    probability = calibration_error.Probability(tuple(fitted["edges"]), tuple(fitted["values"]))
    return calibration_error.reliability(counts, probability)


def _errors(
    path: Path,
    volume: Volume,
    own: Bool[torch.Tensor, "d h w"] | None,
    lesion: Bool[torch.Tensor, "d h w"],
    counted: Bool[torch.Tensor, "d h w"],
) -> detection.Histogram | None:
    """Wrong voxels of the mask by uncertainty; what was not looked at is the least certain."""
    beside = _beside(path, UNCERTAINTY)
    if own is None or not beside.is_file():
        return None
    uncertainty = read(beside)
    check_grids(volume, uncertainty)
    u = torch.from_numpy(uncertainty.array[0])
    seen = _label(path, FOREGROUND)
    if seen is not None and bool(seen.any()):
        u = torch.where(seen, u, u[seen].max())
    return detection.histogram(u, own != lesion, foreground=counted)


def _restored(
    path: Path,
    truth: Truth,
    volume: Volume,
    lesion: Bool[np.ndarray, "d h w"],
    seen: Bool[np.ndarray, "d h w"],
) -> Restored | None:
    """The first channel of the pseudo-healthy volume, within the box around the foreground."""
    if not _beside(path, HEALTHY).is_file() or truth.image is None or not seen.any():
        return None
    image = read(truth.image, policy=truth.policy)
    healthy = read(_beside(path, HEALTHY), policy=WRITTEN)
    check_grids(volume, image)
    check_grids(volume, healthy)
    abnormal, around = bool(lesion.any()), _box(seen)
    lesion, seen = lesion[around], seen[around]
    x, restored = (v.array[0][around].astype(np.float32) for v in (image, healthy))
    # a large lesion is no part of the range of intensities
    usual = seen & ~lesion
    low, unit = normative.scale(x, usual if usual.any() else seen)
    x, restored = (x - low) / unit, (restored - low) / unit
    similarity = normative.ssim(x, restored)
    spacing_mm = volume.spacing_mm

    def slices(a: Float[np.ndarray, "d h w"]) -> Triple:
        tensors = torch.from_numpy(a), torch.from_numpy(seen)
        return through_plane(tensors[0], foreground=tensors[1], spacing_mm=spacing_mm)

    before, after = slices(x), slices(restored)
    ratios = [b / a if a > 0 else NAN for a, b in zip(before, after, strict=True)]
    return Restored(
        rqi=NAN
        if abnormal
        else normative.rqi(x, restored, foreground=seen, similarity=similarity),
        caci=normative.caci(foreground=seen, lesion=lesion, similarity=similarity),
        before=normative.moments(x, foreground=seen, spacing_mm=spacing_mm),
        after=normative.moments(restored, foreground=seen, spacing_mm=spacing_mm),
        through_plane=(ratios[0], ratios[1], ratios[2]),
    )


def _box(mask: Bool[np.ndarray, "d h w"]) -> tuple[slice, ...]:
    """The box around a mask, with a margin for the windows of SSIM."""
    box = []
    for axis in range(3):
        line = mask.any(axis=tuple(k for k in range(3) if k != axis)).nonzero()[0]
        low, high = int(line[0]), int(line[-1]) + 1
        margin = normative.RADIUS
        box.append(slice(max(low - margin, 0), min(high + margin, mask.shape[axis])))
    return tuple(box)
