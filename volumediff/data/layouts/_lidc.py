"""Annotations of LIDC-IDRI: contours of up to four readers, and boxes of nodules made of them.

A contour runs through the first pixels outside of the nodule. Nodules of at least 3 mm have
contours of several points; marks of smaller ones and of other findings are single points and are
left out. Boxes of different readers that overlap are one nodule, if enough readers saw it, and its
box is the median of theirs.

References:
    Armato et al. (2011), The Lung Image Database Consortium (LIDC) and Image Database Resource
    Initiative (IDRI), doi:10.1118/1.3528204
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from volumediff.data.cases import Box, Contour
from volumediff.data.grid import Grid
from volumediff.data.layouts._xml import read_xml
from volumediff.errors import DataError

__all__ = ["Outline", "Reading", "Ring", "consensus", "contours", "reading_of"]

CT = "LidcReadMessage"


@dataclass(frozen=True)
class Ring:
    """One contour of a nodule.

    Arguments:
        z_mm: of its slice
        points: (column, row)
        excludes: whether it is a hole
    """

    z_mm: float
    points: tuple[tuple[int, int], ...]
    excludes: bool


@dataclass(frozen=True)
class Outline:
    """One nodule of one reader.

    Arguments:
        reader: number of the reading session
        x0, y0, x1, y1: pixels of the slices, ends exclusive
        z_mm: lowest and highest slice
        rings: its contours, holes too
    """

    reader: int
    x0: int
    y0: int
    x1: int
    y1: int
    z_mm: tuple[float, float]
    rings: tuple[Ring, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What the readers of a CT have marked.

    Arguments:
        readers: how many have read it
        outlines: of their nodules
        series: UID of the series; empty where the file does not say
    """

    readers: int
    outlines: tuple[Outline, ...]
    series: str = ""


def reading_of(path: Path) -> Reading | None:
    """The nodules of at least 3 mm in a file; None where it is not about a CT.

    Raises:
        DataError: no XML, or numbers that are none
    """
    root = read_xml(path)
    if root.tag.rpartition("}")[2] != CT:
        return None
    found = []
    sessions = root.findall("{*}readingSession")
    for reader, session in enumerate(sessions):
        for nodule in session.findall("{*}unblindedReadNodule"):
            try:
                outline = _outline(reader, nodule)
            except ValueError as error:
                raise DataError(f"{path}: a coordinate is no number ({error}).") from error
            if outline is not None:
                found.append(outline)
    series = (root.findtext("{*}ResponseHeader/{*}SeriesInstanceUid") or "").strip()
    return Reading(len(sessions), tuple(found), series)


def _outline(reader: int, nodule: ElementTree.Element) -> Outline | None:
    rings = []
    for roi in nodule.findall("{*}roi"):
        points = roi.findall("{*}edgeMap")
        if len(points) > 1:
            excludes = (roi.findtext("{*}inclusion") or "").strip().upper() != "TRUE"
            z = float(roi.findtext("{*}imageZposition") or "")
            places = tuple((_whole(p, "xCoord"), _whole(p, "yCoord")) for p in points)
            rings.append(Ring(z, places, excludes))
    drawn = [ring for ring in rings if not ring.excludes]
    if not drawn:
        return None
    xs, ys = zip(*(point for ring in drawn for point in ring.points), strict=True)
    zs = [ring.z_mm for ring in drawn]
    # inside of the contour; a contour without inside keeps its own pixels
    x0, x1 = (min(xs) + 1, max(xs)) if max(xs) - min(xs) > 1 else (min(xs), max(xs) + 1)
    y0, y1 = (min(ys) + 1, max(ys)) if max(ys) - min(ys) > 1 else (min(ys), max(ys) + 1)
    return Outline(reader, x0, y0, x1, y1, (min(zs), max(zs)), tuple(rings))


def _whole(point: ElementTree.Element, name: str) -> int:
    return int(point.findtext(f"{{*}}{name}") or "")


def contours(reading: Reading, grid: Grid) -> dict[str, tuple[Contour, ...]]:
    """What each reader drew on the slices of the series; readers are numbered from 1.

    Raises:
        DataError: slices that are not axial
    """
    _require_axial(grid)
    found: dict[str, list[Contour]] = {str(i + 1): [] for i in range(reading.readers)}
    for outline in reading.outlines:
        for ring in outline.rings:
            k = round((ring.z_mm - grid.affine[2, 3]) / grid.affine[2, 2])
            found[str(outline.reader + 1)].append(Contour(k, ring.points, ring.excludes))
    return {reader: tuple(drawn) for reader, drawn in found.items()}


def _require_axial(grid: Grid) -> None:
    direction = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    if not np.allclose(direction, np.diag([-1.0, -1.0, 1.0]), atol=1e-3):
        raise DataError(f"expected axial slices, got axes {grid.axes}; boxes cannot be placed.")


def consensus(found: Sequence[Outline], grid: Grid, *, readers: int) -> list[Box]:
    """Boxes on the grid of the series (columns, rows, slices) that enough readers have marked.

    Raises:
        DataError: slices that are not axial, or nodules outside of them
    """
    _require_axial(grid)
    boxes = []
    for outline in found:
        low, high = ((z - grid.affine[2, 3]) / grid.affine[2, 2] for z in outline.z_mm)
        box = (outline.x0, outline.y0, round(low), outline.x1, outline.y1, round(high) + 1)
        if any(a < 0 or b > n for a, b, n in zip(box[:3], box[3:], grid.shape, strict=True)):
            raise DataError(
                f"a nodule at {box} lies outside of the series of {grid.shape} voxels."
            )
        boxes.append(box)
    groups: list[set[int]] = []
    for i, box in enumerate(boxes):
        touching = [g for g in groups if any(_overlap(box, boxes[j]) for j in g)]
        groups = [g for g in groups if g not in touching] + [{i}.union(*touching)]
    result = []
    for group in groups:
        if len({found[i].reader for i in group}) >= readers:
            corners = np.floor(np.median([boxes[i] for i in group], axis=0) + 0.5).astype(int)
            d0, h0, w0, d1, h1, w1 = corners.tolist()
            result.append((d0, h0, w0, d1, h1, w1))
    return sorted(result)


def _overlap(a: Box, b: Box) -> bool:
    return all(max(a[i], b[i]) < min(a[i + 3], b[i + 3]) for i in range(3))
