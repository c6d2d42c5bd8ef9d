"""Splits: which cases train, validate, calibrate and test, patient by patient.

All examinations of a patient go to one part. Patients are ordered by a hash of seed and name, so
that the split depends on nothing else, and a patient who is added moves few others.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.errors import DataError
from volumediff.randomness import key
from volumediff.storage.records import Record, read, write

__all__ = ["PARTS", "Split", "split_cases"]

PARTS = ("train", "validation", "calibration", "test")
# Other words for the parts, as data sets use them.
SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
FRACTIONS = (0.7, 0.1, 0.1, 0.1)
# A part that is raised to a number of patients takes no more than this share of them.
MOST_RAISED = 0.25


class StoredSplit(Record):
    """splits.json."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    test: tuple[str, ...]
    patients: dict[str, str]


@dataclass(frozen=True)
class Split:
    """Disjoint case ids per part.

    Arguments:
        train, validation, calibration, test: case ids
        patients: case id -> patient, so that a split on disk proves itself patient-wise

    Raises:
        DataError: a case or a patient in two parts
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    calibration: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        case_part: dict[str, str] = {}
        patient_part: dict[str, str] = {}
        for part in PARTS:
            for case in getattr(self, part):
                patient = self.patients.get(case, case)
                if case in case_part:
                    other = case_part[case]
                    raise DataError(f"split: case {case} is in {other} and in {part}; keep one.")
                if patient_part.setdefault(patient, part) != part:
                    raise DataError(
                        f"split: patient {patient} is in {patient_part[patient]} and in {part}; "
                        "keep all cases of a patient together."
                    )
                case_part[case] = part

    def note(self, least_calibration: int) -> str:
        """Sizes of the parts in a sentence, and what localization will miss."""
        sizes = ", ".join(f"{len(getattr(self, part))} {part}" for part in PARTS)
        text = f"split by patient: {sizes} volumes"
        patients = len(set(self.patients.values()))
        if patients < len(self.patients):
            text += f" of {patients} patients"
        if len(self.calibration) < least_calibration:
            text += (
                f"; thresholds of localization take {least_calibration} healthy calibration "
                "volumes: choose another split now, or add healthy volumes to the finished run "
                "when it is calibrated"
            )
        return text

    def save(self, path: Path | str) -> None:
        """Writes JSON with its SHA-256, whole or not at all."""
        parts = {part: getattr(self, part) for part in PARTS}
        write(Path(path), StoredSplit(**parts, patients=dict(sorted(self.patients.items()))))

    @classmethod
    def load(cls, path: Path | str) -> "Split":
        """Reads and checks a split.

        Raises:
            DataError: no such file, damaged or edited, or a split that is not disjoint
        """
        return cls(**dict(read(Path(path), StoredSplit)))


def split_cases(
    cases: Sequence[Case],
    fractions: tuple[float, float, float, float] = FRACTIONS,
    *,
    seed: int = 0,
    by_attribute: bool = False,
    least_calibration: int = 0,
    fold: int | None = None,
    folds: int = 5,
) -> Split:
    """A split of the cases by patient.

    Arguments:
        cases: with unique ids
        fractions: of patients for train, validation, calibration and test; sum 1
        seed: another seed, another split
        least_calibration: patients that the calibration part has at least, taken from training,
            where it is asked for at all and this is no more than a quarter of all patients
        fold: the part of training and validation together that validates, of `folds`; patient
            number i of these is in fold i mod `folds`
        by_attribute: put cases into the part that their attribute `split` names; a validation
            part that nobody names is then drawn from the patients named for training

    Raises:
        ValueError: fractions that are none
        DataError: nothing to split, or attributes that are missing or tear a patient apart
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"expected four fractions with sum 1, got {fractions}.")
    if not cases:
        raise DataError("split: expected cases, got none.")
    by_patient: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_patient[case.patient].append(case)
    order = sorted(by_patient, key=lambda p: (key(seed, "split", p), p))
    if by_attribute:
        named = _named(cases)
        if not named["validation"] and fractions[0] > 0:
            share = fractions[1] / (fractions[0] + fractions[1])
            training = [p for p in order if p in named["train"]]
            count = _counts(len(training), (1 - share, share, 0.0, 0.0))[1]
            named["validation"] = set(training[:count])
            named["train"] -= named["validation"]
        groups = [named[part] for part in PARTS]
    else:
        groups, start = [], 0
        for count in _reserved(_counts(len(order), fractions), fractions, least_calibration):
            groups.append(set(order[start : start + count]))
            start += count
    if fold is not None:
        groups[:2] = _folded([p for p in order if p in groups[0] | groups[1]], fold, folds)
    parts = {
        part: tuple(sorted(c.id for p in group for c in by_patient[p]))
        for part, group in zip(PARTS, groups, strict=True)
    }
    return Split(**parts, patients={c.id: c.patient for c in cases})


def _folded(patients: Sequence[str], fold: int, folds: int) -> list[set[str]]:
    """Patients for training and for validation.

    Raises:
        DataError: fewer patients than folds
    """
    if len(patients) < folds:
        raise DataError(
            f"split: expected at least as many patients for training and validation as folds, "
            f"{folds}, got {len(patients)}; lower data.split.folds."
        )
    validation = set(patients[fold::folds])
    return [set(patients) - validation, validation]


def _counts(n: int, fractions: tuple[float, ...]) -> list[int]:
    """Whole numbers with sum n; every part that is asked for gets one while there are enough."""
    counts = [int(n * f) for f in fractions]
    wanted = [i for i, f in enumerate(fractions) if f > 0]
    while sum(counts) < n:
        counts[max(wanted, key=lambda i: n * fractions[i] - counts[i])] += 1
    for i in wanted:
        largest = max(range(len(counts)), key=counts.__getitem__)
        if counts[i] == 0 and counts[largest] > 1:
            counts[i], counts[largest] = 1, counts[largest] - 1
    return counts


def _reserved(counts: list[int], fractions: tuple[float, ...], least: int) -> list[int]:
    """The counts with at least so many for calibration, if there are enough patients."""
    train, validation, calibration, test = counts
    missing = max(least - calibration, 0)
    enough = least <= MOST_RAISED * sum(counts) and train > missing
    if fractions[2] == 0 or not enough:
        return counts
    return [train - missing, validation, calibration + missing, test]


def _named(cases: Sequence[Case]) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {part: set() for part in PARTS}
    part_of: dict[str, str] = {}
    for case in cases:
        word = str(case.attributes.get("split", "")).lower()
        part = SYNONYMS.get(word, word)
        if part not in parts:
            raise DataError(
                f"split: case {case.id} has the attribute split={word or 'nothing'!r}, expected "
                f"one of {', '.join(PARTS)}; complete participants.tsv."
            )
        if part_of.setdefault(case.patient, part) != part:
            raise DataError(
                f"split: patient {case.patient} is named for {part_of[case.patient]} and for "
                f"{part}; keep all cases of a patient together."
            )
        parts[part].add(case.patient)
    return parts
