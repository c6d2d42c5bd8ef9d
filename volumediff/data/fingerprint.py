"""What a prepared case was made of, as one digest: the cache is asked by it."""

from volumediff.data.cases import Case
from volumediff.data.files import contents
from volumediff.data.preprocessing import Preprocessing
from volumediff.storage.digests import sha256

__all__ = ["fingerprint"]

# Part of every fingerprint: raise it when the same options come to give other voxels.
VERSION = 3


def fingerprint(case: Case, preprocessing: Preprocessing) -> str:
    """SHA-256 over the bytes of a case's files, what counts in them, and the preprocessing."""
    parts: list[str | bytes] = [f"{VERSION} {preprocessing!r}"]
    if case.lesions is not None or case.boxes is not None:
        parts.append(f"\0lesions {case.lesions} boxes {case.boxes}")
    if case.spheres:
        parts.append(f"\0spheres {case.spheres}")
    if case.ignored:
        parts.append(f"\0ignored {case.ignored}")
    if case.contours:
        parts.append(f"\0contours {dict(case.contours)}")
    for name, path in [*case.images.items(), *case.label_files.items()]:
        parts += [f"\0{name}\0", *contents(path)]
    return sha256(*parts)
