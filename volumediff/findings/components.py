r"""From the outputs of a case to its findings: the components of the mask, measured.

A finding is a set Ω of voxels of volume v each. With the map a, the volume x, the pseudo-healthy
volume x̂, the deviation u between seeds and the probability p that validation has fitted,

.. math:: \text{volume} = v |Ω|, \quad \text{severity} = v \sum_Ω a, \quad
          \text{contrast} = \overline{x - \hat x}, \quad \text{probability} = \overline{p(a)},

means over Ω. All of it is taken on the grid of the file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from volumediff.data.label_names import label_name, names_in
from volumediff.findings.mni import in_mni, template_place
from volumediff.findings.place import (
    Frame,
    frame_of,
    laterality,
    region_words,
    third,
    world,
)
from volumediff.findings.schema import (
    DISCLAIMERS,
    LABEL_DISCLAIMERS,
    CaseFindings,
    Finding,
    FindingIntensity,
    FindingTail,
    FindingThreshold,
    HealthyFindings,
    Place,
)
from volumediff.findings.urgency import LEVELS, urgency
from volumediff.findings.written import Written
from volumediff.metrics.calibration_error import Probability
from volumediff.metrics.cluster_inference import tail_probability
from volumediff.metrics.components import labelled
from volumediff.outputs.export import share_of

__all__ = ["case_findings", "components", "parts_of", "voxel_of", "voxels_of"]

# Intensities are compared in units of this range of percentiles, which single voxels do not move.
RANGE = (2.0, 98.0)
# A difference of less than this share of the range is within the noise of usual volumes.
EQUAL = 0.02

Voxels = Int[np.ndarray, "n 3"]
Part = tuple[int | None, Int[np.ndarray, "_ 3"]]
"""Label and voxels of a finding."""
Rule = Callable[[np.ndarray], np.ndarray]
"""From the values of a map to probabilities."""


def case_findings(written: Written) -> CaseFindings:
    """The findings of a case, the most urgent first."""
    facts = written.facts
    fitted = facts.get("probability")
    # a segmentation gives probabilities as they are
    probability = _probability(fitted) if written.labels is None else np.asarray
    found = [] if written.mask is None else _measured(written, probability)
    voxel_ml = _voxel_ml(written.grid.affine)
    return CaseFindings(
        case=written.case,
        patient=facts.get("patient"),
        method=facts.get("method"),
        fingerprint=facts.get("fingerprint"),
        supervision=facts.get("supervision"),
        scope=facts.get("scope"),
        weights_sha256=facts.get("weights_sha256"),
        inputs_sha256={n: entry["sha256"] for n, entry in facts.get("inputs", {}).items()},
        threshold=FindingThreshold(
            written.threshold,
            facts.get("threshold_rule"),
            calibrated_probability=bool(fitted),
            finding_ml=float(facts.get("finding_ml") or 0),
            healthy=_healthy(facts),
        ),
        volume_score=facts.get("score"),
        foreground_ml=_short(int(written.foreground.sum()) * voxel_ml),
        statement=" ".join([_statement(written, found), *facts.get("warnings", ())]),
        findings=tuple(found),
        disclaimers=DISCLAIMERS if written.labels is None else LABEL_DISCLAIMERS,
    )


def parts_of(written: Written) -> list[Part]:
    """Label and voxels of every finding: of the mask, or of each label of a segmentation."""
    if written.mask is None:
        return []
    if written.labels is None:
        return [(None, voxels) for voxels in components(written.mask)]
    values = [int(v) for v in np.unique(written.labels) if v]
    return [(v, voxels) for v in values for voxels in components(written.labels == v)]


def voxel_of(written: Written, finding: Finding) -> tuple[int, int, int]:
    """The voxel of the peak of a finding, from its millimetres."""
    inverse = np.linalg.inv(written.grid.affine)
    at = inverse[:3, :3] @ np.asarray(finding.place.peak_mm) + inverse[:3, 3]
    d, h, w = (round(v) for v in at.tolist())
    return d, h, w


def voxels_of(finding: Finding, at: tuple[int, int, int], parts: Sequence[Part]) -> Voxels:
    """The voxels of a finding.

    Arguments:
        finding: one of the case
        at: the voxel of its peak
        parts: of the case; see `parts_of`
    """
    return next(
        voxels
        for label, voxels in parts
        if label == finding.label and (voxels == np.asarray(at)).all(1).any()
    )


def components(mask: Bool[np.ndarray, "d h w"]) -> list[Voxels]:
    """Voxels of each connected component (26 neighbours), the largest first, then in order."""
    from scipy import ndimage

    labels, count = labelled(mask)
    parts = []
    for number, box in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        corner = [s.start for s in box]
        parts.append(np.argwhere(labels[box] == number) + corner)
    return sorted(parts, key=len, reverse=True)  # stable: equal sizes stay in order


def _measured(written: Written, probability: Rule | None) -> list[Finding]:
    frame = frame_of(written.foreground, written.grid.affine)
    parts = parts_of(written)
    if frame is None or not parts:
        return []
    scales = {name: _range(x, written.foreground) for name, x in written.images.items()}
    template = in_mni(written.native)
    found = [
        replace(
            _finding(written, voxels, frame, probability, scales, template=template), label=label
        )
        for label, voxels in parts
    ]
    found.sort(key=lambda f: (-LEVELS.index(f.urgency.level), -f.severity, -f.volume_ml))
    return [_numbered(f, number) for number, f in enumerate(found, start=1)]


def _numbered(finding: Finding, number: int) -> Finding:
    return replace(finding, id=f"{number:03d}")


def _finding(
    written: Written,
    voxels: Voxels,
    frame: Frame,
    probability: Rule | None,
    scales: Mapping[str, float],
    *,
    template: bool,
) -> Finding:
    at = tuple(voxels.T)
    scores = written.map[at].astype(np.float64)
    volume_ml = len(voxels) * _voxel_ml(written.grid.affine)
    severity = float(scores.mean()) * volume_ml
    p = None if probability is None else probability(scores)
    uncertainty, relative = _uncertainty(written, at)
    mean_p = None if p is None else float(p.mean())
    tail = _tail(written, scores, volume_ml)
    return Finding(
        id="",
        volume_ml=_short(volume_ml),
        foreground_share=_short(len(voxels) / int(written.foreground.sum())),
        place=_place(voxels, scores, frame, written.grid.affine, template=template),
        mean_score=_short(float(scores.mean())),
        peak_score=_short(float(scores.max())),
        severity=_short(severity),
        probability=None if mean_p is None else _short(mean_p),
        peak_probability=None if p is None else _short(float(p.max())),
        healthy_tail=tail,
        uncertainty=uncertainty,
        relative_uncertainty=relative,
        intensities=tuple(
            _intensity(name, written.images[name][at], healthy[at], scales[name])
            for name, healthy in written.healthy.items()
        ),
        urgency=urgency(
            volume_ml,
            severity,
            threshold=written.threshold,
            probability=mean_p,
            healthy_tail=None if tail is None else tail.probability,
            relative_uncertainty=relative,
        ),
        shares=_shares(written, at),
    )


def _tail(
    written: Written, scores: Float[np.ndarray, "n"], volume_ml: float
) -> FindingTail | None:
    """How a finding compares with the largest ones of healthy volumes, if those are known."""
    healthy = written.facts.get("healthy_findings")
    if not healthy or written.threshold is None:
        return None
    # null in the JSON is minus infinity: no finding
    rows = np.asarray([[-np.inf if v is None else v for v in row] for row in healthy])
    mass = float(scores.mean() - written.threshold) * volume_ml
    found = tail_probability((float(scores.max()), volume_ml, mass), rows)
    return FindingTail(
        _short(found.combined),
        _short(found.peak),
        _short(found.extent),
        _short(found.mass),
        found.volumes,
    )


def _healthy(facts: Mapping[str, Any]) -> HealthyFindings | None:
    rates = facts.get("healthy_rates")
    return None if not rates else HealthyFindings(**rates)


def _shares(written: Written, at: tuple[np.ndarray, ...]) -> dict[str, float]:
    """What each member of a fusion adds to a finding; nothing where none adds anything."""
    sums = {n: float(a[at].sum(dtype=np.float64)) for n, a in written.contributions.items()}
    found = {name: share_of(name, sums) for name in sums}
    return {name: share for name, share in found.items() if share is not None}


def _place(
    voxels: Voxels,
    scores: Float[np.ndarray, "n"],
    frame: Frame,
    affine: Float[np.ndarray, "4 4"],
    *,
    template: bool,
) -> Place:
    points = world(voxels, affine)
    centre = points.mean(0)
    # the box around whole voxels: half a voxel along every axis reaches this far in the world
    half = np.abs(affine[:3, :3]).sum(1) / 2
    side = laterality(points[:, 0], frame.middle_mm)
    y, z = (third(float(centre[a]), frame.low_mm[a], frame.high_mm[a]) for a in (1, 2))
    front_back = ("posterior", "middle", "anterior")[y]
    up_down = ("inferior", "middle", "superior")[z]
    return Place(
        centre_mm=_mm(centre),
        peak_mm=_mm(points[int(scores.argmax())]),
        box_low_mm=_mm(points.min(0) - half),
        box_high_mm=_mm(points.max(0) + half),
        laterality=side,
        front_back=front_back,
        up_down=up_down,
        region=region_words(side, front_back, up_down),
        template=template_place(points, centre) if template else None,
    )


def _intensity(name: str, x: np.ndarray, healthy: np.ndarray, scale: float) -> FindingIntensity:
    observed, expected = (float(a.mean(dtype=np.float64)) for a in (x, healthy))
    contrast = observed - expected
    relative = contrast / scale if scale > 0 else 0.0
    word = "as expected"
    if abs(relative) >= EQUAL:
        word = "brighter" if contrast > 0 else "darker"
    return FindingIntensity(
        name, _short(observed), _short(expected), _short(contrast), _short(relative), word
    )


def _uncertainty(
    written: Written, at: tuple[np.ndarray, ...]
) -> tuple[float | None, float | None]:
    if written.uncertainty is None:
        return None, None
    deviation = float(written.uncertainty[at].mean(dtype=np.float64))
    if written.ensemble is None:
        return _short(deviation), None
    level = float(written.ensemble[at].mean(dtype=np.float64))
    return _short(deviation), _short(deviation / level) if level > 0 else None


def _range(x: Float[np.ndarray, "d h w"], foreground: Bool[np.ndarray, "d h w"]) -> float:
    low, high = np.percentile(x[foreground], RANGE)
    return float(high - low)


def _probability(fitted: Mapping[str, Any] | None) -> Probability | None:
    if not fitted:
        return None
    return Probability(tuple(fitted["edges"]), tuple(fitted["values"]))


def _statement(written: Written, found: list[Finding]) -> str:
    if written.mask is None:
        return (
            "The method gave a map and no mask (its threshold needs a calibration, or the truth): "
            "no findings were looked for."
        )
    usual = _usual(_healthy(written.facts))
    if not found and written.labels is not None:
        return "Nothing found: no voxel has a label. This does not say that nothing is there."
    if not found:
        least = float(written.facts.get("finding_ml") or 0)
        size = f" of at least {least:g} ml" if least else ""
        return (
            f"Nothing found: no region{size} is above the threshold.{usual} This does not say "
            "that the volume is healthy."
        )
    volume = sum(f.volume_ml for f in found)
    counts = [(sum(f.urgency.level == level for f in found), level) for level in LEVELS[::-1]]
    split = ", ".join(f"{n} {level}" for n, level in counts if n)
    noun = "finding" if len(found) == 1 else "findings"
    whole = f"{len(found)} {noun} of {volume:.3g} ml together: {split}.{usual}"
    if written.labels is None:
        return whole
    values = sorted({f.label for f in found if f.label is not None})
    names = names_in(written.facts)
    by_label = []
    for v in values:
        own = [f.volume_ml for f in found if f.label == v]
        noun = "part" if len(own) == 1 else "parts"
        by_label.append(f"{label_name(v, names)} {sum(own):.3g} ml in {len(own)} {noun}")
    listed = "; ".join(by_label)
    return f"{whole} {listed[:1].upper()}{listed[1:]}."


def _usual(healthy: HealthyFindings | None) -> str:
    """What healthy volumes have, as a sentence."""
    if healthy is None:
        return ""
    return (
        f" At this threshold a healthy volume has {healthy.findings:.2g} findings on average, "
        f"and {1 - healthy.affected:.0%} of healthy volumes have none ({healthy.volumes} volumes, "
        "each left out in turn)."
    )


def _voxel_ml(affine: Float[np.ndarray, "4 4"]) -> float:
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def _mm(point: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    x, y, z = (round(float(v), 2) + 0.0 for v in point)  # no -0.0
    return x, y, z


def _short(value: float) -> float:
    """Six significant digits: equal on machines that sum in another order."""
    return float(f"{value:.6g}")
