"""What segmentation methods fit on the labelled validation volumes of a run, and where it is kept.

RUN/calibration/segmentation-<hash>.json: the volumes are segmented once for a method, its weights
and its seed, and later calls find the fitted method there.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.runs.trained import Trained
from volumediff.samples.label_checks import with_ignored
from volumediff.segmentation.result import Segmentation
from volumediff.segmentation.segmenters._base import Segmenter
from volumediff.storage import records
from volumediff.storage.digests import sha256
from volumediff.storage.locks import exclusive
from volumediff.storage.records import Record

__all__ = ["StoredLabelFit", "fitted"]


class StoredLabelFit(Record):
    """What each part of a method has fitted, in its order, such as thresholds by label.

    A model file holds it: it names no volume.
    """

    method: str
    weights: str
    volumes: int
    fitted: tuple[tuple[float, ...], ...]


def fitted(
    trained: Trained, segmenter: Segmenter, *, seed: int, report: Callable[[str], None]
) -> Segmenter:
    """The method with what it needs to know of the run's validation volumes.

    Arguments:
        trained: a run that segments
        segmenter: the method
        seed: of what is drawn
        report: receives a line per volume

    Raises:
        UsageError: the run's data are not reachable, or it has no validation volumes
    """
    if not segmenter.needs_fit:
        return segmenter
    name = sha256(repr(segmenter), trained.digest, str(seed))[:16]
    path = trained.run / "calibration" / f"segmentation-{name}.json"
    with nullcontext() if path.is_file() else exclusive(path):
        if path.is_file():
            stored = records.read(path, StoredLabelFit, advice="delete it to fit it again")
            return segmenter.with_fitted(stored.fitted)
        return _fit(trained, segmenter, path, seed, report)


def _fit(
    trained: Trained,
    segmenter: Segmenter,
    path: Path,
    seed: int,
    report: Callable[[str], None],
) -> Segmenter:
    cases = trained.cases("validation")
    if not cases:
        raise UsageError(
            f"{trained.name}: has no validation volumes, and the method fits a threshold on them; "
            "train with data.split.validation above 0, or name one: "
            "post=[{name: threshold, probability: 0.5}]."
        )
    result = segmenter.fit(list(_found(trained, segmenter, seed, report)))
    stored = StoredLabelFit(
        method=repr(segmenter),
        weights=trained.digest,
        volumes=len(cases),
        fitted=result.fitted,
    )
    path.parent.mkdir(exist_ok=True)
    records.write(path, stored)
    return result


def _found(
    trained: Trained, segmenter: Segmenter, seed: int, report: Callable[[str], None]
) -> Iterator[tuple[Segmentation, Tensor]]:
    for case in trained.cases("validation"):
        ready = trained.preprocessing.prepare(with_ignored(case, trained.recipe))
        assert ready.label is not None, "runs that segment have labels"
        report(f"fitting the threshold on {case.id}")
        found = segmenter.segment(
            trained.model,
            ready.x[None].to(trained.device),
            foreground=ready.foreground[None].to(trained.device),
            spacing_mm=ready.spacing_mm,
            key=key(seed, "threshold", case.id),
            condition=trained.condition(case.attributes),
        )
        truth = torch.as_tensor(ready.label, device=trained.device)
        truth = truth.reshape(1, 1, *truth.shape[-3:])
        judged = ~torch.isin(truth, truth.new_tensor(trained.recipe.ignored))
        yield replace(found, probabilities=found.probabilities * judged), truth
