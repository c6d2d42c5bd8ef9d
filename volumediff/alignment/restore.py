"""Maps, masks and label maps of prepared volumes, back on the grids of their original files.

A map of the template's grid is interpolated at the voxels of the original image, once, through
the inverse of the map that aligned it. Millilitres in the JSON beside it are native ones: the
template's are larger by the determinant.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.alignment.prepare import MARK
from volumediff.alignment.record import read_transform, transform_file
from volumediff.data.alignment_geometry import Alignment
from volumediff.data.cases import Case, patient_of
from volumediff.data.files import stem_of
from volumediff.data.grid import Grid, agree, canonical_grid
from volumediff.data.read_policy import WRITTEN
from volumediff.data.seen import Seen
from volumediff.data.volume import Volume, read, write
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.leakage import keep
from volumediff.outputs.batch import Result, Summary, process
from volumediff.outputs.export import MAP, MASK, findings_of, write_json
from volumediff.outputs.segmentation_files import DSEG
from volumediff.outputs.sidecar import read_facts

__all__ = ["restore"]

# As `localize` and `segment` name what they write; the shortest name is the case's, so that
# `p_desc-sample1_dseg` is a sample of p and not the label map of `p_desc-sample1`.
OUTPUT = re.compile(
    r"(?P<case>.+?)_(?P<what>desc-[A-Za-z0-9]+_(?:map|mask|image|dseg)|dseg"
    r"|label-\d+_(?:probseg|desc-[A-Za-z0-9]+_map))"
)
LABELS = ("mask", "dseg")
BACKGROUND = "label-0_probseg"
SIDECARS = (MAP, DSEG)


@dataclass(frozen=True)
class _Origin:
    """A prepared case as the names of outputs may call it."""

    path: Path
    record: dict[str, Any]
    channel: str

    @property
    def alignment(self) -> Alignment:
        return Alignment.from_json(self.record["channels"][self.channel])


def restore(
    maps: Sequence[Path | str],
    prepared: Path | str,
    out: Path | str,
    *,
    channel: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Brings every map, mask, image and label map of a folder back to the native grids.

    Arguments:
        maps: folders that `localize` or `segment` wrote for prepared volumes
        prepared: folder that `prepare` wrote
        out: output folder
        channel: whose grid; None takes the case's first, or the one that the file is named after
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: a folder is not what it should be, there are no maps, or two of one case
        DataError: the disk is full
    """
    folders, prepared, out = [Path(m) for m in maps], Path(prepared), Path(out)
    origins = _origins(prepared, channel)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder of maps, nothing is there.")
    if out.resolve() in (*(f.resolve() for f in folders), prepared.resolve()):
        raise UsageError(f"output {out}: expected another folder than the maps' own.")
    cases, problems = _found(folders, origins)
    if not cases and not problems:
        raise UsageError(
            f"{', '.join(map(str, folders))}: has no maps such as <case>_{MAP}.nii.gz and no "
            f"<case>_{DSEG}.nii.gz; give the folder that localize or segment wrote."
        )

    def work(case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        return _restored(case, origins[case.id], folder)

    return process(
        cases,
        out,
        settings={"task": "restore", "channel": channel},
        work=work,
        problems=problems,
        overwrite=overwrite,
        report=report,
    )


def _origins(prepared: Path, channel: str | None) -> dict[str, _Origin]:
    """The prepared cases by id, and by the names of their files."""
    if not (prepared / MARK).is_file():
        raise UsageError(f"prepared {prepared}: expected a folder that `prepare` wrote.")
    found: dict[str, _Origin] = {}
    for folder in sorted(p for p in prepared.iterdir() if p.is_dir()):
        path = transform_file(prepared, folder.name)
        if not path.is_file():
            continue
        record = read_transform(prepared, folder.name)
        known = record["channels"]
        if channel is not None and channel not in known:
            names = ", ".join(known)
            raise UsageError(f"channel {channel}: case {folder.name} has {names}.")
        found[record["case"]] = _Origin(path, record, channel or record["first"])
        for name, values in known.items():
            found[stem_of(Path(values["prepared"]))] = _Origin(path, record, channel or name)
    if not found:
        raise UsageError(f"prepared {prepared}: has no finished case.")
    return found


def _found(
    folders: Sequence[Path], origins: Mapping[str, _Origin]
) -> tuple[list[Case], dict[str, str]]:
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for folder in folders:
        for path in sorted(folder.glob("*.nii*")):
            match = OUTPUT.fullmatch(stem_of(path))
            if match is None:
                continue
            first = groups[match["case"]].setdefault(match["what"], path)
            if first.parent != folder:
                raise UsageError(
                    f"{first.parent} and {folder}: both have results of {match['case']}; restore "
                    "them into an output folder each."
                )
    cases, problems = [], {}
    for name, files in groups.items():
        if name in origins:
            # both change what is written, so they are inputs like the maps
            extra = {"/transform": origins[name].path}
            for word in SIDECARS:
                sidecar = next(iter(files.values())).parent / f"{name}_{word}.json"
                if sidecar.is_file():
                    extra[f"/{word}"] = sidecar
            cases.append(Case(name, patient_of(name), {**files, **extra}))
        else:
            problems[name] = "was not prepared here; give the folder that its volume came from."
    return cases, problems


def _restored(case: Case, origin: _Origin, folder: Path) -> Result:
    alignment = origin.alignment
    native: dict[str, np.ndarray] = {}
    written = []
    for what, path in case.images.items():
        if what.startswith("/"):
            continue
        labels = what.rsplit("_", 1)[-1] in LABELS
        native[what] = _moved(path, alignment, labels=labels, rest=float(what == BACKGROUND))
        target = folder / f"{case.id}_{what}.nii.gz"
        kind = "label" if labels else "image"
        write(target, native[what], like=alignment.native, kind=kind)
        written.append(target)
    facts: dict[str, Any] = {"volume_scale": alignment.volume_scale}
    if MASK in native:
        facts["mask_volume_ml"] = float((native[MASK] > 0).sum()) * _voxel_ml(alignment)
    for word in SIDECARS:
        if f"/{word}" not in case.images:
            continue
        source, sidecar = case.images[f"/{word}"], folder / f"{case.id}_{word}.json"
        known = read_facts(source)
        measured = (
            _places(native, alignment) if word == MAP else _volumes(known, native, alignment)
        )
        content = {**known, **facts, **measured, **_inputs(known, origin)}
        write_json(sidecar, {**content, "space": "native", "native_image": origin.channel})
        written.append(sidecar)
        if isinstance(content.get("seen"), str):
            record = keep(folder, Seen.load(source.with_name(content["seen"])))
            written += [record] if record not in written else []
    return Result(written, facts)


def _moved(path: Path, alignment: Alignment, *, labels: bool, rest: float = 0.0) -> np.ndarray:
    """The content of a file on the native canonical voxels.

    Arguments:
        rest: value of maps where the template does not reach, unless they have lower ones
    """
    volume = read(path, kind="label") if labels else read(path, policy=WRITTEN)
    _check(volume, alignment.template)
    if labels:
        return alignment.back_labels(volume.array)
    fill = rest or min(0.0, float(volume.array.min()))
    return alignment.back(volume.array, fill=fill)


def _check(volume: Volume, template: Grid) -> None:
    difference = agree(template, volume.grid)
    if difference:
        raise DataError(
            f"{volume.path}: expected the grid of the prepared volumes, got {difference}; it was "
            "made of other files."
        )


def _voxel_ml(alignment: Alignment) -> float:
    return abs(float(np.linalg.det(alignment.native.affine[:3, :3]))) / 1000


def _places(native: Mapping[str, np.ndarray], alignment: Alignment) -> dict[str, Any]:
    """The findings of a map, with the places and volumes of the native volume."""
    found: Sequence[dict[str, Any]] = []
    if MASK in native and MAP in native:
        affine = canonical_grid(alignment.native).affine
        found = findings_of(native[MASK], native[MAP], affine=affine)
    return {"findings": found}


def _volumes(
    known: Mapping[str, Any], native: Mapping[str, np.ndarray], alignment: Alignment
) -> dict[str, Any]:
    """Volumes of the labels in native millilitres; their intervals by the scale of the map."""
    found: dict[str, Any] = {}
    if DSEG in native and isinstance(known.get("volumes_ml"), dict):
        sizes = {v: float((native[DSEG] == int(v)).sum()) for v in known["volumes_ml"]}
        found["volumes_ml"] = {v: n * _voxel_ml(alignment) for v, n in sizes.items()}
    if isinstance(known.get("volumes_ml_interval"), dict):
        found["volumes_ml_interval"] = {
            v: [ml / alignment.volume_scale for ml in ends]
            for v, ends in known["volumes_ml_interval"].items()
        }
    return found


def _inputs(content: Mapping[str, Any], origin: _Origin) -> dict[str, Any]:
    """The original files instead of the prepared ones, so that `findings` takes them.

    The entry that was there is kept as `prepared_inputs`.
    """
    given = content.get("inputs")
    if not isinstance(given, dict) or not given:
        return {}
    known = origin.record["channels"]
    files = {}
    for name in given:
        # a single file's channel has no name of its own
        entry = known.get(name if len(given) > 1 or name in known else origin.channel)
        if entry is None:
            return {}
        files[name] = {"file": entry["file"], "sha256": entry["sha256"]}
    return {"inputs": files, "prepared_inputs": given}
