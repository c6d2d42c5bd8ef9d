"""Alignment of a data set to a template, case by case, with a page for visual checks.

OUT/prepared.json                     template, grid and settings; marks the layout
OUT/participants.tsv                  attributes of the finished cases
OUT/qc.html, OUT/qc_cases/            every case to look at, a page each
OUT/<case>/<case>_<channel>.nii.gz    corrected and aligned images
OUT/<case>/<case>_mask.nii.gz         the case's label
OUT/<case>/<case>_associated.nii.gz   its label of associated changes
OUT/<case>/<case>_brainmask.nii.gz    where the brain is
OUT/<case>/<case>_transform.json      the way back, and the numbers of the check
OUT/<case>/<case>_qc.png              its picture
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import volumediff
from volumediff.alignment.aligning import QUANTITATIVE, Aligned, BrainMask, Steps, align_case
from volumediff.alignment.quality import Quality, measured
from volumediff.alignment.quality_page import AlignedCase, pictured, write_page
from volumediff.alignment.record import read_transform, write_transform
from volumediff.data.alignment_template import Template
from volumediff.data.brain_masks import brain_mask_of, without_masks
from volumediff.data.cases import Case, patient_of
from volumediff.data.layouts._roles import AUXILIARY_WORDS, LABEL_WORDS
from volumediff.data.survey import AUTO, Spec, survey_sources
from volumediff.data.volume import write
from volumediff.errors import DataError, UsageError
from volumediff.outputs.batch import Result, Summary, process
from volumediff.outputs.export import write_json
from volumediff.storage.atomic import atomic

__all__ = ["MARK", "Preparation", "prepare"]

MARK = "prepared.json"
# Raise it when the same settings come to give other voxels.
VERSION = 3
SAFE = re.compile(r"[^A-Za-z0-9-]+")
LABEL, BRAIN, ASSOCIATED = "mask", "brainmask", "associated"
# The template shows this contrast, in lower case.
TEMPLATE_WORDS = ("t1w", "t1", "t1n")


@dataclass(frozen=True)
class Preparation:
    """How a preparation ended.

    Arguments:
        summary: of the cases
        flagged: case -> what to look at
        page: qc.html
    """

    summary: Summary
    flagged: Mapping[str, Sequence[str]]
    page: Path


def prepare(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    template: Template,
    steps: Steps,
    spacing_mm: float | None = None,
    layout: Spec = AUTO,
    channels: Sequence[str] | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Preparation:
    """Aligns every case of a data set with a template.

    Arguments:
        sources: data sets in any layout, and volumes
        out: output folder, outside of the data set
        template: what the volumes are registered with
        steps: what is done
        spacing_mm: of the outputs; None gives them the template's own grid
        layout, channels: as for `find_cases`; the first channel is the one that is registered,
            without `channels` T1w where there is one, else the first one that is no map of a
            quantity such as ADC
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: the folders overlap, or `out` is taken or holds results of other settings
        DataError: the data set has no cases, or the disk is full
    """
    out = Path(out)
    for source in sources:
        _apart(Path(source), out)
    found, problems = survey_sources(sources, layout, channels)
    cases = {case.id: without_masks(case) for case in found}
    if channels is None:
        cases = {name: _led(case) for name, case in cases.items()}
    bad = {p.id: p.message for p in problems if p.severity == "error"}
    masks: dict[str, Path | None] = {}
    for name, case in cases.items():
        try:
            masks[name] = brain_mask_of(case) if steps.mask is BrainMask.given else None
            _distinct(case)
        except DataError as error:
            bad[name] = str(error)
    target = template if spacing_mm is None else template.at(spacing_mm)
    settings = _settings(target, steps, channels)

    def work(files: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        case, mask = cases[files.id], masks[files.id]
        aligned = align_case(case, mask, template=template, target=target, steps=steps)
        quality = measured(aligned, template=target, steps=steps)
        written = _written(folder, case, aligned, quality, target, inputs)
        return Result(written, {"similarity": quality.after, "volume_scale": quality.volume_scale})

    listed = [_with_all_files(c, masks[n]) for n, c in cases.items() if n not in bad]
    summary = process(
        listed,
        out,
        settings=settings,
        work=work,
        problems=bad,
        overwrite=overwrite,
        report=report,
    )
    finished = sorted([*summary.done, *summary.skipped])
    write_json(out / MARK, {**settings, "affine": target.grid.affine.tolist()})
    _write_participants(out, [cases[n] for n in finished])
    rows = [_row(out, name) for name in finished]
    title = f"{', '.join(Path(s).name for s in sources)} to {target.name}"
    flagged = write_page(
        out / "qc.html", rows, template=target, failed=summary.failed, title=title
    )
    return Preparation(summary, flagged, out / "qc.html")


def _apart(root: Path, out: Path) -> None:
    a, b = root.resolve(), out.resolve()
    base = a if a.is_dir() else a.parent
    if b == base or base in b.parents or b in base.parents:
        raise UsageError(
            f"output {out}: expected a folder apart from the data set {root}: what is written "
            "would be read as cases of it."
        )


def _settings(template: Template, steps: Steps, channels: Sequence[str] | None) -> dict[str, Any]:
    return {
        "task": "prepare",
        "format": VERSION,
        "template": {"name": template.name, "sha256": template.digest},
        "shape": template.grid.shape,
        "spacing_mm": template.grid.spacing_mm,
        "mask": steps.mask.value,
        "strip": steps.strip,
        "n4": steps.n4,
        "read": asdict(steps.read),
        "channels": None if channels is None else list(channels),
        "versions": {"volumediff": volumediff.__version__, "SimpleITK": version("SimpleITK")},
    }


def _with_all_files(case: Case, mask: Path | None) -> Case:
    """Labels and mask among the images, so that the ledger knows them by their bytes too."""
    images = dict(case.images)
    images |= {f"/{name}": path for name, path in case.label_files.items()}
    if case.associated is not None:
        images["/associated"] = case.associated
    if mask is not None:
        images["/mask"] = mask
    return replace(case, images=images)


def _led(case: Case) -> Case:
    """The case with the channel first that the template shows, then those that show anatomy."""

    def rank(item: tuple[str, Path]) -> int:
        word = item[0].lower()
        return 0 if word in TEMPLATE_WORDS else 2 if word in QUANTITATIVE else 1

    ordered = sorted(case.images.items(), key=rank)
    return replace(case, images=dict(ordered))


def _file_word(channel: str) -> str:
    return SAFE.sub("-", channel).strip("-") or "image"


def _distinct(case: Case) -> None:
    """Channel names must stay apart, and be no words for labels, in the names of the outputs."""
    words = [_file_word(name) for name in case.images]
    if len(set(map(str.lower, words))) < len(words):
        raise DataError(f"channels {', '.join(case.images)} cannot be told apart; rename one.")
    taken = [w for w in words if re.split("[_-]", w.lower())[-1] in LABEL_WORDS | AUXILIARY_WORDS]
    if taken:
        raise DataError(
            f"channel '{taken[0]}' has the name of a label; leave it out or rename it."
        )


def _written(
    folder: Path,
    case: Case,
    found: Aligned,
    quality: Quality,
    template: Template,
    inputs: Mapping[str, str],
) -> list[Path]:
    """Writes the files of a case and returns them."""
    home = folder / case.id
    home.mkdir(exist_ok=True)
    files = []

    def named(ending: str) -> Path:
        files.append(home / f"{case.id}_{ending}")
        return files[-1]

    for channel, x in found.images.items():
        write(named(f"{_file_word(channel)}.nii.gz"), x, like=template.grid, kind="image")
    if found.label is not None:
        write(named(f"{LABEL}.nii.gz"), found.label, like=template.grid, kind="label")
    for reader, label in found.readers.items():
        file = f"reader-{_file_word(reader)}_{LABEL}.nii.gz"
        write(named(file), label, like=template.grid, kind="label")
    if found.associated is not None:
        write(named(f"{ASSOCIATED}.nii.gz"), found.associated, like=template.grid, kind="label")
    brain = found.brain.astype(np.uint8)
    write(named(f"{BRAIN}.nii.gz"), brain, like=template.grid, kind="label")
    with atomic(named("qc.png")) as file:
        file.write(pictured(found, template))
    first = next(iter(found.images))
    record = {
        "case": case.id,
        "patient": case.patient,
        "template": {"name": template.name, "sha256": template.digest},
        "first": first,
        "label_of": found.label_of,
        "channels": {
            name: {
                "file": case.images[name].name,
                "sha256": inputs[name],
                "prepared": f"{case.id}_{_file_word(name)}.nii.gz",
                "bias_field": found.bias[name],
                **alignment.to_json(),
            }
            for name, alignment in found.alignments.items()
        },
        "quality": quality.to_json(),
        "findings": [asdict(f) for f in found.findings],
    }
    write_transform(named("transform.json"), record)
    return files


def _row(out: Path, case: str) -> AlignedCase:
    record = read_transform(out, case)
    notes = [f["message"] for f in record["findings"] if f["severity"] != "info"]
    kept = [n for n, c in record["channels"].items() if c["bias_field"] is None]
    if kept:
        notes.append(f"no bias correction of {', '.join(kept)}")
    quality = Quality.from_json(record["quality"])
    home = out / case
    return AlignedCase(
        case,
        quality,
        home / f"{case}_qc.png",
        {name: home / c["prepared"] for name, c in record["channels"].items()},
        home / f"{case}_{BRAIN}.nii.gz",
        notes,
    )


def _write_participants(out: Path, cases: Sequence[Case]) -> None:
    """The attributes of the finished cases, as `find_cases` reads them back."""
    columns = list(dict.fromkeys(key for case in cases for key in case.attributes))
    columns = [c for c in columns if c not in ("participant_id", "patient_id")]
    # layouts tell the patient by the case's name, where nothing else is said
    named = ["patient_id"] if any(c.patient != patient_of(c.id) for c in cases) else []
    buffer = io.StringIO()
    table = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    table.writerow(["participant_id", *named, *columns])
    for case in cases:
        values = [case.attributes.get(c, "n/a") for c in columns]
        patient = [case.patient] if named else []
        table.writerow([case.id, *patient, *(_plain(v) for v in values)])
    with atomic(out / "participants.tsv") as file:
        file.write(buffer.getvalue().encode())


def _plain(value: str | float) -> str:
    return f"{value:.15g}" if isinstance(value, float) else value
