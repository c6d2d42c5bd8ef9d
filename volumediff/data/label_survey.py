r"""What is labelled in the cases of a data set, and how much of it the spacing of a run leaves.

With :math:`V_v` the volume of label v in the files and :math:`V'_v` that on the grid of the run,
both summed over cases, the label keeps the share :math:`V'_v / V_v`. A label vanishes where no
voxel of it is left in any case, and is too small to be learnt where the middle case has fewer than
`FEWEST` voxels of it left: it has no inside then.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.truth import marked

__all__ = ["CaseLabels", "KeptLabel", "kept", "labels_of", "value_name"]

FEWEST = 8  # voxels, two along each axis
SLACK = 1e-3  # spacings that differ by less are the same


@dataclass(frozen=True, eq=False)
class CaseLabels:
    """The label maps of a case; values are those of the consensus and of every reader.

    Arguments:
        case: id
        names: label value -> what it stands for, where the data set says so
        voxels: label value -> voxels in the file of the consensus
        values: that any label map has, without the background
        readers: how many have labelled it
        spacing_mm: of the file along d, h, w
        left: label value -> voxels at the run's spacing; None where it was not computed
        ratio: volume of a voxel of the run over that of the file
    """

    case: str
    names: Mapping[int, str]
    voxels: Mapping[int, int]
    values: frozenset[int]
    readers: int
    spacing_mm: tuple[float, float, float]
    left: Mapping[int, int] | None = None
    ratio: float = 1.0


@dataclass(frozen=True)
class KeptLabel:
    """What the spacing leaves of one label.

    Arguments:
        value: of the label
        cases: that have it
        gone: of these, how many lose all of it
        share: of its volume that is left, over all cases; above 1 where it grows
        voxels: in the file and at the run's spacing, of the middle case
    """

    value: int
    cases: int
    gone: int
    share: float
    voxels: tuple[float, float]

    @property
    def lost(self) -> bool:
        """Whether there is nothing left that could be learnt."""
        before, after = self.voxels
        return self.gone == self.cases or (after < FEWEST <= before)


def labels_of(case: Case, preprocessing: Preprocessing, *, left: bool) -> CaseLabels | None:
    """Reads the label maps of a case; None where it has none.

    Arguments:
        preprocessing: of the run
        left: whether it is computed what the spacing leaves

    Raises:
        DataError: a label map is refused
    """
    found = marked(case, None, preprocessing.policy)
    if found.label is None:
        return None
    counts = _counts(found.label.array)
    values = frozenset(counts).union(*(_counts(reader.array) for reader in found.readers))
    spacing = found.label.spacing_mm
    wanted = preprocessing.spacing_mm or spacing
    kept, ratio = None, float(np.prod(wanted) / np.prod(spacing))
    if left:
        same = all(abs(a / b - 1) < SLACK for a, b in zip(wanted, spacing, strict=True))
        kept = counts if same else _counts(preprocessing.label_at_spacing(found.label).numpy())
    readers = max(len(found.readers), 1)
    return CaseLabels(case.id, case.names, counts, values, readers, spacing, kept, ratio)


def kept(found: Sequence[CaseLabels], values: Iterable[int]) -> list[KeptLabel]:
    """What is left of each label in the cases where that was computed."""
    result = []
    for value in values:
        cases = [c for c in found if c.left is not None and c.voxels.get(value)]
        if not cases:
            continue
        before = np.array([c.voxels[value] for c in cases], float)
        after = np.array([(c.left or {}).get(value, 0) for c in cases], float)
        file_mm3 = np.array([np.prod(c.spacing_mm) for c in cases])
        ratio = np.array([c.ratio for c in cases])
        share = float((after * ratio * file_mm3).sum() / (before * file_mm3).sum())
        middle = (float(np.median(before)), float(np.median(after)))
        result.append(KeptLabel(value, len(cases), int((after == 0).sum()), share, middle))
    return result


def value_name(value: int, names: Mapping[int, str]) -> str:
    """A label as messages call it: `2 (fimbria)`."""
    return f"{value} ({names[value]})" if value in names else str(value)


def _counts(array: np.ndarray) -> dict[int, int]:
    counts = np.bincount(array.ravel(), minlength=1)
    return {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v}
