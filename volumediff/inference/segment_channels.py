"""A trained segmentation as a function of named channels, for lesions in translated images."""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from volumediff.data.volume import Volume
from volumediff.errors import DataError, UsageError
from volumediff.inference.options import SegmentOptions
from volumediff.inference.segment import segmenting
from volumediff.runs.inputs import Examination
from volumediff.runs.trained import Trained

__all__ = ["segments_channels"]


def segments_channels(
    trained: Trained,
) -> Callable[[Mapping[str, Volume]], UInt8[np.ndarray, "d h w"]]:
    """Label map of a case given its channels by name, by the run's own method.

    Raises:
        UsageError: a run that does not segment, or one whose channels have no names
    """
    work = segmenting(trained, SegmentOptions())
    names = trained.config.data.channels
    if names is None:
        raise UsageError(
            f"{trained.name}: expected a run with names of its channels, got none; train with "
            "data.channels=[FLAIR], or of whatever it segments."
        )

    def segment(channels: Mapping[str, Volume]) -> UInt8[np.ndarray, "d h w"]:
        missing = [name for name in names if name not in channels]
        if missing:
            raise DataError(
                f"{trained.name}: takes the channel {missing[0]}, and the case has "
                f"{', '.join(channels)}."
            )
        images = {name: channels[name] for name in names}
        digests = {n: hashlib.sha256(v.array.tobytes()).hexdigest() for n, v in images.items()}
        files = {name: name for name in names}
        return work(Examination("case", "case", images, files, digests)).labels[0]

    return segment
