"""Inputs of a run: examinations found below paths, read, and prepared for its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from volumediff.data.cases import Case
from volumediff.data.files import VOLUMES
from volumediff.data.patients import Patients
from volumediff.data.preprocessing import Prepared
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec, survey_sources
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError, UsageError
from volumediff.runs.stripping import stripped, strips
from volumediff.runs.trained import Trained
from volumediff.samples.input_guard import Difference
from volumediff.samples.preparation_record import recorded_preparation

__all__ = ["Examination", "examination_of", "find_inputs", "prepared", "prepared_case"]


@dataclass(frozen=True, eq=False)
class Examination:
    """One examination in memory, from files or from images that a program holds.

    Arguments:
        id: name of its outputs
        patient: whose it is
        images: channel name -> volume, in the order of the model's channels
        files: channel name -> what it is called in records
        digests: channel name -> SHA-256 of the file, or of the voxels; `region` and `saliency` too
        attributes: age, sex and the like, for runs that are conditioned on some
        region: mask of what is to be redrawn
        saliency: a map in place of the method's first pass
        filled: channels that were not measured -> how they were drawn
    """

    id: str
    patient: str
    images: Mapping[str, Volume]
    files: Mapping[str, str]
    digests: Mapping[str, str]
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    region: Volume | None = None
    saliency: Volume | None = None
    filled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def examination_of(
    case: Case,
    digests: Mapping[str, str],
    *,
    policy: ReadPolicy,
    region: Path | None = None,
    saliency: Path | None = None,
) -> Examination:
    """Reads the files of a case.

    Arguments:
        case: with its files
        digests: SHA-256 of them by channel
        policy: decisions on ambiguous files
        region, saliency: further files

    Raises:
        DataError: a file is refused
    """
    return Examination(
        id=case.id,
        patient=case.patient,
        images={name: read(path, policy=policy) for name, path in case.images.items()},
        files={name: path.name for name, path in case.images.items()},
        digests=digests,
        attributes=case.attributes,
        region=None
        if region is None
        else read(region, kind="label", policy=replace(policy, labels=None)),
        saliency=None if saliency is None else read(saliency, policy=policy),
    )


def find_inputs(
    source: Path | str | Sequence[Path | str],
    *,
    channels: Sequence[str] | None,
    layout: Spec = AUTO,
    patients: Patients | None = None,
) -> tuple[list[Case], dict[str, str]]:
    """The cases below one path or several, without their labels, and those that cannot be used.

    Arguments:
        source: a NIfTI file, a folder with one DICOM series, a folder of cases, the JSON of a
            datalist, or a table of cases; or several of them
        channels: names of the images that the model takes; None takes a single image
        layout: of the folders; `auto` decides by the files that are there
        patients: the rule of the run that names patients; cases that it does not name keep theirs

    Returns:
        the cases, and case -> reason for the others

    Raises:
        UsageError: nothing there, no usable case, one file where several channels are needed, or
            two cases of one name
        DataError: a folder or datalist without cases
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    for path in map(Path, sources):
        if not path.exists():
            raise UsageError(f"{path}: expected a volume, a folder or a datalist; nothing there.")
        if path.is_file() and not path.name.lower().endswith((*VOLUMES, ".json", ".csv")):
            raise UsageError(
                f"{path}: expected .nii, .nii.gz, a folder, the .json of a datalist, or the .csv "
                "of a table of cases."
            )
    found, problems = survey_sources(sources, layout, channels)
    bad = {problem.id: problem.message for problem in problems if problem.severity == "error"}
    wanted = len(channels) if channels is not None else 1
    cases = []
    for case in found:
        if len(case.images) == wanted:
            cases.append(case.unmarked())
            continue
        bad[case.id] = (
            f"has the images {', '.join(case.images)}, the run takes {wanted}; name "
            f"{'it' if wanted == 1 else 'them'} as channels, such as {next(iter(case.images))}"
        )
    if not cases:
        name, reason = next(iter(bad.items()))
        raise UsageError(f"{', '.join(map(str, sources))}: no usable case; {name}: {reason}")
    return cases if patients is None else patients.known(cases), bad


def prepared(
    trained: Trained, images: Sequence[Volume], *, of: Sequence[int] | None = None
) -> Prepared:
    """The volumes of an examination as the model sees them.

    Arguments:
        trained: the run
        images: in the order of the model's channels
        of: numbers of the channels that they are; None for all

    Raises:
        DataError: other channels than the model's, or no foreground
    """
    first, count = images[0].path, sum(len(image.array) for image in images)
    wanted = trained.channels if of is None else len(of)
    if count != wanted:
        own = trained.image_names(None, of=of)
        names = "" if own is None else f" ({', '.join(own)})"
        raise DataError(
            f"{first}: has {count} channels, the run takes {wanted}{names}; give as many images "
            "in the run's order, or choose them by the names of their channels."
        )
    preprocessing = trained.preprocessing
    if of is not None:
        preprocessing = preprocessing.of_channels(of)
    return preprocessing.prepare_volumes(images)


def prepared_case(trained: Trained, case: Case) -> tuple[Prepared, list[Difference]]:
    """The files of a case as the model sees them, and what differs about them; heads are stripped
    for a run of stripped brains that lie in no template's space.

    Raises:
        DataError: a file is refused, has other channels than the model, or shows nothing
    """
    policy, guard = trained.preprocessing.policy, trained.guard
    images = {name: read(path, policy=policy) for name, path in case.images.items()}
    differences = guard.files(list(images.values()))
    if strips(recorded_preparation(trained.run)):
        images = stripped(images) or images
    ready = prepared(trained, list(images.values()))
    return ready, [*differences, *guard.volume(ready)]
