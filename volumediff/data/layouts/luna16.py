"""LUNA16: CT of the chest with lung nodules, chosen from LIDC-IDRI.

    subset0/1.3.6.1.4.1.14519.5.2.1.6279.6001....mhd (and .raw), annotations.csv

`annotations.csv` has the centre of every nodule of at least 3 mm that three of four readers have
marked, in millimetres along L, P, S, and its diameter: here they are spheres, and boxes around
them. `annotations_excluded.csv` lists what fewer have marked. The masks of the lungs in
`seg-lungs-LUNA16` are no labels. No file says which series are one patient; a table can, see
`volumediff.data.patients`.

References:
    Setio et al. (2017), Validation, comparison, and combination of algorithms for automatic
    detection of pulmonary nodules in CT: the LUNA16 challenge, arXiv:1612.08012
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from volumediff.data.cases import Box, Case, Problem, Sphere
from volumediff.data.grid import Grid, canonical_grid
from volumediff.data.itk_files import stored_grid
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import folders, stem, volumes
from volumediff.data.layouts._tables import columns, number, rows
from volumediff.errors import DataError

__all__ = ["LUNA16"]

ANNOTATIONS, DOUBTS = "annotations.csv", "annotations_excluded.csv"
NEEDED = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
PART = re.compile(r"subset\d+", re.I)


@dataclass(frozen=True)
class LUNA16(Layout):
    """One case per series, called by its UID; `fold` is the number of its subset."""

    tables: ClassVar[tuple[str, ...]] = (ANNOTATIONS, DOUBTS, "candidates*.csv")

    def recognises(self, root: Path) -> bool:
        path = root / ANNOTATIONS
        return path.is_file() and set(NEEDED) <= set(columns(path))

    def read(self, root: Path) -> Found:
        nodules = _spheres(root / ANNOTATIONS)
        doubted = _series(root / DOUBTS)
        cases, problems = [], []
        for folder in folders(root, 1):
            if folder != root and not PART.fullmatch(folder.name):
                continue
            for path in volumes(folder):
                name = stem(path)
                try:
                    cases.append(_case(path, nodules.pop(name, []), doubted))
                except DataError as error:
                    problems.append(Problem(name, str(error), files=(path,)))
        if nodules:
            first = next(iter(nodules))
            text = f"has nodules of {len(nodules)} series without a volume, such as {first}."
            problems.append(Problem(ANNOTATIONS, text, "info"))
        return cases, problems


def _case(path: Path, found: list[Sphere], doubted: set[str] | None) -> Case:
    name, grid = stem(path), canonical_grid(stored_grid(path))
    boxes = tuple(_box(sphere, grid, path) for sphere in found)
    # without the table of doubts nobody says that a series has none
    healthy = doubted is not None and name not in doubted
    known: dict[str, str | float] = {
        "group": "sick" if found else "healthy" if healthy else "unsure",
        "nodules": float(len(found)),
    }
    if PART.fullmatch(path.parent.name):
        known["fold"] = float(path.parent.name[len("subset") :])
    return Case(name, name, {"image": path}, None, known, boxes=boxes, spheres=tuple(found))


def _spheres(path: Path) -> dict[str, list[Sphere]]:
    """The nodules of every series, along R, A, S."""
    found: dict[str, list[Sphere]] = defaultdict(list)
    for line, row in enumerate(rows(path, NEEDED), start=2):
        values = [number(row[name]) for name in NEEDED[1:]]
        if any(isinstance(value, str) for value in values) or not float(values[3]) > 0:
            raise DataError(
                f"{path}: row {line}: expected three coordinates and a diameter above 0, got "
                f"{', '.join(row[name] for name in NEEDED[1:])}; repair it."
            )
        x, y, z, diameter = map(float, values)
        found[row["seriesuid"]].append((-x, -y, z, diameter))
    return dict(found)


def _series(path: Path) -> set[str] | None:
    """The series of a table; None without it."""
    return {row["seriesuid"] for row in rows(path, ["seriesuid"])} if path.is_file() else None


def _box(sphere: Sphere, grid: Grid, path: Path) -> Box:
    """The voxels around a sphere, at least the nearest one.

    Raises:
        DataError: its centre lies outside of the volume
    """
    middle = np.linalg.solve(grid.affine, np.array([*sphere[:3], 1.0]))[:3]
    if (np.rint(middle) < 0).any() or (np.rint(middle) >= grid.shape).any():
        raise DataError(
            f"{path}: a nodule at {[round(v, 1) for v in sphere[:3]]} mm (R, A, S) lies outside "
            "of the volume; check that the annotations belong to it."
        )
    reach = sphere[3] / 2 / np.array(grid.spacing_mm)
    low = [max(0, min(math.ceil(m - r), round(m))) for m, r in zip(middle, reach, strict=True)]
    high = [
        min(n, max(math.floor(m + r), round(m)) + 1)
        for m, r, n in zip(middle, reach, grid.shape, strict=True)
    ]
    d0, h0, w0, d1, h1, w1 = (*low, *high)
    return d0, h0, w0, d1, h1, w1
