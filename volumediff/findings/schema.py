"""The format of <case>_desc-anomaly_findings.json: one entry per finding of one case.

A finding is a connected component (26 neighbours) of the anomaly mask on the grid of the file; in
<case>_desc-label_findings.json, of one label of a segmentation, and scores are probabilities.
Lengths are millimetres in RAS world coordinates (x to the right, y anterior, z superior), volumes
millilitres, numbers rounded to six significant digits, millimetres to two decimals. What is not
known is null. The file depends on the written outputs and the input volume alone: no times, no
paths. `VERSION` rises when a field changes its meaning or goes; readers may ignore new fields.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from volumediff.storage.records import parse_file

__all__ = [
    "DISCLAIMERS",
    "FORMAT",
    "LABEL_DISCLAIMERS",
    "VERSION",
    "CaseFindings",
    "Finding",
    "FindingIntensity",
    "FindingTail",
    "FindingThreshold",
    "HealthyFindings",
    "Level",
    "Place",
    "TemplateLocation",
    "Urgency",
    "read_findings",
]

FORMAT, VERSION = "volumediff-findings", 1
DISCLAIMERS = (
    "Research use only. Not a medical device, not for diagnosis.",
    "A finding is a place where the volume deviates from what a model of healthy volumes expects; "
    "it is no lesion until a reader says so, and a volume without findings is not therefore "
    "healthy.",
    "Urgency is an order of reading by fixed rules, not a clinical score.",
)
LABEL_DISCLAIMERS = (
    DISCLAIMERS[0],
    "A finding is a connected part of a label that a model gave; it is what the label stands for "
    "only when a reader says so, and a volume without findings may hold what the model missed.",
    DISCLAIMERS[2],
)

Millimetres = tuple[float, float, float]
Level = Literal["routine", "soon", "now"]


@dataclass(frozen=True)
class TemplateLocation:
    """Where a finding lies in MNI152 space; only for files whose form code says MNI152.

    Arguments:
        grey, white, other: mean share of the tissues of the template over the finding's voxels;
            `other` is fluid, skull and everything outside the brain
        seed: name of the nearest of the 160 functional seeds of Dosenbach et al. (2010)
        seed_distance_mm: from the finding's centre to it
    """

    grey: float
    white: float
    other: float
    seed: str
    seed_distance_mm: float


@dataclass(frozen=True)
class Place:
    """Where a finding lies.

    Arguments:
        centre_mm: centre of mass of the voxels, each counted once; may lie outside of a bent one
        peak_mm: voxel with the highest map
        box_low_mm, box_high_mm: world-aligned box around the whole voxels
        laterality: against the plane through the middle of the foreground's left-right extent;
            `bilateral` beyond 5 mm and with a tenth of the voxels on both sides, else `midline`
            where the centre is within 5 mm of the plane
        front_back: third of the foreground's extent along y that holds the centre
        up_down: third along z
        region: the three in words
        template: in MNI152 space, where the file says that it is
    """

    centre_mm: Millimetres
    peak_mm: Millimetres
    box_low_mm: Millimetres
    box_high_mm: Millimetres
    laterality: Literal["left", "right", "midline", "bilateral"]
    front_back: Literal["posterior", "middle", "anterior"]
    up_down: Literal["inferior", "middle", "superior"]
    region: str
    template: TemplateLocation | None


@dataclass(frozen=True)
class FindingIntensity:
    """One channel in a finding, against the pseudo-healthy volume, in the unit of the file.

    Arguments:
        channel: its name
        observed: mean of the volume
        expected: mean of the pseudo-healthy volume
        contrast: observed minus expected
        relative: contrast as a share of the range from the 2nd to the 98th percentile of the
            volume in the foreground
        direction: sign of the contrast; `as expected` within 2 % of that range
    """

    channel: str
    observed: float
    expected: float
    contrast: float
    relative: float
    direction: Literal["brighter", "darker", "as expected"]


@dataclass(frozen=True)
class Urgency:
    """In which order to look at findings; see `urgency.py` for the rule.

    Arguments:
        level: routine, soon or now
        reason: what decided it, in words
    """

    level: Level
    reason: str


@dataclass(frozen=True)
class FindingTail:
    """How often a healthy volume has a finding at least as extreme; see
    `metrics.cluster_inference`.

    Arguments:
        probability: by peak, extent and mass together, at least 1 / (volumes + 1)
        peak, extent, mass: by one of them
        volumes: healthy calibration volumes that the finding was compared with
    """

    probability: float
    peak: float
    extent: float
    mass: float
    volumes: int


@dataclass(frozen=True)
class Finding:
    """One connected component of the mask.

    Arguments:
        id: number of the finding in its case, the most urgent first, then by severity
        volume_ml: voxels times the volume of one
        foreground_share: volume over that of the foreground
        place: where it lies
        mean_score, peak_score: of the map, in its own unit
        severity: integral of the map over the finding, mean_score times volume_ml
        probability: mean calibrated probability of its voxels, the share of them that is expected
            to be lesion; peak_probability the highest; of a segmentation, those of its label as
            the model gave them
        healthy_tail: probability that a healthy volume has a finding as extreme; null where the
            threshold is not one of healthy volumes
        uncertainty: mean deviation of the map between the seeds, before normalization
        relative_uncertainty: that over the mean of the same map, if the run kept it
        intensities: per channel, if the method makes a pseudo-healthy volume
        urgency: in which order to look
        shares: what each member of a fusion adds to the finding, as a share of what all of them
            add; empty for other methods
        label: value of the label of a segmentation; null for anomaly maps
    """

    id: str
    volume_ml: float
    foreground_share: float
    place: Place
    mean_score: float
    peak_score: float
    severity: float
    probability: float | None
    peak_probability: float | None
    healthy_tail: FindingTail | None
    uncertainty: float | None
    relative_uncertainty: float | None
    intensities: tuple[FindingIntensity, ...]
    urgency: Urgency
    shares: dict[str, float] = field(default_factory=dict)
    label: int | None = None


@dataclass(frozen=True)
class HealthyFindings:
    """False alarms in healthy volumes.

    Arguments:
        volumes: how many were looked at
        voxels: mean share of the foreground above the threshold
        findings: mean number of findings
        affected: share of the volumes with any finding
    """

    volumes: int
    voxels: float
    findings: float
    affected: float


@dataclass(frozen=True)
class FindingThreshold:
    """What made the mask.

    Arguments:
        value: the mask is where the map is higher
        rule: how the value was chosen
        calibrated_probability: whether map values have probabilities of a lesion
        finding_ml: smallest volume of a finding, in millilitres
        healthy: findings in healthy volumes at this rule, each of the calibration volumes left
            out in turn; null where that is not known
    """

    value: float | None
    rule: str | None
    calibrated_probability: bool
    finding_ml: float
    healthy: HealthyFindings | None


@dataclass(frozen=True)
class CaseFindings:
    """The file.

    Arguments:
        case, patient: as in the data set
        method: name of the method
        fingerprint: of the method's components
        supervision: what its training needed
        scope: what the method claims to find
        weights_sha256: of the run
        inputs_sha256: of the volumes, by channel
        threshold: of the mask
        volume_score: of the whole volume
        foreground_ml: what was looked at
        statement: what was found, in one sentence
        findings: one entry each; none where the mask is empty or the method gave none
        conventions: axes and units
        disclaimers: what the file is not
        format, version: of the file
    """

    case: str
    patient: str | None
    method: str | None
    fingerprint: str | None
    supervision: str | None
    scope: str | None
    weights_sha256: str | None
    inputs_sha256: dict[str, str]
    threshold: FindingThreshold
    volume_score: float | None
    foreground_ml: float
    statement: str
    findings: tuple[Finding, ...]
    conventions: str = "RAS millimetres: x to the right, y anterior, z superior; millilitres"
    disclaimers: tuple[str, ...] = DISCLAIMERS
    format: Literal["volumediff-findings"] = FORMAT
    version: Literal[1] = VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values, format and version first."""
        values = asdict(self)
        head = {name: values.pop(name) for name in ("format", "version")}
        return {**head, **values}


def read_findings(path: Path) -> CaseFindings:
    """The findings of a case, as they were written; fields that are not known are left out.

    Raises:
        DataError: damaged, or a field that does not fit
    """
    return parse_file(path, CaseFindings, advice="find them again: volumediff findings")
