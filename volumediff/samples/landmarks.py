"""RUN/landmarks.json: what intensities are standardised to, fitted on the training part alone.

The landmarks of `volumediff.data.intensity.Histogram` are means over the training volumes. They
are fitted before anything is prepared and kept as text: training, whatever resumes it, and every
new volume go through the same map. Classifiers and residual segmenters take them from the run that
they are trained for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.data.intensity import landmarks_of
from volumediff.data.preprocessing import Preprocessing
from volumediff.errors import DataError, UsageError
from volumediff.storage.records import Record, read, write

__all__ = ["NAME", "Landmarks", "fit_landmarks", "keep_landmarks", "load_landmarks"]

NAME = "landmarks.json"

Landmarks = tuple[tuple[float, ...], ...]


class StoredLandmarks(Record):
    """landmarks.json: per channel, and the training cases that they are means of."""

    landmarks: Landmarks
    cases: tuple[str, ...]


def fit_landmarks(
    run: Path, plan: Preprocessing, cases: Sequence[Case], report: Callable[[str], None]
) -> None:
    """Fits the landmarks of a run on its training cases, unless they are those it has.

    Arguments:
        plan: whose intensities are to be fitted
        cases: of the training part

    Raises:
        DataError: a file is refused, or its foreground has a single intensity
        DataError: the landmarks that the run has are damaged
        UsageError: cases with different numbers of channels
    """
    names = tuple(case.id for case in cases)
    path = run / NAME
    if path.is_file() and read(path, StoredLandmarks).cases == names:
        return
    report(f"fitting intensity landmarks on {len(cases)} training volumes")
    limits = [plan.limits_of(case) for case in cases]
    for case, found in zip(cases, limits, strict=True):
        if len(found) != len(limits[0]):
            raise UsageError(
                f"data.channels: case {case.id} has {len(found)} channels, {names[0]} has "
                f"{len(limits[0])}; name the channels, for example data.channels=[T1w,FLAIR]."
            )
        if any(values[0] == values[-1] for values in found):
            raise DataError(
                f"case {case.id}: its foreground has a single intensity; leave it out, or check "
                "the file."
            )
    landmarks = tuple(landmarks_of(channel) for channel in zip(*limits, strict=True))
    write(path, StoredLandmarks(landmarks=landmarks, cases=names))


def keep_landmarks(run: Path, of: Path) -> None:
    """Copies the landmarks of the diffusion run that a run is trained for, if it has some."""
    if (of / NAME).is_file():
        write(run / NAME, read(of / NAME, StoredLandmarks))


def load_landmarks(run: Path) -> Landmarks:
    """The landmarks of a run, per channel.

    Raises:
        UsageError: the run has none, because it was not trained here
        DataError: they are damaged
    """
    path = run / NAME
    if not path.is_file():
        raise UsageError(
            f"{run}: has no {NAME}, so its intensities are not fitted; train it first, or use "
            "data.preprocessing.intensity=percentile."
        )
    return read(path, StoredLandmarks).landmarks
