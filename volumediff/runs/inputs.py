"""What a command is given: one file, a folder of cases in any layout, or a manifest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from volumediff.data.cases import Case, patient_of, safe_id
from volumediff.data.dicom import is_dicom
from volumediff.data.files import VOLUMES, stem_of
from volumediff.data.preprocessing import Prepared
from volumediff.data.survey import survey_cases
from volumediff.errors import DataError, UsageError
from volumediff.runs.trained import Trained

__all__ = ["find_inputs", "prepared_case"]


def find_inputs(
    source: Path | str,
    *,
    channels: Sequence[str] | None,
    siblings: bool = False,
    option: str = "-i",
) -> tuple[list[Case], dict[str, str]]:
    """The cases that a command is to work on, without their labels, and those that cannot be.

    Arguments:
        source: a NIfTI file, a folder with one DICOM series, a folder of cases, or the JSON of a
            datalist
        channels: names of the images that the model takes; None takes a single image
        siblings: whether a single file needs what lies beside it, such as an age in
            participants.tsv
        option: of the command, for messages

    Returns:
        the cases, and case -> reason for the others

    Raises:
        UsageError: nothing there, no usable case, or one file where several channels are needed
        DataError: a folder or manifest without cases
    """
    source = Path(source)
    if not source.exists():
        raise UsageError(
            f"{option} {source}: expected a volume, a folder or a manifest; nothing there."
        )
    if source.is_file() and source.name.lower().endswith(VOLUMES):
        if siblings or (channels is not None and len(channels) > 1):
            return [_beside(source, channels)], {}
        name = stem_of(source)
        return [Case(safe_id(name), patient_of(name), {"image": source})], {}
    if source.is_file() and source.suffix.lower() != ".json":
        raise UsageError(
            f"{option} {source}: expected .nii, .nii.gz, a folder, or the .json of a datalist."
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
        raise UsageError(f"{option} {source}: no usable case; {name}: {reason}")
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


def prepared_case(trained: Trained, case: Case) -> Prepared:
    """A case as the model sees it.

    Raises:
        DataError: a file is refused, has other channels than the model, or shows nothing
    """
    prepared = trained.preprocessing.prepare(case)
    first = next(iter(case.images.values()))
    if len(prepared.x) != trained.channels:
        raise DataError(
            f"{first}: has {len(prepared.x)} channels, the run takes {trained.channels}; name "
            "them with --channels."
        )
    if not bool(prepared.foreground.any()):
        raise DataError(f"{first}: shows no foreground; check that it is not empty.")
    return prepared
