"""What a command is given: one file, a folder of cases in any layout, or a manifest."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from volumediff.data.cases import Case, patient_of, safe_id, survey_cases
from volumediff.data.dicom import is_dicom
from volumediff.data.stream import open_regular
from volumediff.data.volume import OTHER_FORMATS, SUFFIXES
from volumediff.errors import DataError, UsageError

__all__ = ["digests", "find_inputs", "stem_of"]

VOLUMES = (*SUFFIXES, *OTHER_FORMATS)


def stem_of(path: Path) -> str:
    """The name of a volume without its ending."""
    for suffix in VOLUMES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_inputs(
    source: Path | str, *, channels: Sequence[str] | None, siblings: bool = False
) -> tuple[list[Case], dict[str, str]]:
    """The cases that a command is to work on, without their labels, and those that cannot be.

    Arguments:
        source: a NIfTI file, a folder with one DICOM series, a folder of cases, or the JSON of a
            datalist
        channels: names of the images that the model takes; None takes a single image
        siblings: whether a single file needs what lies beside it, such as an age in
            participants.tsv

    Returns:
        the cases, and case -> reason for the others

    Raises:
        UsageError: nothing there, no usable case, or one file where several channels are needed
        DataError: a folder or manifest without cases
    """
    source = Path(source)
    if not source.exists():
        raise UsageError(f"-i {source}: expected a volume, a folder or a manifest; nothing there.")
    if source.is_file() and source.name.lower().endswith(VOLUMES):
        if siblings or (channels is not None and len(channels) > 1):
            return [_beside(source, channels)], {}
        name = stem_of(source)
        return [Case(safe_id(name), patient_of(name), {"image": source})], {}
    if source.is_file() and source.suffix.lower() != ".json":
        raise UsageError(
            f"-i {source}: expected .nii, .nii.gz, a folder, or the .json of a datalist."
        )
    if source.is_dir() and _is_series(source):
        return [Case(safe_id(source.name), patient_of(source.name), {"image": source})], {}
    found, problems = survey_cases(source, channels=channels)
    bad = {problem.id: problem.message for problem in problems if problem.severity == "error"}
    wanted = len(channels) if channels is not None else 1
    cases = []
    for case in found:
        if len(case.images) == wanted:
            cases.append(replace(case, label=None, boxes=None))
            continue
        bad[case.id] = (
            f"has the images {', '.join(case.images)}, the run takes {wanted}; name "
            f"{'it' if wanted == 1 else 'them'} with --channels {next(iter(case.images))}"
        )
    if not cases:
        name, reason = next(iter(bad.items()))
        raise UsageError(f"-i {source}: no usable case; {name}: {reason}")
    return cases, bad


def _beside(source: Path, channels: Sequence[str] | None) -> Case:
    """The case that a file belongs to, with its other channels and attributes."""
    cases, _ = survey_cases(source.parent, channels=channels)
    for case in cases:
        if any(path.resolve() == source.resolve() for path in case.images.values()):
            images = case.images if channels is not None else {"image": source}
            return replace(case, images=images, label=None, boxes=None)
    raise UsageError(
        f"-i {source}: the run takes the channels {', '.join(channels or ('image',))}, and they "
        "do not lie beside this file; give the folder of the case."
    )


def _is_series(folder: Path) -> bool:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    if any(p.name.lower().endswith((*VOLUMES, ".json", ".tsv")) for p in files):
        return False
    return any(is_dicom(p) for p in files[:20])


def digests(case: Case, *, also: Mapping[str, Path] = MappingProxyType({})) -> dict[str, str]:
    """SHA-256 of every file of a case by channel; a DICOM series is its files in order.

    Arguments:
        case: with its images
        also: further files by name

    Raises:
        DataError: a file cannot be read
    """
    found = {}
    for name, path in {**case.images, **also}.items():
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        whole = hashlib.sha256()
        for file in files:
            try:
                with open_regular(file) as stream:
                    digest = hashlib.file_digest(stream, "sha256")
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
            if not path.is_dir():
                whole = digest
            else:
                whole.update(digest.digest())
        found[name] = whole.hexdigest()
    return found
