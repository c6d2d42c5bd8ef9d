"""LIDC-IDRI: CT of the chest with lung nodules, as TCIA delivers it.

    [LIDC-IDRI/]LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192/1-001.dcm, 069.xml
    [LIDC-XML-only/]tcia-lidc-xml/157/158.xml

Folders with a series of CT are cases, in Hounsfield units; radiographs are left out. The XML of a
series lies beside its slices, or in a tree of its own that TCIA offers beside the images, as
pylidc expects them: then it names the series.

References:
    Armato et al. (2011), The Lung Image Database Consortium (LIDC) and Image Database Resource
    Initiative (IDRI), doi:10.1118/1.3528204
    Setio et al. (2017), Validation, comparison, and combination of algorithms for automatic
    detection of pulmonary nodules in CT: the LUNA16 challenge, arXiv:1612.08012
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem
from volumediff.data.dicom import series_grid
from volumediff.data.dicom_files.recognition import is_dicom, modality, series_uid
from volumediff.data.grid import canonical_box
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders
from volumediff.data.layouts._lidc import Reading, consensus, contours, reading_of
from volumediff.errors import DataError

__all__ = ["LIDC"]

PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
XML_FOLDER, XML_DEPTH = re.compile(r"LIDC-XML-only|tcia-lidc-xml", re.I), 2
# Wrappers of a download; study and series below a patient.
DEPTH, INNER = 2, 2


@dataclass(frozen=True)
class LIDC(Layout):
    """One case per CT series; boxes, group and contours of the readers where the XML is there.

    Contours are filled when a case is prepared, and the majority of the readers is its label: at
    least two of four. Readers are numbered anew in every case.

    Arguments:
        readers: of the four, how many must have marked a nodule; 3 as in LUNA16
    """

    tables: ClassVar[tuple[str, ...]] = ("*.xml",)

    readers: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.readers <= 4:
            raise ValueError(f"LIDC takes readers from 1 to 4, got {self.readers}.")

    def recognises(self, root: Path) -> bool:
        return any(PATIENT.fullmatch(f.name) for f in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases, problems = [], []
        apart = _readings_apart(root)
        for patient in folders(root, DEPTH):
            if not PATIENT.fullmatch(patient.name):
                continue
            series = [folder for folder in folders(patient, INNER) if _is_ct(folder)]
            for i, folder in enumerate(series, start=1):
                name = patient.name if len(series) == 1 else f"{patient.name}_{i}"
                try:
                    cases.append(self._case(name, patient.name, folder, apart))
                except DataError as error:
                    problems.append(Problem(name, str(error), files=(folder,)))
        return cases, problems

    def _case(self, name: str, patient: str, folder: Path, apart: Mapping[str, Reading]) -> Case:
        files = sorted(folder.glob("*.xml"))
        read = [found for found in map(reading_of, files) if found is not None]
        if len(read) > 1:
            raise DataError(f"{folder}: {len(read)} XML files of a CT; keep one.")
        images = {"image": folder}
        if not read and apart:
            found = apart.get(_series_uid(folder))
            read = [] if found is None else [found]
        if not read:
            return Case(name, patient, images)
        (reading,), grid = read, series_grid(folder)
        agreed = consensus(reading.outlines, grid, readers=self.readers)
        boxes = [canonical_box(box, grid) for box in agreed]
        # a nodule that fewer have marked is a doubt, and no health
        group = "sick" if boxes else "unsure" if reading.outlines else "healthy"
        known: dict[str, str | float] = {"group": group, "nodules": float(len(boxes))}
        drawn = contours(reading, grid)
        return Case(name, patient, images, None, known, boxes=tuple(boxes), contours=drawn)


def _readings_apart(root: Path) -> dict[str, Reading]:
    """Readings by series UID, of files that lie in a tree of their own."""
    found = {}
    for folder in folders(root, XML_DEPTH):
        if XML_FOLDER.fullmatch(folder.name):
            for path in sorted(folder.rglob("*.xml")):
                reading = reading_of(path)
                if reading is not None and reading.series:
                    found[reading.series] = reading
            break  # the rest lies below it
    return found


def _series_uid(folder: Path) -> str:
    """The UID that the first slice of a series names."""
    return next((series_uid(p) for p in sorted(folder.iterdir()) if is_dicom(p)), "")


def _is_ct(folder: Path) -> bool:
    slices = (p for p in sorted(folder.iterdir()) if is_dicom(p))
    first = next(slices, None)
    return first is not None and modality(first) == "CT"
