"""Whether a file is DICOM, told from its first bytes."""

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["SUFFIXES", "is_dicom", "is_named_like_dicom", "modality", "pattern", "series_uid"]

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
DEFLATED = b"1.2.840.10008.1.2.1.99"
# A value representation as it follows the first tag of a file without preamble.
EXPLICIT = re.compile(rb"[A-Z]{2}")
# Bytes in which the file's meta information ends, and in which the modality is looked for.
META_BYTES, HEAD_BYTES = 2**11, 2**20


def is_dicom(path: Path) -> bool:
    """A regular file with the mark behind the preamble, or one that begins, without a preamble,
    with an element of group 2 or 8."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    group, rest = head[:2], head[4:]
    if group not in (b"\x02\x00", b"\x08\x00") or len(head) < 16 or head[3] > 0x20:
        return False
    # an explicit VR, or the length of a short value
    return EXPLICIT.fullmatch(rest[:2]) is not None or int.from_bytes(rest[:4], "little") < 256


def is_named_like_dicom(path: Path, members: Iterable[str] = ()) -> bool:
    """Whether the name says DICOM: by its ending, or because it differs from the `pattern` of a
    member of the series in its digits alone."""
    return path.name.lower().endswith(SUFFIXES) or pattern(path.name) in set(members)


def pattern(name: str) -> str:
    """A file name with a # for each run of digits."""
    return re.sub(r"\d+", "#", name)


def modality(path: Path) -> str:
    """What a DICOM file is of, such as CT; nothing where that cannot be read."""
    return _said(path, "Modality")


def series_uid(path: Path) -> str:
    """The UID of the series of a DICOM file; nothing where that cannot be read."""
    return _said(path, "SeriesInstanceUID")


def _said(path: Path, keyword: str) -> str:
    """One of the first tags of a file, as text; nothing where that cannot be read."""
    from io import BytesIO

    import pydicom

    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if DEFLATED in head[:META_BYTES]:  # would grow without bound
        return ""
    try:
        found = pydicom.dcmread(
            BytesIO(head), stop_before_pixels=True, force=True, specific_tags=[keyword]
        )
        return str(found.get(keyword, "")).strip()
    except Exception:  # noqa: BLE001 whatever a parser makes of damaged bytes: they do not say
        return ""
