"""Cases: which files belong together, and which cases belong to one patient.

A case is one examination: named images, perhaps a label, and attributes such as age. Four layouts
are read: a plain folder, nnU-Net raw, BIDS, and a MONAI datalist. The functions that know them
are in `layouts`; what they have in common is here.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from volumediff.errors import DataError

__all__ = ["Case", "Layout", "Problem", "find_cases", "survey_cases"]

Layout = Literal["auto", "folder", "nnunet", "bids", "datalist"]

SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# An id without what tells examinations of one patient apart.
VISIT = re.compile(
    r"[_-](ses|session|visit|timepoint|tp|scan|run|followup|fu)(-[A-Za-z0-9]+|\d+)$", re.I
)


@dataclass(frozen=True)
class Case:
    """One examination of one patient.

    Arguments:
        id: unique in the data set, safe as a file name
        patient: equal for all examinations of a patient; splits keep patients together
        images: channel name -> file, in the order of the channels
        label: label file, if there is one
        attributes: age, sex, split, fold and the like
    """

    id: str
    patient: str
    images: dict[str, Path]
    label: Path | None = None
    attributes: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A case that cannot be used, and why."""

    id: str
    message: str


def find_cases(
    root: Path | str, layout: Layout = "auto", channels: Sequence[str] | None = None
) -> list[Case]:
    """All cases below a folder (or of a datalist file), sorted by id.

    Arguments:
        root: the folder, or the JSON file of a datalist
        layout: `auto` decides by the files that are there
        channels: names of the images that every case must have, in this order; None takes the
            images that each case has

    Raises:
        DataError: no case, a missing channel, ambiguous files, or a path that leaves the root
    """
    cases, problems = survey_cases(root, layout, channels)
    if problems:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{root}: case {problems[0].id}: {problems[0].message}{rest}")
    return cases


def survey_cases(
    root: Path | str, layout: Layout = "auto", channels: Sequence[str] | None = None
) -> tuple[list[Case], list[Problem]]:
    """The usable cases, and the others with the reason."""
    from volumediff.data import layouts

    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: expected a data folder or a datalist, nothing is there.")
    readers = {
        "folder": layouts.folder,
        "nnunet": layouts.nnunet,
        "bids": layouts.bids,
        "datalist": layouts.datalist,
    }
    chosen = layouts.detect(root) if layout == "auto" else layout
    found, problems = readers[chosen](root)
    kept: dict[str, Case] = {}
    for case in found:
        case = replace(case, id=safe_id(case.id))
        message = None
        if case.id in kept:
            message = "two cases have this id; rename one."
        elif channels is not None:
            case, message = _with_channels(case, channels)
        elif not case.images:
            message = (
                f"has a label ({case.label}) but no image; add the image or remove the label."
            )
        if message:
            problems.append(Problem(case.id, message))
        else:
            kept[case.id] = case
    if not kept and not problems:
        raise DataError(
            f"{root}: no case found as layout '{chosen}'; expected .nii.gz files, one folder per "
            "case, nnU-Net raw, BIDS, or a datalist JSON."
        )
    return [kept[k] for k in sorted(kept)], problems


def _with_channels(case: Case, channels: Sequence[str]) -> tuple[Case, str | None]:
    have = {name.lower(): name for name in case.images}
    missing = [c for c in channels if c.lower() not in have]
    if missing:
        similar = [n for n in case.images if n.lower().endswith(f"_{missing[0].lower()}")]
        if similar:
            hint = f"several files fit: name one of {', '.join(similar)}."
        else:
            hint = f"it has {', '.join(case.images) or 'no image'}; add the file or name others."
        return case, f"missing channel '{missing[0]}': {hint}"
    return replace(case, images={c: case.images[have[c.lower()]] for c in channels}), None


def safe_id(name: str) -> str:
    """The name itself where it is safe as a file name, else a cleaned one with a short hash."""
    if SAFE_ID.fullmatch(name) and not name.startswith("."):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-')[:100] or 'case'}-{digest}"


def patient_of(case_id: str) -> str:
    """The patient that an id names: `sub-01_ses-2` -> `sub-01`, `p07_visit2` -> `p07`."""
    bids = re.search(r"(?:^|[_/])(sub-[A-Za-z0-9]+)", case_id)
    if bids:
        return bids.group(1)
    shorter = VISIT.sub("", case_id)
    while shorter != case_id:
        case_id, shorter = shorter, VISIT.sub("", shorter)
    return case_id
