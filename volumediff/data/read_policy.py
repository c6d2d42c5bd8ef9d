"""The read policy: decisions of the user on ambiguous files."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["WRITTEN", "ReadPolicy", "remedy"]


@dataclass(frozen=True)
class ReadPolicy:
    """What to do where a file is ambiguous; the defaults refuse to guess.

    Users write them as `--read KEY=VALUE` on the command line, as `read` in Python and as the
    section `data.read` of a configuration, which a run keeps.

    Arguments:
        forms: which of sform and qform counts when they disagree; `agree` refuses such files
        no_forms: axes to assume when both form codes are 0 (spacing from pixdim, world origin at
            the centre of the volume); `refuse` refuses such files
        nonfinite: `fill` replaces NaN and Inf voxels of images by the smallest finite value
        frames: what a 4D file holds: `channels`, or the index of the one frame to read
        labels: the label values that a label file may hold; None allows 0 to 255
        label_rounding: how far the values of a label file may lie from whole numbers; scaled
            integers may by half of a slope below 0.5, where different values stay different
        series: the series instance UID to read from a DICOM folder that holds several
        budget_bytes: largest volume to allocate; 4 GiB is 1024 x 1024 x 1024 in float32
    """

    forms: Literal["agree", "sform", "qform"] = "agree"
    no_forms: Literal["refuse", "ras", "las", "lps"] = "refuse"
    nonfinite: Literal["fill", "refuse"] = "fill"
    frames: Literal["refuse", "channels"] | int = "refuse"
    labels: tuple[int, ...] | None = None
    label_rounding: float = 0.01
    series: str | None = None
    budget_bytes: int = 4 * 2**30


WRITTEN = ReadPolicy(frames="channels")
"""For files that this program wrote: a frame is a channel, and forms need no decision."""


def remedy(*choices: str) -> str:
    """How users make a decision, for messages.

    Arguments:
        choices: as `key=value`; one of them settles the matter
    """
    *others, last = choices
    named = f"{', '.join(others)} or {last}" if others else last
    return f"decide by `read` with {named} (data.read in a configuration)"
