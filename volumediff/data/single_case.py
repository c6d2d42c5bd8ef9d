"""One path that is one case: a volume file, or a folder with one DICOM series.

A file that is given alone has the id, the patient and the attributes that it has in its data set,
so that results of a file and of its folder are the same results. Its path alone tells the data
set, and no other file is opened but its tables:

    sub-01[/ses-2]/anat/sub-01[_ses-2]_run-1_T1w.nii.gz    sub-01[_ses-2], BIDS
    imagesTr/p7_0000.nii.gz                                p7, nnU-Net raw
    p7/p7_T1w.nii.gz, p7/T1w.nii.gz                        p7, one folder per case
    p7_T1w.nii.gz                                          p7, a plain folder
"""

import re
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import Case, patient_of, safe_id
from volumediff.data.dicom_folders import holds_dicom
from volumediff.data.files import VOLUMES, stem_of
from volumediff.data.layouts._participants import Participants
from volumediff.data.layouts._roles import split_name
from volumediff.data.layouts.nnunet import NUMBERED
from volumediff.data.layouts.numbered import FOLDERS, Numbered
from volumediff.data.layouts.table import NAME as TABLE
from volumediff.data.patients import listed, whose

__all__ = ["case_of_file", "data_set_of", "is_series", "is_volume"]

SUBJECT = re.compile(r"(sub-[A-Za-z0-9+]+)(_ses-[A-Za-z0-9+]+)?(?:_(.*))?")
DEPTH = 4  # folders above a file that are asked for a table of cases


@dataclass(frozen=True)
class _Place:
    """Where a file belongs.

    Arguments:
        root: folder of the data set
        case: its id there
        channel: its name there
    """

    root: Path
    case: str
    channel: str


def is_volume(path: Path) -> bool:
    """Whether a path is a file whose name ends like a volume's."""
    return path.is_file() and path.name.lower().endswith(VOLUMES)


def is_series(path: Path) -> bool:
    """Whether a path is a folder of DICOM files, without volumes or tables beside them."""
    if not path.is_dir():
        return False
    files = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
    if any(p.name.lower().endswith((*VOLUMES, ".json", ".tsv", ".csv")) for p in files):
        return False
    return holds_dicom(path)


def data_set_of(path: Path) -> Path:
    """The folder of the data set that a volume file lies in: that of the nearest `cases.csv`
    above it, or else what its path says."""
    folders = path.absolute().parents[:DEPTH]
    listed = next((folder for folder in folders if (folder / TABLE).is_file()), None)
    return listed or _place(path).root


def case_of_file(path: Path) -> Case:
    """The case with this one image, as its path names it.

    Raises:
        DataError: a table of participants that cannot be understood
    """
    if path.is_dir():
        name = path.absolute().name
        return Case(safe_id(name), patient_of(name), {"image": path})
    place = _place(path)
    case = Case(safe_id(place.case), patient_of(place.case), {place.channel: path})
    # a file alone may be new to the table of its neighbours
    named, _ = whose(case, listed(place.root))
    return Participants(place.root).described(named)


def _place(path: Path) -> _Place:
    folder, stem = path.absolute().parent, stem_of(path)
    above = (folder, *folder.parents)
    if match := SUBJECT.fullmatch(stem):
        for i, ancestor in enumerate(above[:3]):  # modality, session, subject
            if ancestor.name == match[1] and i:
                channel = (match[3] or "image").rsplit("_", 1)[-1]
                return _Place(above[i + 1], match[1] + (match[2] or ""), channel)
    if match := NUMBERED.fullmatch(stem):
        if folder.name in FOLDERS:
            return _Place(folder.parent, match[1], "image")
        if Numbered().recognises(folder):
            return _Place(folder, match[1], "image")
    lower, own = stem.lower(), folder.name
    if own and lower.startswith((f"{own.lower()}_", f"{own.lower()}-")):
        return _Place(folder.parent, own, stem[len(own) + 1 :])
    case, channel = split_name(stem)
    if not case and own:
        return _Place(folder.parent, own, channel)
    return _Place(folder, case or stem, channel)
