"""A case: one examination of a patient, its files and what is known about it.

Which cases a folder has is known to `survey` and to the family `layouts`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from volumediff.storage.digests import sha256

__all__ = ["Box", "Case", "Contour", "Problem", "Sphere", "patient_of", "readable", "safe_id"]

Sphere = tuple[float, float, float, float]
"""(x, y, z, diameter) in millimetres along R, A, S."""

Box = tuple[int, int, int, int, int, int]
"""(d0, h0, w0, d1, h1, w1) in voxels of the first image as it is read, the ends exclusive."""

# BIDS allows a plus in the labels of its entities.
SAFE_ID = re.compile(r"[A-Za-z0-9._+-]{1,128}")
# An id without what tells examinations of one patient apart.
VISIT = re.compile(
    r"[_-](ses|session|visit|timepoint|tp|scan|run|followup|fu|slice)(-[A-Za-z0-9]+|\d+)$", re.I
)


@dataclass(frozen=True)
class Contour:
    """One contour on one slice.

    Arguments:
        slice: along the third axis of the file's own grid
        points: (x, y) in voxels along its first two axes; the last meets the first
        excludes: whether it is a hole
    """

    slice: int
    points: tuple[tuple[int, int], ...]
    excludes: bool = False


@dataclass(frozen=True)
class Case:
    """One examination of one patient.

    Arguments:
        id: unique in the data set, safe as a file name
        patient: equal for all examinations of a patient; splits keep patients together
        images: channel name -> file, in the order of the channels
        label: label file, if there is one; of several readers, the consensus of the data set
        attributes: age, sex, site, split and the like; `group` is `healthy` or `sick` where the
            data set knows
        lesions: the values of the label that are lesions; None means all but 0 and `ignored`
        ignored: values of the label that are neither lesion nor healthy, such as associated
            changes (oedema, mass effect, atrophy) or what nobody has looked at: neither hit nor
            miss
        boxes: truth that is boxes; () says that somebody has looked and found nothing
        spheres: what the boxes are around, where the data set says so: the truth is then inside
            of them
        associated: second label file, of associated changes alone: all values but 0
        labels: name of a reader -> label file of this reader, where several have read the
            images; without `label`, their majority is the label (`volumediff.data.readers`)
        contours: name of a reader -> what this reader drew on the slices of the first image, in
            place of label files; a reader without any marked nothing
        names: label value -> what it stands for, where the data set says so
    """

    id: str
    patient: str
    images: dict[str, Path]
    label: Path | None = None
    attributes: dict[str, str | float] = field(default_factory=dict)
    lesions: tuple[int, ...] | None = None
    ignored: tuple[int, ...] = ()
    boxes: tuple[Box, ...] | None = None
    spheres: tuple[Sphere, ...] = ()
    associated: Path | None = None
    labels: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    contours: Mapping[str, tuple[Contour, ...]] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether there is a label map, of one reader or of several."""
        return self.label is not None or bool(self.labels) or bool(self.contours)

    def unmarked(self) -> "Case":
        """The same without what is marked in it."""
        return replace(
            self, label=None, boxes=None, spheres=(), associated=None, labels={}, contours={}
        )

    @property
    def label_files(self) -> dict[str, Path]:
        """Every label map by what messages call it: `label`, `reader 1`, ..."""
        own = {} if self.label is None else {"label": self.label}
        return own | {f"reader {name}": path for name, path in self.labels.items()}


@dataclass(frozen=True)
class Problem:
    """What is not used of a data set, and why.

    Arguments:
        id: of the case, or what it is about
        message: one sentence
        severity: `error` is a case that cannot be used, `warning` what somebody may miss, `info`
            what was left out on purpose
        files: that are left out for this reason
    """

    id: str
    message: str
    severity: Literal["info", "warning", "error"] = "error"
    files: tuple[Path, ...] = ()


def safe_id(name: str) -> str:
    """The name itself where it is safe as a file name, else a cleaned one with a short hash."""
    if SAFE_ID.fullmatch(name) and not name.startswith("."):
        return name
    digest = sha256(_bytes_of(name))[:8]
    return f"{re.sub(r'[^A-Za-z0-9._+-]+', '-', name).strip('.-')[:100] or 'case'}-{digest}"


def patient_of(case_id: str) -> str:
    """The patient that an id names: `sub-01_ses-2` -> `sub-01`, `p07_visit2_slice45` -> `p07`."""
    case_id = readable(case_id)
    bids = re.search(r"(?:^|[_/])(sub-[A-Za-z0-9+]+)", case_id)
    if bids:
        return bids.group(1)
    shorter = VISIT.sub("", case_id)
    while shorter != case_id:
        case_id, shorter = shorter, VISIT.sub("", shorter)
    return case_id


def readable(name: str) -> str:
    """A name whose bytes are no UTF-8, such that it can be written into any file."""
    return _bytes_of(name).decode("utf-8", "backslashreplace")


def _bytes_of(name: str) -> bytes:
    """The bytes of a name: those of a file system, which need be no text, are as they were."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # JSON may have half of a surrogate pair
        return name.encode("utf-8", "surrogatepass")
