"""The contract of layouts: every file of an example is in a case or named, and nothing is made up.

The example is a folder that holds a small data set of this kind, with all of its usual files; they
may be empty, since layouts go by names.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volumediff.contracts.requirements import built, require
from volumediff.data.cases import Case
from volumediff.data.layouts._base import ANYTHING, Found, Layout
from volumediff.errors import UsageError

__all__ = ["check_layout"]

VOLUMES = (".nii", ".nii.gz", ".nhdr", ".nrrd", ".mha", ".h5", ".dcm", ".png", ".jpg", ".jpeg")


def check_layout(
    cls: type, *, root: Path | str | None = None, unused: Sequence[str] = (), **arguments: Any
) -> None:
    """Recognises its own data alone, and accounts for every volume in it.

    Arguments:
        root: the example, a folder or the file of a list
        unused: patterns such as `**/raw/*`, of volumes that the layout leaves out on purpose

    Raises:
        UsageError: no example
    """
    layout: Layout = built(cls, arguments)
    if root is None:
        raise UsageError(
            f"layout {cls.__name__}: expected root=FOLDER, a small example of the data set, got "
            "none; empty files will do."
        )
    root = Path(root)
    base = root if root.is_dir() else root.parent
    before = _listing(base)
    require(layout.recognises(root), f"It does not recognise the example {root.name}.")
    found = layout.read(root)
    require(_listing(base) == before, "Reading changes the files of the data set.")
    _cases(found[0], base)
    _accounted(found, base, unused)
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        empty.mkdir()
        (empty / "notes.txt").write_text("nothing\n")
        if layout.rank < ANYTHING:
            require(not layout.recognises(empty), "It recognises a folder without any volume.")
        moved = Path(folder) / "elsewhere"
        shutil.copytree(base, moved)
        again = layout.read(moved / root.relative_to(base))
        require(
            sorted(c.id for c in again[0]) == sorted(c.id for c in found[0]),
            "Ids of cases depend on where the data set lies.",
        )


def _listing(root: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))


def _cases(cases: Sequence[Case], base: Path) -> None:
    require(len(cases) > 0, "It finds no case in the example.")
    ids = [c.id for c in cases]
    require(len(set(ids)) == len(ids), "Two cases have the same id.")
    for case in cases:
        require(bool(case.images), f"The case {case.id} has no image.")
        require(bool(case.patient), f"The case {case.id} has no patient.")
        for path in _paths(case):
            require(path.exists(), f"The case {case.id} names {path.name}, which is not there.")
    require(
        all(p.resolve().is_relative_to(base.resolve()) for c in cases for p in _paths(c)),
        "A case names a file outside of the data set.",
    )


def _paths(case: Case) -> list[Path]:
    associated = [] if case.associated is None else [case.associated]
    return [*case.images.values(), *case.label_files.values(), *associated]


def _accounted(found: Found, base: Path, unused: Sequence[str]) -> None:
    cases, problems = found
    used = {path.resolve() for case in cases for path in _paths(case)}
    named = " ".join(f"{p.id} {p.message}" for p in problems)
    left_out = {path for pattern in unused for path in base.glob(pattern)}
    for path in sorted(base.rglob("*")):
        if not path.name.lower().endswith(VOLUMES) or path in left_out:
            continue
        own = {path.resolve(), *path.resolve().parents}
        # a reader of the message must find the file: by its name, or by what it is called in it
        words = (path.name, path.name.partition(".")[0])
        require(
            own & used or any(word in named for word in words),
            f"{path.relative_to(base)} is in no case, and no problem names it.",
        )
