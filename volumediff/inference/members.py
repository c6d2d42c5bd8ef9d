"""Runs that segment together, such as those of several folds: loaded, and checked to agree."""

from dataclasses import replace
from pathlib import Path

from volumediff.errors import UsageError
from volumediff.runs.trained import Trained, load_trained
from volumediff.segmentation.label_ensembles import LentModel, Members
from volumediff.segmentation.segmenters._base import Segmenter
from volumediff.segmentation.segmenters.composed import Composed

__all__ = ["with_members"]


def with_members(trained: Trained, segmenter: Segmenter) -> tuple[Segmenter, tuple[Trained, ...]]:
    """The method with the models of the other runs that its ensemble names, and these runs.

    Raises:
        UsageError: no such run, or one that sees other volumes or tells other labels apart
        DataError: a run is damaged
    """
    if not isinstance(segmenter, Composed):
        return segmenter, ()
    factors, others = [], []
    for factor in segmenter.ensemble:
        if isinstance(factor, Members):
            found = [_other(trained, segmenter, Path(run)) for run in factor.runs]
            others += found
            factor = replace(factor, models=tuple(LentModel(o.digest, o.model) for o in found))
        factors.append(factor)
    return replace(segmenter, ensemble=tuple(factors)), tuple(others)


def _other(trained: Trained, segmenter: Composed, run: Path) -> Trained:
    if run.resolve() == trained.run.resolve():
        raise UsageError(
            f"ensemble: expected runs beside {trained.name}, which is a member by itself, got it "
            "again; leave it out of runs."
        )
    other = load_trained(run, device=str(trained.device))
    other.segments()
    try:
        segmenter.check(other.model)
    except ValueError as error:
        raise UsageError(f"ensemble: {run} does not suit the method: {error}") from None
    pairs = {
        "labels": [segmenter.predictor.labels(each.model) for each in (trained, other)],
        "channels": [each.channels for each in (trained, other)],
        "data.preprocessing": [each.config.data.preprocessing for each in (trained, other)],
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UsageError(
                f"ensemble: {run}: expected the {name} of {trained.name}, {ours}, got {theirs}; "
                "runs that segment together see the same volumes and know the same labels."
            )
    return other
