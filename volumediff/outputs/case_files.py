"""Where the files of a case lie in an output folder, and what their names begin with.

A case whose images lie in a BIDS data set has its outputs where BIDS wants derivatives: in the
same folders below the output folder, under names that begin with the entities that its images
share (BIDS 1.10, "Common data types and metadata", derivatives).

    OUT/sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_desc-anomaly_mask.nii.gz

The outputs of any other case lie in the output folder itself.

    OUT/<case>_desc-anomaly_mask.nii.gz
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.data.files import stem_of
from volumediff.errors import DataError
from volumediff.runs.inputs import Examination

__all__ = [
    "CaseFiles",
    "by_case",
    "case_files",
    "case_of",
    "examination_files",
    "written",
]

LABEL = "[A-Za-z0-9+]+"
BIDS_NAME = re.compile(rf"(sub-{LABEL})(?:_(ses-{LABEL}))?((?:_[a-z]+-{LABEL})*)_([A-Za-z0-9]+)")
EXAMINATION = re.compile(rf"sub-{LABEL}(_ses-{LABEL})?")
# Entities that say what a derivative is; ours say it themselves.
OWN_ENTITIES = ("label", "desc")
PLACES = ("", "sub-*/*/", "sub-*/ses-*/*/")


@dataclass(frozen=True)
class CaseFiles:
    """The outputs of one case.

    Arguments:
        folder: where they lie
        stem: what their names begin with
        sources: BIDS URIs of the images; empty where they lie in no BIDS data set
        links: name in these URIs -> URL of the data set
    """

    folder: Path
    stem: str
    sources: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def path(self, name: str, ending: str = ".nii.gz") -> Path:
        """The file of an output, such as `desc-anomaly_mask`."""
        return self.folder / f"{self.stem}_{name}{ending}"


def case_files(out: Path, case: Case) -> CaseFiles:
    """Where the outputs of a case are written."""
    return _placed(out, case.id, case.images.values())


def examination_files(out: Path, examination: Examination) -> CaseFiles:
    """Where the outputs of an examination are written: those of its case, or, of images that a
    program holds in memory, in the output folder itself."""
    measured = (x for n, x in examination.images.items() if n not in examination.filled)
    return _placed(out, examination.id, [image.path for image in measured])


def _placed(out: Path, case: str, images: Iterable[Path | None]) -> CaseFiles:
    named = [_named(path) for path in images]
    known = [one for one in named if one is not None and one.case == case]
    if not known or len(known) < len(named):
        return CaseFiles(out, case)
    first, *others = known
    shared = [e for e in first.entities if all(e in other.entities for other in others)]
    kept = [e for e in shared if e.partition("-")[0] not in OWN_ENTITIES]
    return CaseFiles(
        out / first.place,
        "_".join([case, *kept]),
        tuple(f"bids:{one.link}:{(one.place / one.file).as_posix()}" for one in known),
        {one.link: one.root.as_uri() for one in known},
    )


def written(out: Path, pattern: str) -> list[Path]:
    """The files of a pattern, of all cases of an output folder, in order.

    Arguments:
        out: output folder
        pattern: of the file name, such as `*_dseg.nii.gz`
    """
    return [
        path
        for place in PLACES
        for path in sorted(out.glob(f"{place}{pattern}"))
        if path.is_file()
    ]


def by_case(out: Path, paths: Iterable[Path], tail: str) -> dict[str, Path]:
    """The file of each case.

    Arguments:
        out: output folder
        paths: of one kind of output
        tail: what their names have behind the case's, such as `_dseg.nii.gz`

    Raises:
        DataError: two files of one case
    """
    found: dict[str, Path] = {}
    for path in paths:
        case = case_of(out, path, path.name.removesuffix(tail))
        if found.setdefault(case, path) != path:
            raise DataError(
                f"{out}: expected one file of {case}, got {found[case]} and {path}; keep one."
            )
    return found


def case_of(out: Path, path: Path, stem: str) -> str:
    """The id of the case of a file.

    Arguments:
        out: output folder
        path: of the file
        stem: its name without that of the output
    """
    match = EXAMINATION.match(stem)
    return stem if path.parent == out or match is None else match[0]


@dataclass(frozen=True)
class _Named:
    """What the path of an image in a BIDS data set says.

    Arguments:
        case: subject and session
        root: the data set
        place: its folder below the data set
        file: its name
        entities: in their order, without subject and session
    """

    case: str
    root: Path
    place: Path
    file: str
    entities: tuple[str, ...]

    @property
    def link(self) -> str:
        """The name of the data set in BIDS URIs."""
        return re.sub(r"[^A-Za-z0-9]+", "", self.root.name) or "raw"


def _named(path: Path | None) -> _Named | None:
    """None where an image lies in no BIDS data set: sub-<>/[ses-<>/]<data type>/<name>."""
    match = None if path is None else BIDS_NAME.fullmatch(stem_of(path))
    if path is None or match is None:
        return None
    levels = [level for level in match.group(1, 2) if level is not None]
    folder = path.absolute().parent
    *place, kind = folder.parts[-len(levels) - 1 :]
    if place != levels:
        return None
    return _Named(
        "_".join(levels),
        folder.parents[len(levels)],
        Path(*place, kind),
        path.name,
        tuple(match[3].split("_")[1:]),
    )
