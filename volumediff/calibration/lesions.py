"""Healthy volumes of a run with synthetic lesions, to choose thresholds and to fit methods on.

Choices are made on the validation family and methods learn on the training family, never on the
one that tests use. No case of the test part is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from volumediff.anomaly.method_input import Example
from volumediff.data.anomalies import KINDS, VALIDATION, GeneratorFamily, insert
from volumediff.data.cases import Case
from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.runs.trained import Trained

__all__ = ["Pair", "Truth", "lesioned", "validation_pairs"]

Truth = Literal["synthetic", "label"]
# The largest lesion of a family is 1 % of a brain; in a small organ it must not be all of it.
LARGEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Pair:
    """A volume with a lesion.

    Arguments:
        sick: the volume, with the lesion as its truth
        healthy: the same volume without; None where the lesion is a real one
    """

    sick: Example
    healthy: Example | None = None


def validation_pairs(
    trained: Trained, *, seed: int, limit: int | None, truth: Truth
) -> Iterator[Pair]:
    """Validation volumes with lesions, one at a time.

    Arguments:
        trained: the run, with its split
        seed: of the lesions
        limit: most volumes
        truth: synthetic lesions of the validation family, or the labels of the cases

    Raises:
        UsageError: a case has no label, where labels are asked for
    """
    cases = trained.cases("validation")[:limit]
    if truth == "synthetic":
        keys = [key(seed, "calibration lesion", i) for i in range(len(cases))]
        yield from lesioned(trained, cases, family=VALIDATION, keys=keys)
        return
    for case in cases:
        example = trained.example(case)
        if example.truth is None:
            raise UsageError(
                f"{trained.name}: case {case.id} has no label; use synthetic lesions."
            )
        yield Pair(example)


def lesioned(
    trained: Trained, cases: Sequence[Case], *, family: GeneratorFamily, keys: Sequence[int]
) -> Iterator[Pair]:
    """One lesion in every healthy case, the kinds taking turns.

    Arguments:
        trained: the run
        cases: of its data; those with a marked lesion, which would count as healthy, are left out
        family: of the lesions; never the test family
        keys: one per case
    """
    for i, case in enumerate(cases):
        example = trained.example(case)
        if example.lesioned:
            continue
        donor = trained.example(cases[(i + 1) % len(cases)]).x[0].cpu()
        same = donor.shape == example.x[0].shape
        kinds = [kind for kind in KINDS if same or kind != "foreign_patch"]
        x, mask = insert(
            example.x[0].cpu(),
            example.foreground[0].cpu(),
            kind=kinds[i % len(kinds)],
            key=keys[i],
            spacing_mm=example.spacing_mm,
            family=_fitting(family, example),
            donor=donor if same else None,
        )
        sick = replace(example, x=x[None].to(trained.device), truth=mask[None].to(trained.device))
        yield Pair(sick, example)


def _fitting(family: GeneratorFamily, example: Example) -> GeneratorFamily:
    """The family, with lesions of at most a tenth of a small foreground."""
    d, h, w = example.spacing_mm
    most = LARGEST_SHARE * int(example.foreground.sum()) * d * h * w / 1000
    low, high = family.volume_ml
    return replace(family, volume_ml=(min(low, most), min(high, most)))
