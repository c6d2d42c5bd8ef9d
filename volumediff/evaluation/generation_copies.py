"""Samples that are copies of training volumes: the nearest ones, by voxels and by features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.seen import Seen, roster
from volumediff.evaluation.generation_case import VolumeSummary
from volumediff.evaluation.generation_volumes import VolumeSet, was_trained_on
from volumediff.metrics.memorization import (
    MIN_HELD_OUT,
    MemorizationTest,
    Thumbnails,
    memorization,
)
from volumediff.runs.trained import Trained
from volumediff.samples.seen_record import seen_by

__all__ = ["RATE", "Copy", "Neighbours", "neighbours_of"]

RATE = 0.01  # of new volumes that are flagged as copies by chance


@dataclass(frozen=True)
class Copy:
    """A sample that is nearer to a training volume than chance allows.

    Arguments:
        case: the sample
        training: the training volume
        by: `voxels` or `features`
        p: how often a volume that nobody copied is as near
    """

    case: str
    training: str
    by: str
    p: float


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Training volumes and held-out ones.

    Arguments:
        training, held_out: their summaries
        notes: what is to be said of them
    """

    training: Sequence[VolumeSummary] = ()
    held_out: Sequence[VolumeSummary] = ()
    notes: Sequence[str] = ()

    @property
    def known(self) -> bool:
        return bool(self.training) and len(self.held_out) >= MIN_HELD_OUT

    def of(
        self, samples: Sequence[VolumeSummary]
    ) -> tuple[dict[str, MemorizationTest], list[Copy]]:
        """The tests of samples by voxels and by features, and those that are flagged."""
        tests = {"voxels": self._by_voxels(samples)}
        if samples[0].vector is not None:
            tests["features"] = self._by_features(samples)
        copies = []
        for by, test in tests.items():
            for i in test.flagged:
                near = test.samples[i]
                named = self.training[near.training].case
                copies.append(Copy(samples[i].case, named, by, near.p))
        return tests, copies

    def _by_voxels(self, samples: Sequence[VolumeSummary]) -> MemorizationTest:
        held = self.held_out
        measured = Thumbnails([s.thumbnails for s in self.training])
        others = [s.thumbnails for s in held]
        return memorization(
            np.stack([measured.to_training(s.thumbnails) for s in samples]),
            np.stack([measured.between(s.thumbnails, others) for s in samples]),
            held_to_training=np.stack([measured.to_training(s.thumbnails) for s in held]),
            between_held_out=self._apart(
                np.stack([measured.between(s.thumbnails, others) for s in held])
            ),
            rate=RATE,
        )

    def _by_features(self, samples: Sequence[VolumeSummary]) -> MemorizationTest:
        from scipy.spatial.distance import cdist

        train, held, mine = (
            np.stack([s.vector for s in part]) for part in (self.training, self.held_out, samples)
        )
        scale = np.maximum(train.std(0), 1e-12)
        train, held, mine = (part / scale for part in (train, held, mine))
        return memorization(
            cdist(mine, train),
            cdist(mine, held),
            held_to_training=cdist(held, train),
            between_held_out=self._apart(cdist(held, held)),
            rate=RATE,
        )

    def _apart(self, distances: np.ndarray) -> np.ndarray:
        """Volumes of one patient are not compared with each other."""
        patients = np.array([s.patient for s in self.held_out])
        return np.where(patients[:, None] == patients[None], np.inf, distances)


def neighbours_of(
    real: VolumeSet,
    training: VolumeSet | None,
    *,
    trained: Trained | None,
    summary: Callable[[VolumeSet, Case], VolumeSummary],
) -> Neighbours:
    """Which volumes the model was trained on, and which of the real ones it was not.

    Arguments:
        real: all of them
        training: volumes of the training, where they are another data set
        trained: the run, which knows its training volumes among the real ones
        summary: of a case of either set
    """
    if training is not None:
        source, trained_on = training, list(training.cases)
        seen = Seen((roster("training", {"train": trained_on}),))
    elif trained is not None:
        seen = seen_by(trained.run)
        source, trained_on = real, [case for case in real.cases if was_trained_on(seen, case)]
    else:
        return Neighbours(
            notes=[
                "Memorization was not tested: it is not known which volumes the model was trained "
                "on. Give the run that drew the samples, or the training data set."
            ]
        )
    new = [case for case in real.cases if not was_trained_on(seen, case)]
    text = f"{len(trained_on)} of the volumes were in training, {len(new)} were not"
    if not trained_on or len(new) < MIN_HELD_OUT:
        return Neighbours(
            notes=[
                f"Memorization was not tested: {text}; it takes training volumes and at least "
                f"{MIN_HELD_OUT} others."
            ]
        )
    # Training volumes need no shifts.
    near = [summary(source, case) for case in trained_on]
    return Neighbours(
        [replace(each, thumbnails=each.thumbnails[[0, -1]]) for each in near],
        [summary(real, case) for case in new],
        [f"Memorization: {text}; by chance at most {RATE:.0%} of new volumes are flagged."],
    )
