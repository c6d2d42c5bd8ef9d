"""The read policy: decisions of the user on ambiguous files."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ReadPolicy"]


@dataclass(frozen=True)
class ReadPolicy:
    """What to do where a file is ambiguous; the defaults refuse to guess.

    Arguments:
        forms: which of sform and qform counts when they disagree; `agree` refuses such files
        no_forms: axes to assume when both form codes are 0 (spacing from pixdim, world origin at
            the centre of the volume); `refuse` refuses such files
        nonfinite: `fill` replaces NaN and Inf voxels of images by the smallest finite value
        frames: what a 4D file holds: `channels`, or the index of the one frame to read
        labels: the label values that a label file may hold; None allows 0 to 255
        series: the series instance UID to read from a DICOM folder that holds several
        budget_bytes: largest volume to allocate; 4 GiB is 1024 x 1024 x 1024 in float32
    """

    forms: Literal["agree", "sform", "qform"] = "agree"
    no_forms: Literal["refuse", "ras", "las", "lps"] = "refuse"
    nonfinite: Literal["fill", "refuse"] = "fill"
    frames: Literal["refuse", "channels"] | int = "refuse"
    labels: tuple[int, ...] | None = None
    series: str | None = None
    budget_bytes: int = 4 * 2**30
