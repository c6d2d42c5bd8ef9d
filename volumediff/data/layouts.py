"""The four ways in which data sets are laid out on disk, read into cases."""

import csv
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.errors import DataError

__all__ = ["bids", "datalist", "detect", "folder", "nnunet"]

SUFFIX = re.compile(r"\.nii(\.gz)?$", re.I)
# Last words of file names, in lower case. Other last words belong to the id of the case.
IMAGE_WORDS = frozenset(
    "t1w t1 t1c t1ce t1gd t1n t2w t2 t2f t2star t2starw flair pd pdw dwi adc b0 b1000 swi bold "
    "cbf mra tof ct cta cbct pet suv us mr mri image img volume".split()
)
LABEL_WORDS = frozenset(
    "mask label labels seg segm segmentation dseg lesion lesions roi gt truth tumor tumour "
    "organs annotation".split()
)
# Helpers that are neither image nor truth.
AUXILIARY_WORDS = frozenset("brainmask brain_mask foreground bodymask bet".split())

Found = tuple[list[Case], list[Problem]]


def detect(root: Path) -> Literal["folder", "nnunet", "bids", "datalist"]:
    """The layout of a folder, by files that only one layout has."""
    if root.is_file():
        return "datalist"
    description = root / "dataset.json"
    if description.is_file():
        training = _json(description).get("training")
        channels = any((root / "imagesTr").glob("*_0000.*"))
        if isinstance(training, list) and training and not channels:
            return "datalist"
    if (root / "prepared.json").is_file():
        return "folder"  # whatever the cases are called; `prepare` has written it
    if (root / "imagesTr").is_dir() or (root / "imagesTs").is_dir():
        return "nnunet"
    if any(p.is_dir() for p in root.glob("sub-*")):
        return "bids"
    return "folder"


def folder(root: Path) -> Found:
    """Files `<case>_<channel>.nii.gz` in one folder, or one folder per case.

    A name that ends with a label word (mask, seg, ...) is the case's label; one that ends with
    neither a channel nor a label word is a case with the one channel `image`. A case folder may
    also hold one DICOM series.
    """
    if root.is_file():
        raise DataError(f"{root}: expected a folder of volumes, got a file; give its folder.")
    groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for path in _volumes(root):
        case, word = _split(SUFFIX.sub("", path.name))
        groups[case].append((word, path))
    for inner in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in _volumes(inner):
            stem = SUFFIX.sub("", path.name)
            if stem.lower().startswith((inner.name.lower() + "_", inner.name.lower() + "-")):
                stem = stem[len(inner.name) + 1 :]
            groups[inner.name].append((stem, path))
        if inner.name not in groups and _holds_dicom(inner):
            groups[inner.name].append(("image", inner))
    table, (cases, problems) = _participants(root), _grouped(groups)
    return [_described(case, table) for case in cases], problems


def nnunet(root: Path) -> Found:
    """`imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, `dataset.json`; Ts is for tests."""
    info = _json(root / "dataset.json")
    names = info.get("channel_names") or info.get("modality")
    ending = info.get("file_ending", ".nii.gz")
    if not isinstance(names, dict) or not names:
        raise DataError(f"{root / 'dataset.json'}: expected 'channel_names' with at least one.")
    if not SUFFIX.search(str(ending)):
        raise DataError(
            f"{root / 'dataset.json'}: expected NIfTI, got {ending}; convert the files."
        )
    cases, problems = [], []
    for part, split in (("Tr", "train"), ("Ts", "test")):
        files: dict[str, dict[str, Path]] = defaultdict(dict)
        for path in _volumes(root / f"images{part}"):
            match = re.fullmatch(r"(.+)_(\d{4})", SUFFIX.sub("", path.name))
            if match is None:
                text = f"{path}: expected a channel number such as _0000 at the end; rename it."
                problems.append(Problem(path.name, text))
                continue
            files[match[1]][str(int(match[2]))] = path
        for case, found in files.items():
            missing = [n for n in names if str(int(n)) not in found]
            if missing:
                text = f"missing channel '{names[missing[0]]}' (_{int(missing[0]):04d}); add it."
                problems.append(Problem(case, text))
                continue
            images = {str(name): found[str(int(n))] for n, name in names.items()}
            label = root / f"labels{part}" / f"{case}{ending}"
            label = label if label.is_file() else None
            cases.append(Case(case, patient_of(case), images, label, {"split": split}))
    return cases, problems


