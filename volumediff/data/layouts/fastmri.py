"""fastMRI volumes with the annotations of fastMRI+.

    multicoil_train/file_brain_AXFLAIR_200_6002425.h5, ...
    [Annotations/]brain.csv, knee.csv, brain_file_list.csv, knee_file_list.csv

Rows `file,slice,study_level,x,y,width,height,label` are rectangles in pictures whose rows were
reversed (fastMRI+, README); here they are turned back. Files without a row that are in a list of
files were looked at and have no finding. Reading needs the extra `volumediff[fastmri]` (h5py).

References:
    Zhao et al. (2022), fastMRI+, Clinical pathology annotations for knee and brain fully sampled
    magnetic resonance imaging data, arXiv:2109.03812
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem
from volumediff.data.fastmri import SLICES, describe
from volumediff.data.grid import Grid, canonical_box
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders
from volumediff.data.layouts._tables import number, rows
from volumediff.data.linking import Rectangle, link
from volumediff.errors import DataError

__all__ = ["FastMRI"]

TABLES = ("brain.csv", "knee.csv")
NEEDED = ("file", "slice", "study_level", "x", "y", "width", "height", "label")
# Labels that are no pathology.
HEALTHY = frozenset(
    {"normal for age", "normal variant", "possible artifact", "artifact", "motion artifact"}
)
SPLITS = {"train": "train", "val": "validation", "test": "test"}
DEPTH = 2

Row = dict[str, str]


@dataclass(frozen=True)
class FastMRI(Layout):
    """One case per file; acquisition and findings are attributes, patients are those of the files.

    The group is `sick` with a finding, `healthy` where somebody looked and found none or only
    variants and artefacts, and absent where nobody looked.

    Arguments:
        acquisitions: which to read, such as [AXFLAIR]; None reads all
        least_iou: overlap from which rectangles on adjacent slices are one box; as for found
            boxes, a tenth says that it is the same place
    """

    tables: ClassVar[tuple[str, ...]] = ("brain.csv", "knee.csv", "*_file_list.csv")

    acquisitions: tuple[str, ...] | None = None
    least_iou: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.least_iou <= 1:
            raise ValueError(f"FastMRI takes least_iou in (0, 1], got {self.least_iou}.")

    def recognises(self, root: Path) -> bool:
        return any(_files(folder)[:1] for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        marked, seen = _annotations(root)
        cases, problems = [], []
        for folder in folders(root, DEPTH):
            for path in _files(folder):
                try:
                    found = self._case(path, marked.get(path.stem, []), path.stem in seen)
                except DataError as error:
                    problems.append(Problem(path.stem, str(error), files=(path,)))
                    continue
                if found is None:
                    text = f"no {SLICES}: k-space alone, left out"
                    problems.append(Problem(path.stem, text, "info", (path,)))
                elif self.acquisitions is None or found.attributes["acquisition"] in (
                    self.acquisitions
                ):
                    cases.append(found)
        return cases, problems

    def _case(self, path: Path, marked: list[Row], seen: bool) -> Case | None:
        described = describe(path)
        if described.grid is None:
            return None
        known: dict[str, str | float] = {"acquisition": described.acquisition}
        part = path.parent.name.rpartition("_")[2]
        if part in SPLITS:
            known["split"] = SPLITS[part]
        patient, images, boxes = described.patient or path.stem, {"image": path}, None
        if seen or marked:
            sick = [row for row in marked if row["label"].lower() not in HEALTHY]
            rectangles = [_rectangle(row, described.grid, path) for row in sick if row["x"] != ""]
            linked = link(rectangles, least_iou=self.least_iou)
            boxes = tuple(canonical_box(box, described.grid) for _, box in linked)
            known["group"] = "sick" if sick else "healthy"
            if sick:
                known["findings"] = "; ".join(sorted({row["label"] for row in sick}))
        return Case(path.stem, patient, images, None, known, boxes=boxes)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.h5") if not p.name.startswith("."))


def _annotations(root: Path) -> tuple[dict[str, list[Row]], set[str]]:
    """File -> rows, and all files that were looked at."""
    marked: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for folder in folders(root, DEPTH):
        for name in TABLES:
            if (folder / name).is_file():
                for row in rows(folder / name, NEEDED):
                    marked[row["file"].removesuffix(".h5")].append(row)
            listed = folder / name.replace(".csv", "_file_list.csv")
            if listed.is_file():
                # one name a line, without a header
                names = listed.read_text(encoding="utf-8-sig").split()
                seen |= {line.strip(",").removesuffix(".h5") for line in names}
    return marked, seen


def _rectangle(row: Row, grid: Grid, path: Path) -> Rectangle:
    """A row on the stored array; the picture's row 0 is its last one."""
    names = ("slice", "x", "y", "width", "height")
    values = [number(row[name]) for name in names]
    for name, value in zip(names, values, strict=True):
        if isinstance(value, str) or value != int(value):
            raise DataError(f"annotations: expected a whole {name}, got {row[name]!r}.")
    at, x, y, width, height = (int(value) for value in values)
    columns, lines, slices = grid.shape
    # the labelling tool lets rectangles end up to a pixel outside
    x0, x1 = max(x, 0), min(x + width, columns)
    y0, y1 = max(y, 0), min(y + height, lines)
    if not 0 <= at < slices or x0 >= x1 or y0 >= y1:
        raise DataError(
            f"annotations: {row['label']} at slice {at}, x {x}, y {y} does not lie in "
            f"{path.name} with {slices} slices of {columns} x {lines}."
        )
    return Rectangle(at, row["label"], x0, lines - y1, x1, lines - y0)
