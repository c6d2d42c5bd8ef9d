"""Truth masks of cases: labels of a data set in any layout, or a folder of masks alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import patient_of, safe_id, survey_cases
from volumediff.data.layouts import LABEL_WORDS
from volumediff.errors import DataError
from volumediff.inference.inputs import stem_of

__all__ = ["Truth", "find_truths"]


@dataclass(frozen=True)
class Truth:
    """A mask and whose it is.

    Arguments:
        case, patient: as in the data set
        path: of the mask; an empty mask is a healthy volume
        attributes: of the case
        image: its first image, if there is one
    """

    case: str
    patient: str
    path: Path
    attributes: Mapping[str, str | float]
    image: Path | None = None


def find_truths(root: Path | str) -> dict[str, Truth]:
    """Truth by every name that an output may have: the case, or the file that was given.

    Raises:
        DataError: no mask at all
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"--truth {root}: expected a data set with labels, nothing is there.")
    found: dict[str, Truth] = {}
    cases = survey_cases(root)[0] if _has_volumes(root) else []
    for case in cases:
        if case.label is None:
            continue
        image = next(iter(case.images.values()))
        truth = Truth(case.id, case.patient, case.label, case.attributes, image)
        for name in (case.id, *(safe_id(stem_of(p)) for p in case.images.values())):
            found.setdefault(name, truth)
    if found:
        return found
    for path in sorted(root.glob("*.nii*")) if root.is_dir() else ():
        name, _, word = stem_of(path).rpartition("_")
        if name and word.lower() in LABEL_WORDS:
            found[safe_id(name)] = Truth(safe_id(name), patient_of(name), path, {})
    if not found:
        raise DataError(
            f"--truth {root}: found no masks; expected a data set with labels, or files named "
            "<case>_mask.nii.gz."
        )
    return found


def _has_volumes(root: Path) -> bool:
    return root.is_file() or any(root.rglob("*.nii*"))
