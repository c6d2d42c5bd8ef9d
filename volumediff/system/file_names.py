"""Names that a folder cannot hold, or that are one and the same in it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from volumediff.system import WINDOWS

__all__ = ["case_matters", "unfit_name"]

# Microsoft (2024), "Naming files, paths, and namespaces": devices, with any suffix; characters.
DEVICES = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[1-9¹²³])\s*(?:[.:].*)?", re.I
)
CHARACTERS = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def unfit_name(folder: Path, names: Sequence[str]) -> str | None:
    """Why files cannot have these names in a folder; None where they can.

    Arguments:
        folder: which exists, and can be written
        names: of files to be written, each of them once
    """
    if WINDOWS:
        for name in names:
            if reserved_by_windows(name):
                return f"{name}: Windows has no files of this name"
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name and not case_matters(folder):
            return f"{other} and {name}: are one name here, where capital letters do not count"
    return None


def reserved_by_windows(name: str) -> bool:
    """Whether Windows has no file of that name."""
    return bool(DEVICES.fullmatch(name) or CHARACTERS.search(name)) or name[-1:] in (" ", ".")


def case_matters(folder: Path) -> bool:
    """Whether a folder tells `a` from `A`, which those of macOS and Windows usually do not."""
    probe = folder / f".volumediff-case-{os.getpid()}"
    probe.touch()
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()
