"""Which cases a folder has, whatever its layout.

How data sets lie on a disk is known to the family `layouts`, one file each: public data sets as
they are downloaded, and the conventions (nnU-Net raw, BIDS, MONAI datalist, a table, plain
folders). What they have in common is here.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from volumediff.config import available, build, reference
from volumediff.data.account import unaccounted
from volumediff.data.cases import Case, Problem, readable, safe_id
from volumediff.data.layouts._base import Layout
from volumediff.data.layouts.table import NAME as TABLE
from volumediff.data.patients import listed, whose
from volumediff.data.single_case import case_of_file, data_set_of, is_series, is_volume
from volumediff.errors import DataError, UsageError

__all__ = [
    "AUTO",
    "Spec",
    "find_cases",
    "layout_of",
    "survey_cases",
    "survey_sources",
    "surveyed_once",
]

Spec = str | Mapping[str, Any]
"""`auto`, the name of a layout, or a mapping of its name and options."""

AUTO = "auto"

# A layout, what it has read, and the files that are in no case and have no reason yet.
_Listing = tuple[Layout, list[Case], list[Problem], list[Problem]]
# Those of folders that were read already, while `surveyed_once` is in force.
_KNOWN: ContextVar[dict[str, _Listing] | None] = ContextVar("surveyed", default=None)


def find_cases(
    root: Path | str, layout: Spec = AUTO, channels: Sequence[str] | None = None
) -> list[Case]:
    """All cases below a folder (or of a datalist file), sorted by id.

    Arguments:
        root: the folder, or the JSON file of a datalist
        layout: `auto` decides by the files that are there; `volumediff info` lists the names
        channels: names of the images that every case must have, in this order; None takes the
            images that each case has

    Raises:
        DataError: no case, a missing channel, ambiguous files, or a path that leaves the root
        UsageError: no such layout, or options that it does not take
    """
    cases, problems = survey_cases(root, layout, channels)
    problems = [problem for problem in problems if problem.severity == "error"]
    if problems:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{root}: case {problems[0].id}: {problems[0].message}{rest}")
    return cases


def layout_of(root: Path, spec: Spec = AUTO) -> Layout:
    """The layout of a folder: as asked for, or by files that only one layout has.

    Raises:
        DataError: nothing there, or two layouts fit
        UsageError: no such layout
    """
    if not root.exists():
        raise DataError(f"{root}: expected a data folder or a datalist, nothing is there.")
    if spec != AUTO:
        return build("layout", spec, where="layout")
    if (root / "prepared.json").is_file() and not (root / TABLE).is_file():
        return build("layout", "folder")  # whatever the cases are called: `prepare` wrote it
    fitting: dict[int, list[str]] = {}
    known = {name: build("layout", name) for name in available("layout")}
    for name, layout in known.items():
        if layout.recognises(root):
            fitting.setdefault(layout.rank, []).append(name)
    if not fitting:
        raise DataError(
            f"{root}: expected a volume (.nii, .nii.gz), a folder of volumes, the .json of a "
            "datalist or a table of cases (.csv)."
        )
    first, *others = fitting[min(fitting)]
    if others:
        raise DataError(
            f"{root}: looks like {first} and like {', '.join(others)}; name the layout, or give "
            "the folder of one data set."
        )
    return known[first]


def survey_cases(
    root: Path | str, layout: Spec = AUTO, channels: Sequence[str] | None = None
) -> tuple[list[Case], list[Problem]]:
    """The usable cases of a data set, or of one volume, and the others with the reason.

    Arguments:
        root, layout, channels: as for `find_cases`

    Raises:
        DataError: nothing there, or no case
        UsageError: no such layout, or a file alone where several channels are needed
    """
    root = Path(root)
    if is_volume(root) or (layout == AUTO and is_series(root)):
        case = _alone(root, layout, channels)
        return [case], unaccounted(root, None, [case], [])
    reader, found, read, left = _read_once(root, layout)
    problems, patients = list(read), listed(root)
    kept: dict[str, Case] = {}
    for case in found:
        case = replace(case, id=safe_id(case.id), patient=readable(case.patient))
        case, message = whose(case, patients)
        if message:
            pass
        elif case.id in kept:
            message = "two cases have this id; rename one."
        elif channels is not None:
            case, message = _with_channels(case, channels)
        elif not case.images:
            file = next(iter(case.label_files.values()), case.associated)
            message = f"has a label ({file}) but no image; add the image or remove the label."
        if message:
            problems.append(Problem(case.id, message, files=tuple(_files(case))))
        else:
            kept[case.id] = case
    problems += left
    if not kept and not any(problem.severity == "error" for problem in problems):
        left = [problem.message for problem in problems if problem.severity == "warning"]
        raise DataError(
            f"{root}: no case found as layout '{reference(type(reader))}'; expected .nii.gz "
            "files, one folder per case, or a layout that `volumediff info` lists."
            + "".join(f" Seen: {message}" for message in left[:1])
        )
    return [kept[k] for k in sorted(kept)], problems


@contextmanager
def surveyed_once() -> Iterator[None]:
    """Within it a folder is listed and read once, however many ask: for a command, whose inputs
    stay as they are while it runs."""
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _read_once(root: Path, layout: Spec) -> _Listing:
    known, key = _KNOWN.get(), f"{os.path.abspath(root)}\0{layout!r}"
    if known is not None and key in known:
        return known[key]
    reader = layout_of(root, layout)
    found, problems = reader.read(root)
    listing = reader, found, problems, unaccounted(root, reader, found, problems)
    if known is not None:
        known[key] = listing
    return listing


def survey_sources(
    sources: Sequence[Path | str], layout: Spec = AUTO, channels: Sequence[str] | None = None
) -> tuple[list[Case], list[Problem]]:
    """The cases of several data sets or volumes, and those that cannot be used.

    Arguments:
        sources: volumes, DICOM series, folders, datalists or tables of cases
        layout, channels: as for `find_cases`

    Raises:
        DataError: nothing there, or a source without a case
        UsageError: two cases of one id, no such layout, or no sources
    """
    if not sources:
        raise UsageError("expected a volume, a folder or a datalist to work on, got none.")
    cases: list[Case] = []
    problems: list[Problem] = []
    origin: dict[str, Path] = {}
    for path in map(Path, sources):
        found, bad = survey_cases(path, layout, channels)
        names = [*(c.id for c in found), *(p.id for p in bad if p.severity == "error")]
        for name in names:
            if name in origin:
                raise UsageError(
                    f"{origin[name]} and {path}: both have a case called {name}; rename one, or "
                    "give them to two calls with an output folder each."
                )
        origin |= dict.fromkeys(names, path)
        cases += found
        problems += bad
    return cases, problems


def _files(case: Case) -> list[Path]:
    associated = [] if case.associated is None else [case.associated]
    return [*case.images.values(), *case.label_files.values(), *associated]


def _alone(path: Path, layout: Spec, channels: Sequence[str] | None) -> Case:
    """The case of a file, with the other channels that lie beside it where they are needed."""
    several = channels is not None and len(channels) > 1
    case = None
    if not path.is_dir():
        home = data_set_of(path)
        if layout != AUTO or several or (home / TABLE).is_file():
            case = _holding(path, survey_cases(home, layout, channels if several else None)[0])
            if case is None and several:
                raise UsageError(
                    f"{path}: expected the channels {', '.join(channels or ())}, and they do not "
                    "lie beside this file; give the folder of the case."
                )
            if case is None and layout != AUTO:
                raise UsageError(f"{path}: is in no case of {home} as layout {layout}.")
    if case is not None and several:
        return case
    found = case_of_file(path) if case is None else case
    known = next((n for n, p in found.images.items() if p.resolve() == path.resolve()), "image")
    name = known if channels is None else channels[0]
    return replace(found.unmarked(), images={name: path})


def _holding(path: Path, cases: Sequence[Case]) -> Case | None:
    """The case that has a file among its images."""
    wanted = path.resolve()
    return next((c for c in cases if any(p.resolve() == wanted for p in c.images.values())), None)


def _with_channels(case: Case, channels: Sequence[str]) -> tuple[Case, str | None]:
    if list(case.images) == [str(i) for i in range(len(channels))]:  # numbers instead of names
        return replace(case, images=dict(zip(channels, case.images.values(), strict=True))), None
    have = {name.lower(): name for name in case.images}
    missing = [c for c in channels if c.lower() not in have]
    if missing:
        similar = [n for n in case.images if n.lower().endswith(f"_{missing[0].lower()}")]
        if similar:
            hint = f"several files fit: name one of {', '.join(similar)}."
        else:
            hint = f"it has {', '.join(case.images) or 'no image'}; add the file or name others."
        return case, f"missing channel '{missing[0]}': {hint}"
    return replace(case, images={c: case.images[have[c.lower()]] for c in channels}), None
