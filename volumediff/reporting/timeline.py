"""What a method did to one case, step by step: masks and intermediate maps of the trace, in order.

The JSON beside a map lists the trace in the order in which the components made it; one plane of
each is kept. Maps share one scale, so that a step can be compared with the one before; masks, and
maps named as masks, go from 0 to 1.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.volume import read

__all__ = ["TimelineEntry", "read_steps", "strip"]

PER_ROW, LEAST_PER_ROW = 8, 2
# As many steps are shown; of more, evenly chosen ones with the first and the last.
MOST = 32
# Edges of lesions, as in the viewer.
EDGE = "#2fe0ff"


@dataclass(frozen=True, eq=False)
class TimelineEntry:
    """One mask or map of the trace.

    Arguments:
        name: such as harmonise/0.400/mask
        slab: one axial plane of it
    """

    name: str
    slab: Float[np.ndarray, "d h"]

    @property
    def is_mask(self) -> bool:
        """Whether it says where the method works, not what it found."""
        return self.name.endswith("mask")


def read_steps(folder: Path, facts: Mapping[str, Any], level: int) -> tuple[TimelineEntry, ...]:
    """The steps that lie in a folder, at one axial plane.

    Arguments:
        folder: of the results
        facts: content of the JSON beside the map; results of earlier versions list no trace
        level: index of the plane
    """
    known = [entry for entry in facts.get("trace", []) if (folder / entry["file"]).is_file()]
    if len(known) > MOST:
        known = [known[i] for i in np.linspace(0, len(known) - 1, MOST).round().astype(int)]
    steps = []
    for entry in known:
        kind = "label" if entry["file"].endswith("_mask.nii.gz") else "image"
        array = read(folder / entry["file"], kind=kind).array[0]
        steps.append(TimelineEntry(entry["name"], array[:, :, level].astype(np.float32)))
    return tuple(steps)


def strip(
    steps: Sequence[TimelineEntry],
    *,
    aspect: float,
    outline: Bool[np.ndarray, "d h"] | None = None,
) -> bytes:
    """PNG of the steps from left to right, row by row.

    Arguments:
        steps: at least one
        aspect: height of a voxel over its width
        outline: voxels to draw an edge around, such as a lesion
    """
    from matplotlib.figure import Figure

    columns = min(max(len(steps), LEAST_PER_ROW), PER_ROW)
    rows = math.ceil(len(steps) / columns)
    d, h = steps[0].slab.shape
    # a cell as high as the plane at this width, and a line of text
    width = 11.2 / PER_ROW
    height = width * h * aspect / d + 0.3
    figure = Figure(
        figsize=(columns * width, rows * height), layout="constrained", facecolor="black"
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    grid = figure.subplots(rows, columns, squeeze=False)
    high = max((float(s.slab.max()) for s in steps if not s.is_mask), default=1.0)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (axes, step) in enumerate(zip(grid.flat, steps, strict=False), start=1):
        top, colours = (1.0, "bone") if step.is_mask else (max(high, 1e-12), "inferno")
        axes.imshow(step.slab.T, cmap=colours, vmin=0, vmax=top, origin="lower", aspect=aspect)
        if outline is not None and min(outline.shape) > 1 and outline.any() and not outline.all():
            axes.contour(outline.T, levels=[0.5], colors=EDGE, linewidths=0.7)
        axes.invert_xaxis()  # the patient's right is on the left, as in the viewer
        axes.set_title(f"{number}  {step.name}", color="white", fontsize=7, loc="left", pad=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()
