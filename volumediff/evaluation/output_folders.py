"""Folders of outputs, one per method: their cases, what lies beside them, the truth they share."""

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from volumediff.data.cases import safe_id
from volumediff.data.files import stem_of
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.truths import Truth
from volumediff.outputs.case_files import by_case, written
from volumediff.outputs.export import MAP
from volumediff.outputs.ledger import LedgerEntry, changed_outputs, read_entries
from volumediff.outputs.segmentation_files import label_maps_in
from volumediff.outputs.sidecar import read_facts

__all__ = [
    "costs_in",
    "known_cases",
    "maps_in",
    "method_name",
    "refuse_twice",
    "segmentations_in",
    "sidecar",
]

COST_NAMES = ("seconds", "network_calls", "peak_gb")


def maps_in(folder: Path) -> dict[str, Path]:
    """The anomaly map of each case in a folder."""
    tail = f"_{MAP}.nii.gz"
    return by_case(folder, written(folder, f"*{tail}"), tail)


def segmentations_in(folder: Path, truths: Mapping[str, Truth]) -> dict[str, Path]:
    """The label map of each case in a folder, under the name that the truth gives the case.

    A folder without any `<case>_dseg.nii.gz` is one of another program: its files are label maps
    if they are named after cases of the truth, with or without a last word such as `_seg`.

    Raises:
        DataError: two label maps of one case
    """
    own = label_maps_in(folder)
    pairs = [*own.items()]
    if not own and not maps_in(folder):
        for path in sorted(folder.glob("*.nii*")):
            stem = stem_of(path)
            names = (safe_id(stem), safe_id(stem.rpartition("_")[0]))
            pairs += [(name, path) for name in names if name in truths][:1]
    found: dict[str, Path] = {}
    for name, path in pairs:
        case = truths[name].case if name in truths else name
        if case in found:
            raise DataError(
                f"{folder}: expected one label map of {case}, got {found[case].name} and "
                f"{path.name}; keep one."
            )
        found[case] = path
    return found


def sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside an output; nothing where another program wrote it.

    Raises:
        DataError: it is damaged, or an anomaly map has none
    """
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    ours = path.name.endswith(f"_{MAP}.nii.gz")
    return read_facts(beside) if ours or beside.is_file() else {}


def method_name(folder: Path, facts: Mapping[str, Any], taken: Container[str]) -> str:
    """The name of the method of a folder: its own, or the folder's where another has that.

    Raises:
        UsageError: both are taken
    """
    name = str(facts.get("method") or folder.name)
    name = name if name not in taken else folder.name
    if name in taken:
        raise UsageError(f"{folder}: '{name}' is evaluated already; give each folder once.")
    return name


def costs_in(folder: Path) -> dict[str, dict[str, float]]:
    """case -> what it cost, by the ledger of the folder."""
    return {case: _spent(entry) for case, entry in read_entries(folder).items()}


def _spent(entry: LedgerEntry) -> dict[str, float]:
    known = {name: getattr(entry, name, None) for name in COST_NAMES}
    return {name: float(value) for name, value in known.items() if value is not None}


def refuse_twice(folder: Path, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
    """One volume under two names would count twice.

    Raises:
        DataError: two cases were made of the same file
    """
    owners: dict[str, str] = {}
    for case, content in sidecars.items():
        for digest in {str(i.get("sha256") or "") for i in (content.get("inputs") or {}).values()}:
            if digest and owners.setdefault(digest, case) != case:
                raise DataError(
                    f"{folder}: expected every volume once, got {owners[digest]} and {case} of "
                    "the same file (equal SHA-256 in their sidecars); remove the outputs of one."
                )


def known_cases(
    outputs: Mapping[Path, Mapping[str, Path]],
    truths: Mapping[str, Truth],
    root: Path | str,
    *,
    by: str | None,
    report: Callable[[str], None],
) -> dict[str, Truth]:
    """The cases that every folder has, with their truth.

    Arguments:
        outputs: folder -> case -> file
        truths: of the data set, by every name that an output may have
        root: of the data set, for messages
        by: attribute that makes subgroups
        report: receives a line for everything that is left out

    Raises:
        UsageError: the folders share no case
        DataError: no truth for any of them
    """
    shared = set.intersection(*(set(m) for m in outputs.values()))
    if not shared:
        raise UsageError(
            f"{', '.join(map(str, outputs))}: expected results of the same cases, got folders "
            "without a case in common; evaluate them one by one."
        )
    for folder, found in outputs.items():
        if extra := sorted(set(found) - shared):
            report(
                f"{folder}: {len(extra)} cases are not in every folder and left out: {extra[0]}"
            )
    known = {case: truths[case] for case in sorted(shared) if case in truths}
    if missing := sorted(shared - set(known)):
        report(f"{root}: no truth for {len(missing)} cases, left out: {missing[0]}")
    if not known:
        raise DataError(
            f"{root}: no mask fits the cases of {next(iter(outputs))}, for example "
            f"{next(iter(sorted(shared)), 'none')}; expected <case>_mask.nii.gz or a data set "
            "with labels."
        )
    for folder in outputs:
        if changed := changed_outputs(folder, known):
            report(
                f"{folder}: {len(changed)} files are not as they were written, such as "
                f"{changed[0]}; results may differ from those of the method"
            )
    if by and not any(by in t.attributes for t in known.values()):
        there = sorted({name for t in known.values() for name in t.attributes})
        report(
            f"by {by}: no case has this attribute, subgroups are left out; there are "
            f"{', '.join(there) or 'none'}"
        )
    return known
