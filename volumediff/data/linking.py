"""Linking of rectangles on slices to boxes: of one label and overlapping on adjacent slices.

Of two adjacent slices, pairs are joined by falling intersection over union, each rectangle to one
of the other slice at most, as long as the IoU is at least a threshold. A chain of pairs becomes
the smallest box around it. So a lesion that is missed on one slice becomes two boxes, and two
lesions that meet stay apart.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from volumediff.data.cases import Box

__all__ = ["Rectangle", "link"]


@dataclass(frozen=True)
class Rectangle:
    """A rectangle on a slice, in voxels of the file's own grid, ends exclusive.

    Arguments:
        slice: number of the slice
        label: what was found
        x0, y0, x1, y1: along the first and the second axis of the grid
    """

    slice: int
    label: str
    x0: int
    y0: int
    x1: int
    y1: int

    def iou(self, other: "Rectangle") -> float:
        """Intersection over union within the slice plane."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        common = max(width, 0) * max(height, 0)
        union = self._area() + other._area() - common
        return common / union if union else 0.0

    def _area(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


def link(rectangles: Sequence[Rectangle], *, least_iou: float) -> list[tuple[str, Box]]:
    """Label and box (x0, y0, slice0, x1, y1, slice1) of every chain, sorted.

    Arguments:
        rectangles: of one volume
        least_iou: from which two rectangles on adjacent slices are one finding; above 0
    """
    # equal rectangles count once
    known = sorted(set(rectangles), key=lambda r: (r.label, r.slice, r.x0, r.y0, r.x1, r.y1))
    by_slice: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, r in enumerate(known):
        by_slice[r.label, r.slice].append(i)
    chain = list(range(len(known)))
    for (label, number), here in sorted(by_slice.items()):
        following = by_slice.get((label, number + 1), [])
        pairs = [(known[i].iou(known[j]), -i, -j) for i in here for j in following]
        taken: set[int] = set()
        for iou, i, j in sorted(pairs, reverse=True):
            if iou >= least_iou and not {i, j} & taken:
                taken |= {i, j}
                chain[-j] = chain[-i]
    members: dict[int, list[Rectangle]] = defaultdict(list)
    for i, of in enumerate(chain):
        members[of].append(known[i])
    return sorted((group[0].label, _around(group)) for group in members.values())


def _around(group: Sequence[Rectangle]) -> Box:
    return (
        min(r.x0 for r in group),
        min(r.y0 for r in group),
        min(r.slice for r in group),
        max(r.x1 for r in group),
        max(r.y1 for r in group),
        max(r.slice for r in group) + 1,
    )
