"""Healthy volumes of a run with synthetic lesions, to choose and to learn on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from volumediff.anomaly.calibration import Example
from volumediff.data.anomalies import KINDS, Family, insert
from volumediff.data.cases import Case
from volumediff.inference.trained import Trained

__all__ = ["lesioned"]

# The largest lesion of a family is 1 % of a brain; in a small organ it must not be all of it.
LARGEST_SHARE = 0.1


def lesioned(
    trained: Trained, cases: Sequence[Case], *, family: Family, keys: Sequence[int]
) -> Iterator[Example]:
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
        yield replace(example, x=x[None].to(trained.device), truth=mask[None].to(trained.device))


def _fitting(family: Family, example: Example) -> Family:
    """The family, with lesions of at most a tenth of a small foreground."""
    d, h, w = example.spacing_mm
    most = LARGEST_SHARE * int(example.foreground.sum()) * d * h * w / 1000
    low, high = family.volume_ml
    return replace(family, volume_ml=(min(low, most), min(high, most)))
