"""Leakage: volumes that the model has seen in training, validation or calibration are refused.

OUT/seen-<hash>.json is what the weights of the maps have seen: the run and the runs it came from,
the runs of borrowed models, and the site that gave the thresholds. Every map names its
own. A case leaks if the content of its file, its patient, or its name is in there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volumediff.anomaly.methods._base import Method
from volumediff.calibration.site import Site
from volumediff.data.cases import safe_id
from volumediff.data.files import stem_of
from volumediff.data.seen import Match, Seen, roster
from volumediff.errors import DataError
from volumediff.evaluation.output_folders import refuse_twice
from volumediff.evaluation.truths import Truth
from volumediff.runs.trained import Trained
from volumediff.samples.seen_record import seen_by
from volumediff.storage.digests import sha256

__all__ = ["Leak", "Leakage", "keep", "leakage", "leakages", "said", "seen_with"]

SHOWN = 3  # cases that a line names


@dataclass(frozen=True)
class Leak:
    """A case that the model has seen.

    Arguments:
        case: name of its outputs
        match: where it was seen
    """

    case: str
    match: Match

    def __str__(self) -> str:
        return f"{self.case} (its {self.match.by} in {self.match.part} of {self.match.of})"


@dataclass(frozen=True)
class Leakage:
    """What is known of the cases of a folder.

    Arguments:
        leaks: cases that the model has seen
        unknown: models whose training volumes nobody knows, in words
        same_names: cases whose patients or names are known to the model, and are said to be others
    """

    leaks: tuple[Leak, ...] = ()
    unknown: tuple[str, ...] = ()
    same_names: int = 0


def seen_with(
    trained: Trained,
    method: Method,
    *,
    site: Site | None,
    saliency: bool,
) -> Seen:
    """What everything has seen that a localization is made with.

    Arguments:
        trained: the run
        method: the method, with what it borrows from other runs
        site: that gives the thresholds
        saliency: whether maps from elsewhere take the place of the first pass

    Raises:
        DataError: the record of a run is damaged
    """
    found = seen_by(trained.run) | method.seen
    if site is not None:
        found |= Seen((roster(f"the site {site.name}", {"calibration": site.cases}),))
    if saliency:
        found |= Seen(unknown=("the source of the saliency maps",))
    return found


def keep(folder: Path, seen: Seen) -> Path:
    """The file of a record in an output folder, written unless it is there."""
    path = folder / f"seen-{_digest(seen)}.json"
    if not path.is_file():
        seen.save(path)
    return path


def leakage(
    folder: Path,
    sidecars: Mapping[str, Mapping[str, Any]],
    truths: Mapping[str, Truth],
    *,
    same_names: bool = False,
) -> Leakage:
    """The cases of a folder that its model has seen.

    Arguments:
        folder: of the maps
        sidecars: case -> content of the JSON beside its map
        truths: case -> its truth, which may know the patient better
        same_names: whether equal names of patients and cases are those of other people

    Raises:
        DataError: a record that a map names is not there, or damaged
    """
    records: dict[str, Seen] = {}
    leaks, unknown, others = [], {}, 0
    for case, sidecar in sidecars.items():
        name = sidecar.get("seen")
        if not isinstance(name, str):
            unknown[f"the model of {folder}, whose maps carry no record"] = None
            continue
        if name not in records:
            records[name] = _record(folder, name)
        unknown |= dict.fromkeys(records[name].unknown)
        match = _match(records[name], case, sidecar, truths[case])
        if match is not None and match.by != "file" and same_names:
            others += 1
        elif match is not None:
            leaks.append(Leak(case, match))
    return Leakage(tuple(leaks), tuple(unknown), others)


def leakages(
    sidecars: Mapping[Path, Mapping[str, Mapping[str, Any]]],
    truths: Mapping[str, Truth],
    *,
    allow_seen: bool,
    same_names: bool,
) -> tuple[dict[Path, Leakage], set[str]]:
    """What each model of a comparison has seen, and the cases that some model has.

    Arguments:
        sidecars: folder -> case -> content of the JSON beside its output
        truths: case -> its truth
        allow_seen: whether a comparison goes on with such cases
        same_names: as for `leakage`

    Raises:
        DataError: a volume is there twice, a model has seen a case that it may not have, or a
            record is not there, or damaged
    """
    for folder, contents in sidecars.items():
        refuse_twice(folder, contents)
    seen = {f: leakage(f, s, truths, same_names=same_names) for f, s in sidecars.items()}
    if not allow_seen:
        _refuse(seen, len(truths))
    return seen, {leak.case for there in seen.values() for leak in there.leaks}


def _refuse(found: Mapping[Path, Leakage], cases: int) -> None:
    """Stops an evaluation of volumes that a model has seen.

    Arguments:
        found: folder -> its leakage
        cases: how many are evaluated

    Raises:
        DataError: there are leaks; names the first, and what to do
    """
    for folder, there in found.items():
        if not there.leaks:
            continue
        more = ", ..." if len(there.leaks) > SHOWN else ""
        claims = all(leak.match.by != "file" for leak in there.leaks)
        other = "same_names if they are other people with the same names, or " if claims else ""
        raise DataError(
            f"{folder}: the model has seen {len(there.leaks)} of {cases} cases: "
            f"{'; '.join(map(str, there.leaks[:SHOWN]))}{more}. Leave them out of the truth, or "
            f"go on with {other}allow_seen, which gives the results with and without them."
        )


def said(found: Sequence[Leakage]) -> list[str]:
    """What every reader of the results must know, one sentence each."""
    leaks = {leak.case: leak for one in found for leak in one.leaks}
    lines = []
    if leaks:
        shown = "; ".join(map(str, list(leaks.values())[:SHOWN]))
        more = ", ..." if len(leaks) > SHOWN else ""
        lines.append(f"LEAKAGE: {len(leaks)} of the volumes were seen before: {shown}{more}.")
    if others := max((one.same_names for one in found), default=0):
        lines.append(
            f"{others} of the volumes share names with volumes that were seen before; the user "
            "declared them to be of other patients."
        )
    for text in dict.fromkeys(text for one in found for text in one.unknown):
        lines.append(f"It is not known which volumes were seen by {text}.")
    return lines


def _match(seen: Seen, case: str, sidecar: Mapping[str, Any], truth: Truth) -> Match | None:
    # Maps that were brought back to native grids name the originals, and what the model saw.
    files = [
        entry
        for group in ("inputs", "prepared_inputs")
        for entry in (sidecar.get(group) or {}).values()
    ]
    return seen.find(
        digests=[str(entry["sha256"]) for entry in files],
        patients={truth.patient, str(sidecar.get("patient", truth.patient))},
        names={case, truth.case, *(safe_id(stem_of(Path(entry["file"]))) for entry in files)},
    )


def _record(folder: Path, name: str) -> Seen:
    path = folder / Path(name).name
    found = Seen.load(path)
    if path.name != f"seen-{_digest(found)}.json":
        raise DataError(f"{path}: was changed after it was written; localize again.")
    return found


def _digest(seen: Seen) -> str:
    return sha256(seen.to_json())[:12]
