"""The account of a data set: every file that looks like data is in a case, or is named once.

Whoever reads a folder takes the files that it knows. What it does not know looks the same as what
is not there: half of a series, labels under another name, a format that nobody reads. So all files
below the root are listed, those of the cases and those that the layout has given a reason for are
taken away, and the rest is named by kind. `info` is for what is left out by rule (masks of the
brain, derivatives, pictures), `warning` for what somebody may miss.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from volumediff.data.cases import Case, Problem
from volumediff.data.dicom_files.recognition import SUFFIXES, is_dicom
from volumediff.data.layouts._base import CONVENTION, Layout
from volumediff.data.layouts._files import ASIDE, LABEL_FOLDERS, VOLUME
from volumediff.data.layouts._roles import parsed
from volumediff.data.patients import TABLES
from volumediff.errors import UsageError

__all__ = ["left_out", "refuse_left_out", "unaccounted"]

# Volumes in formats that nothing here reads.
FOREIGN = re.compile(
    r"\.(npy|npz|mnc|minc|mif(\.gz)?|mih|gipl(\.gz)?|vtk|vti|tiff?|par|rec|brik(\.gz)?|zarr|"
    r"img(\.gz)?|hdr\.gz|raw|zraw|ecat|h5|hdf5)$",
    re.I,
)
ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|7z|rar|bz2|xz|zst)$", re.I)
UNFINISHED = re.compile(r"\.(part|partial|crdownload|aria2|tmp)$", re.I)
PICTURE = re.compile(r"\.(png|jpe?g|bmp|gif)$", re.I)
TABLE = re.compile(r"\.(csv|tsv|xlsx?|ods)$", re.I)
DESCRIPTION = re.compile(r"\.(json|ya?ml|bval|bvec|xml|mat)$", re.I)
# Files without an ending of ours are opened to see whether they are DICOM, if they have no ending
# at all, or a number: 1.2.840.113619.2, IM00001.
UNNAMED = re.compile(r"^[^.]*$|\.\d+$|^[\d.]+$")
# Voxels of a header that lies beside them.
VOXELS = {".raw": (".nhdr", ".mhd"), ".zraw": (".mhd",), ".img": (".hdr",), ".gz": (".nhdr",)}
# Made by `prepare` for people and for `restore`.
OWN = ("prepared.json", "*_transform.json", "*_qc.png", *TABLES)
SHOWN = 8

Severity = Literal["info", "warning"]


@dataclass(frozen=True)
class _Reason:
    """Why files are in no case."""

    severity: Severity
    what: str
    why: str


def unaccounted(
    root: Path, layout: Layout | None, cases: Iterable[Case], problems: Iterable[Problem]
) -> list[Problem]:
    """One row for every kind of file below a root that is in no case and has no reason yet.

    Arguments:
        root: a folder; of a list or table that is given as a file, nothing is said
        layout: that has read the folder; None for one DICOM series
        cases: that it has found
        problems: what it has said
    """
    if not root.is_dir():
        return []
    top = os.path.realpath(root)
    taken = _taken(root, top, cases, problems)
    groups: dict[_Reason, list[str]] = defaultdict(list)
    for folder, names in _listing(top):
        inside = () if folder == top else Path(os.path.relpath(folder, top)).parts
        together, series = set(names), folder in taken
        for name in names:
            path = f"{folder}{os.sep}{name}"
            if path in taken or (os.path.islink(path) and os.path.realpath(path) in taken):
                continue
            if series and _may_be_slice(name):
                continue  # whoever reads the series judges each of its members
            reason = _reason(name, path, inside, layout)
            if reason is not None and not _belongs(name, together, layout):
                groups[reason].append(path)
    return [_row(top, reason, groups[reason]) for reason in sorted(groups, key=_order)]


def left_out(problems: Iterable[Problem], root: Path | str) -> str | None:
    """One line on the files that somebody may miss; None where there are none."""
    count = sum(len(p.files) for p in problems if p.severity == "warning")
    if not count:
        return None
    files = "1 file is" if count == 1 else f"{count} files are"
    return f"{files} in no case; `volumediff check {root}` names them."


def refuse_left_out(problems: Iterable[Problem]) -> None:
    """Refuses a data set with files that somebody may miss.

    Raises:
        UsageError: there are some; the first reason, and how many others
    """
    found = [p for p in problems if p.severity == "warning" and p.files]
    if found:
        more = f" ({len(found) - 1} more such remarks)" if len(found) > 1 else ""
        raise UsageError(
            f"strict: {found[0].id}: {found[0].message}{more} Take the files away or name them as "
            "the layout expects."
        )


def _listing(root: str) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names of their files, hidden ones left out."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder, sorted(name for name in files if not name.startswith("."))


def _taken(root: Path, top: str, cases: Iterable[Case], problems: Iterable[Problem]) -> set[str]:
    """The files of cases, the folders of series and what has a reason, below the real root."""
    given = os.path.abspath(root)
    files = [file for problem in problems for file in problem.files]
    for case in cases:
        files += [*case.images.values(), *case.label_files.values()]
        files += [] if case.associated is None else [case.associated]
    found = set()
    for file in files:
        path = os.path.abspath(file)
        below = path.startswith(given) and path[len(given) : len(given) + 1] in ("", os.sep)
        found.add(top + path[len(given) :] if below else path)
    return found


def _reason(name: str, path: str, folders: Sequence[str], layout: Layout | None) -> _Reason | None:
    """Why a file that is in no case is in none; None for one that is no data."""
    aside = folders[0] if folders and folders[0] in ASIDE else None
    if VOLUME.search(name):
        role = parsed(VOLUME.sub("", name)).role
        if role == "auxiliary":
            return _Reason("info", "masks of the brain, head or body, or votes", "are no labels")
        if aside:
            return _Reason("info", f"volumes below {aside}/", "are not read as images")
        if layout is not None and layout.rank < CONVENTION:
            return _Reason("info", "volumes", f"are left out by the layout '{_name(layout)}'")
        if role != "image" or any(f.lower() in LABEL_FOLDERS for f in folders):
            return _Reason("warning", "labels", "belong to no case; compare their names")
        return _Reason("warning", "volumes", _where(folders, layout))
    if _may_be_slice(name) and (name.lower().endswith(SUFFIXES) or is_dicom(Path(path))):
        if name.upper() == "DICOMDIR":
            return None
        if aside:
            return _Reason("info", f"DICOM files below {aside}/", "are not read")
        return _Reason(
            "warning", "DICOM files", "are in no case; give each series a folder of its own"
        )
    if PICTURE.search(name):
        return _Reason("info", "pictures", "are in no case")
    if UNFINISHED.search(name):
        return _Reason("warning", "unfinished downloads", "are not read; finish them")
    if ARCHIVE.search(name):
        return _Reason("warning", "archives", "are not opened; unpack them")
    if FOREIGN.search(name):
        ending = re.sub(r"^.*?(\.[^.]+(\.gz)?)$", r"\1", name.lower())
        return _Reason("warning", f"{ending} files", "are not read; convert them to NIfTI")
    if TABLE.search(name):
        return _Reason("info", "tables", "are not read")
    if DESCRIPTION.search(name):
        return _Reason("info", "descriptions", "are not read")
    return None


def _may_be_slice(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) or UNNAMED.search(name) is not None


def _where(folders: Sequence[str], layout: Layout | None) -> str:
    """Why volumes are in no case: they lie where the layout does not look, or are named oddly."""
    known = "" if layout is None else f" as layout '{_name(layout)}'"
    if len(folders) > 1:
        return f"are in no case{known}: they lie {len(folders)} folders deep or have other names"
    return f"are in no case{known}: their names do not fit"


def _name(layout: Layout) -> str:
    return type(layout).__module__.rpartition(".")[2]


def _belongs(name: str, together: set[str], layout: Layout | None) -> bool:
    """Whether a file is known by its name: a table that is read, a sidecar, or voxels of a
    header."""
    read = () if layout is None else layout.tables
    if any(fnmatch(name, pattern) for pattern in (*read, *OWN)):
        return True
    stem, ending = os.path.splitext(name)
    headers = VOXELS.get(ending.lower(), ())
    if any(f"{stem.removesuffix('.raw')}{header}" in together for header in headers):
        return True
    sidecar = ending.lower() in (".json", ".bval", ".bvec", ".png", ".xml")
    return sidecar and any(stem + e in together for e in (".nii.gz", ".nii", ".nrrd", ".mha"))


def _row(root: str, reason: _Reason, paths: Sequence[str]) -> Problem:
    names = [os.path.relpath(path, root) for path in paths]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    count = "" if len(names) == 1 else f"{len(names)} "
    text = f"{count}{reason.what} {reason.why}: {', '.join(names[:SHOWN])}{more}."
    return Problem(os.path.basename(root), text, reason.severity, tuple(map(Path, paths)))


def _order(reason: _Reason) -> tuple[bool, str]:
    return reason.severity == "info", reason.what
