"""GRAZPEDWRI-DX: radiographs of children's wrists, with fractures and other objects in boxes.

    dataset.csv, images_part1/0001_1297860395_01_WRI-L1_M014.png
    folder_structure/yolov5/labels/0001_1297860395_01_WRI-L1_M014.txt

The labels of YOLO are lines `class x y width height`, centre and size as shares of the picture.

References:
    Nagy et al. (2022), A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine
    learning, doi:10.1038/s41597-022-01328-z
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Box, Case, Problem
from volumediff.data.grid import canonical_box
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._tables import columns, number, rows
from volumediff.data.picture import picture_grid
from volumediff.errors import DataError

__all__ = ["GRAZPED"]

TABLE = "dataset.csv"
NEEDED = ("filestem", "patient_id", "fracture_visible")
# Order of the classes in the published labels.
OBJECTS = (
    *("boneanomaly", "bonelesion", "foreignbody", "fracture", "metal"),
    *("periostealreaction", "pronatorsign", "softtissue", "text"),
)
# With one of these a wrist is not healthy, even without a visible fracture.
ALSO_SICK = ("osteopenia", "metal", "cast", "diagnosis_uncertain")
LABELS = ("folder_structure/yolov5/labels", "yolov5/labels", "labels")
SEX = {"M": "male", "F": "female"}


@dataclass(frozen=True)
class GRAZPED(Layout):
    """One case per picture; boxes where the folder of labels is there.

    The group is `sick` with a visible fracture, `healthy` without it and without cast, metal,
    osteopenia or doubt, and `other` in between.

    Arguments:
        objects: whose boxes are lesions
    """

    tables: ClassVar[tuple[str, ...]] = ("dataset.csv",)

    objects: tuple[str, ...] = ("fracture",)

    def __post_init__(self) -> None:
        unknown = [name for name in self.objects if name not in OBJECTS]
        if unknown:
            raise ValueError(
                f"GRAZPED has no objects {unknown[0]}; choose from {', '.join(OBJECTS)}."
            )

    def recognises(self, root: Path) -> bool:
        return {"filestem", "ao_classification"} <= set(columns(root / TABLE))

    def read(self, root: Path) -> Found:
        pictures = {p.stem: p for p in root.glob("images*/*.png")}
        labels = next((root / name for name in LABELS if (root / name).is_dir()), None)
        cases, problems = [], []
        for row in rows(root / TABLE, NEEDED):
            name = row["filestem"]
            if name not in pictures:
                text = f"{TABLE}: no images*/{name}.png; unpack that part, too."
                problems.append(Problem(name, text))
                continue
            try:
                boxes = None if labels is None else self._boxes(labels, pictures[name])
            except DataError as error:
                problems.append(Problem(name, str(error), files=(pictures[name],)))
                continue
            patient, images = row["patient_id"], {"image": pictures[name]}
            cases.append(Case(name, patient, images, None, _attributes(row), boxes=boxes))
        return cases, problems

    def _boxes(self, labels: Path, picture: Path) -> tuple[Box, ...]:
        path = labels / f"{picture.stem}.txt"
        if not path.is_file():
            return ()
        wanted = {OBJECTS.index(name) for name in self.objects}
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            try:
                kind, (x, y, w, h) = int(words[0]), (float(word) for word in words[1:5])
            except (ValueError, IndexError) as error:
                text = f"{path}: expected `class x y width height`, got {line!r}."
                raise DataError(text) from error
            if kind in wanted:
                found.append((x, y, w, h))
        return _in_voxels(found, picture) if found else ()


def _attributes(row: dict[str, str]) -> dict[str, str | float]:
    known = {k: number(v) for k, v in row.items() if k not in NEEDED and v}
    fracture = number(row["fracture_visible"] or "0") == 1
    known["fracture_visible"] = float(fracture)
    doubt = any(known.get(name) == 1 for name in ALSO_SICK)
    known["group"] = "sick" if fracture else "other" if doubt else "healthy"
    if row.get("gender") in SEX:
        known["sex"] = SEX[row["gender"]]
    return known


def _in_voxels(found: list[tuple[float, float, float, float]], picture: Path) -> tuple[Box, ...]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture) as file:
            columns_, rows_ = file.size
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{picture}: expected a PNG picture; copy it again.") from error
    grid, boxes = picture_grid(columns_, rows_), []
    for x, y, w, h in found:
        left, right = _pixels(x - w / 2, x + w / 2, columns_)
        top, bottom = _pixels(y - h / 2, y + h / 2, rows_)
        boxes.append(canonical_box((left, top, 0, right, bottom, 1), grid))
    return tuple(boxes)


def _pixels(low: float, high: float, n: int) -> tuple[int, int]:
    """Pixels that a span of shares touches, up to the rounding of six decimals."""
    first = min(max(math.floor(low * n + 1e-3), 0), n - 1)
    return first, min(max(math.ceil(high * n - 1e-3), first + 1), n)