def bids(root: Path) -> Found:
    """`sub-<id>[/ses-<id>]/<anat|...>/sub-..._<suffix>.nii.gz`, one case per session.

    Two files with one suffix (runs, acquisitions) keep their entities in the channel's name, such
    as `run-1_T1w`. Labels are files with suffix mask, dseg or roi that name a lesion or no other
    structure, beside the images or below `derivatives/`.
    """
    images: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    labels: dict[str, list[Path]] = defaultdict(list)
    for base in (root, root / "derivatives"):
        for path in _walk(base, skip_derivatives=base == root):
            stem = SUFFIX.sub("", path.name)
            match = re.match(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?(?:_(.*))?$", stem)
            if match is None:
                continue
            case, rest = match[1] + (match[2] or ""), match[3] or "image"
            word = rest.rsplit("_", 1)[-1].lower()
            if word in LABEL_WORDS:
                if "lesion" in rest or not re.search(r"(desc|label|atlas)-", rest):
                    labels[case].append(path)
            elif base == root:
                images[case].append((rest, path))
    table = _participants(root)
    cases, problems = [], []
    for case in sorted(images):
        suffixes = [rest.rsplit("_", 1)[-1] for rest, _ in images[case]]
        named = {
            (s if suffixes.count(s) == 1 else rest): path
            for s, (rest, path) in zip(suffixes, images[case], strict=True)
        }
        truth = sorted(labels.get(case, []))
        if len(truth) > 1:
            text = f"{len(truth)} labels fit ({truth[0].name}, {truth[1].name}); keep one."
            problems.append(Problem(case, text))
            continue
        found = Case(case, patient_of(case), named, truth[0] if truth else None)
        cases.append(_described(found, table))
    return cases, problems


def datalist(root: Path) -> Found:
    """A MONAI datalist: `{"training": [{"image": ..., "label": ...}], ...}`.

    Paths are relative to the JSON's folder and must stay below it, also through links.
    """
    path = root / "dataset.json" if root.is_dir() else root
    info, base = _json(path), path.parent
    names = info.get("channel_names") or info.get("modality") or {}
    sections = (("training", "train"), ("validation", "validation"), ("test", "test"))
    sections += (("testing", "test"),)
    cases, problems = [], []
    for section, split in sections:
        entries = info.get(section, [])
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a list under '{section}'.")
        for number, entry in enumerate(entries):
            try:
                cases.append(_entry(entry, base, names, split))
            except DataError as error:
                problems.append(Problem(f"{section}[{number}]", str(error)))
    return cases, problems


def _entry(entry: Any, base: Path, names: dict[str, str], split: str) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "image" not in entry:
        raise DataError(f"expected a mapping with the key 'image', got {entry!r}.")
    files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    paths = [_below(base, f) for f in files]
    label = _below(base, entry["label"]) if entry.get("label") else None
    if len(paths) == 1:
        channels = ["image"]
    else:
        channels = [str(names.get(str(i), f"image_{i}")) for i in range(len(paths))]
    stem = SUFFIX.sub("", paths[0].name)
    stem = re.sub(r"_0000$", "", stem) if len(paths) > 1 else stem
    case = str(entry.get("id", stem))
    patient = str(entry.get("patient", entry.get("subject", patient_of(case))))
    known = {"image", "label", "id", "patient", "subject"}
    attributes: dict[str, str | float] = {"split": split}
    for key, value in entry.items():
        if key not in known and isinstance(value, str | int | float):
            attributes[key] = value if isinstance(value, str) else float(value)
    return Case(case, patient, dict(zip(channels, paths, strict=True)), label, attributes)


def _below(base: Path, name: Any) -> Path:
    """The path of a datalist entry, refused when it leaves the datalist's folder."""
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"expected a path, got {name!r}.")
    path = Path(os.path.realpath(base / name))
    if not path.is_relative_to(os.path.realpath(base)):
        raise DataError(f"the path {name!r} leaves {base}; keep the files below the datalist.")
    return path


def _grouped(groups: dict[str, list[tuple[str, Path]]]) -> Found:
    cases, problems = [], []
    for case in sorted(groups):
        images: dict[str, Path] = {}
        label, message = None, None
        for word, path in groups[case]:
            role = _role(word)
            if role == "auxiliary":
                continue
            if (role == "label" and label) or (role == "image" and word in images):
                other = label if role == "label" else images[word]
                message = f"{path.name} and {other.name} are both its {role}; keep one."
            elif role == "label":
                label = path
            else:
                images[word] = path
        if message:
            problems.append(Problem(case, message))
        elif images or label:
            cases.append(Case(case, patient_of(case), images, label))
    return cases, problems


def _role(word: str) -> Literal["image", "label", "auxiliary"]:
    word = word.lower()
    last = re.split(r"[_-]", word)[-1]
    if word in AUXILIARY_WORDS or last in AUXILIARY_WORDS:
        return "auxiliary"
    return "label" if last in LABEL_WORDS else "image"


def _split(stem: str) -> tuple[str, str]:
    """`ms_p07_T1w` -> (`ms_p07`, `T1w`); a last word that is none of ours stays in the id."""
    case, _, word = stem.rpartition("_")
    known = IMAGE_WORDS | LABEL_WORDS | AUXILIARY_WORDS
    return (case, word) if case and word.lower() in known else (stem, "image")


def _volumes(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, whatever they turn out to be; hidden ones are skipped."""
    if not folder.is_dir():
        return []
    names = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    return [p for p in names if SUFFIX.search(p.name) and not p.is_dir()]


def _walk(base: Path, *, skip_derivatives: bool) -> Iterable[Path]:
    hidden = {"sourcedata", "code"} | ({"derivatives"} if skip_derivatives else set())
    for where, folders, files in os.walk(base):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in hidden)
        yield from (Path(where) / f for f in sorted(files) if SUFFIX.search(f))


def _holds_dicom(folder: Path) -> bool:
    from volumediff.data.dicom import is_dicom

    return any(is_dicom(p) for p in sorted(folder.iterdir())[:20])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a data set description, it is not there.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content


def _participants(root: Path) -> dict[str, dict[str, str | float]]:
    """Rows of `participants.tsv` by participant, without the values that are n/a."""
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}).") from error
    if rows and "participant_id" not in rows[0]:
        raise DataError(f"{path}: expected a column 'participant_id'; add it.")
    table = {}
    for row in rows:
        values = {k: v for k, v in row.items() if k and k != "participant_id"}
        table[row["participant_id"]] = {
            k: _number(v) for k, v in values.items() if isinstance(v, str) and v not in ("", "n/a")
        }
    return table


def _number(text: str) -> str | float:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _described(case: Case, table: dict[str, dict[str, str | float]]) -> Case:
    for key in (case.id, case.patient, case.patient.removeprefix("sub-")):
        if key in table:
            patient = str(table[key].get("patient_id", case.patient))
            attributes = {**case.attributes, **table[key]}
            return Case(case.id, patient, case.images, case.label, attributes)
    return case
