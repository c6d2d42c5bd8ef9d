"""Maps against truth masks: one row per method, with bootstrap intervals over patients.

Everything is counted on the files' own grids, inside the foreground that the method looked at and
in the lesions: lesion voxels that it did not look at count as its lowest value. `voxel_ap`,
`voxel_auroc` and Dice are means over the volumes that have a lesion, `voxel_ap_pooled` and
`best_dice` come from all voxels together; the threshold of `best_dice` has seen the truth, those
of the other two Dice have not.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volumediff.data.volume import check_grids, read
from volumediff.errors import DataError, UsageError
from volumediff.inference.export import MAP, MASK
from volumediff.inference.truths import Truth, find_truths
from volumediff.metrics import detection
from volumediff.metrics.bootstrap import Interval, bootstrap
from volumediff.metrics.lesions import (
    Lesions,
    detection_rate,
    false_positives,
    lesion_f1,
    lesions,
)
from volumediff.metrics.overlap import overlap

__all__ = ["MEASURES", "Measured", "MethodResult", "evaluate", "measure", "to_json"]

FOREGROUND = "desc-foreground_mask"
# More of a lesion than this outside the foreground is said: the crop may be too tight. There are
# no healthy voxels out there to rank it against, so that figures mean little when it is most.
UNSEEN = 0.05


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of one volume.

    Arguments:
        case, patient, group: which volume, of whom, and in which subgroup
        score: volume score of the method
        abnormal: whether the truth has a lesion
        ap, auroc: of the voxels; nan without a lesion
        dice: at the thresholds that have not seen the truth, by name
        lesions: lesion by lesion, of the method's own mask if it has one
        histogram: of the map inside and outside the lesions
        unseen: share of the lesion outside the foreground that the method looked at
    """

    case: str
    patient: str
    group: str
    score: float
    abnormal: bool
    ap: float
    auroc: float
    dice: Mapping[str, float]
    lesions: Lesions | None
    histogram: detection.Histogram
    unseen: float = 0.0


Statistic = Callable[[Sequence[Measured]], float]


def _mean(values: Iterable[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def _pooled(cases: Sequence[Measured]) -> detection.Histogram:
    """Counts of all cases, which have common bins: `_result` has seen to that."""
    if not cases:
        return detection.total([])
    return detection.Histogram(
        cases[0].histogram.keys,
        np.sum([c.histogram.healthy for c in cases], axis=0),
        np.sum([c.histogram.abnormal for c in cases], axis=0),
    )


def _lesions(cases: Sequence[Measured]) -> list[Lesions]:
    return [c.lesions for c in cases if c.lesions is not None]


def _by_group(cases: Sequence[Measured]) -> float:
    groups: dict[str, list[float]] = {}
    for c in cases:
        groups.setdefault(c.group, []).append(c.ap)
    return _mean(_mean(values) for values in groups.values())


MEASURES: dict[str, Statistic] = {
    "voxel_ap": lambda cs: _mean(c.ap for c in cs),
    "voxel_ap_by_group": _by_group,
    "voxel_ap_pooled": lambda cs: detection.average_precision(_pooled(cs)),
    "voxel_auroc": lambda cs: _mean(c.auroc for c in cs),
    "best_dice": lambda cs: detection.best_dice(_pooled(cs)).dice,
    "dice_validation": lambda cs: _mean(c.dice.get("validation", np.nan) for c in cs),
    "dice_healthy_fpr": lambda cs: _mean(c.dice.get("healthy_fpr", np.nan) for c in cs),
    "lesion_detection": lambda cs: detection_rate(_lesions(cs)),
    "lesion_f1": lambda cs: lesion_f1(_lesions(cs)),
    "false_positives": lambda cs: false_positives(_lesions(cs)),
    "volume_auroc": lambda cs: detection.volume_auroc(
        [c.score for c in cs], [c.abnormal for c in cs]
    ),
    "prevalence": lambda cs: detection.prevalence(_pooled([c for c in cs if c.abnormal])),
}
# Only these are worth a table per subgroup: the others need many volumes.
GROUP_MEASURES = ("voxel_ap", "voxel_auroc", "dice_healthy_fpr", "lesion_detection")


@dataclass(frozen=True, eq=False)
class MethodResult:
    """Figures of one folder of maps.

    Arguments:
        method: name of the row
        folder: of the maps
        measures: by name, see `MEASURES`
        groups: subgroup -> measures
        cases: the volumes
        facts: from the sidecar of the first volume
    """

    method: str
    folder: Path
    measures: Mapping[str, Interval]
    groups: Mapping[str, Mapping[str, Interval]]
    cases: Sequence[Measured]
    facts: Mapping[str, Any]


def evaluate(
    folders: Sequence[Path | str],
    truth: Path | str,
    *,
    by: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
    report: Callable[[str], None] = lambda line: None,
) -> list[MethodResult]:
    """Compares folders of maps, each of one method, with truth masks, on the cases they share.

    Arguments:
        folders: outputs of `localize`
        truth: folder of cases with labels, in any layout, or of masks alone; an empty mask is a
            healthy volume, no mask is no truth
        by: attribute of the cases (a column of participants.tsv) that makes subgroups
        seed: of the bootstrap
        replicates: of the bootstrap
        report: receives a line for everything that is left out

    Raises:
        UsageError: no maps in a folder, or two folders of one method
        DataError: no truth for any map, or image and mask on different grids
    """
    maps = {Path(folder): _maps(Path(folder)) for folder in folders}
    truths = find_truths(truth)
    shared = set.intersection(*(set(m) for m in maps.values()))
    for folder, found in maps.items():
        if extra := sorted(set(found) - shared):
            report(
                f"{folder}: {len(extra)} cases are not in every folder and left out: {extra[0]}"
            )
    known = {case: truths[case] for case in sorted(shared) if case in truths}
    if missing := sorted(shared - set(known)):
        report(f"{truth}: no truth for {len(missing)} cases, left out: {missing[0]}")
    if not known:
        raise DataError(
            f"{truth}: no mask fits the cases of {folders[0]}, for example "
            f"{next(iter(sorted(shared)), 'none')}; expected <case>_mask.nii.gz or a data set "
            "with labels."
        )
    if by and not any(by in t.attributes for t in known.values()):
        there = sorted({name for t in known.values() for name in t.attributes})
        raise UsageError(
            f"--by {by}: no case has this attribute; there are {', '.join(there) or 'none'}."
        )
    results: dict[str, MethodResult] = {}
    for folder, found in maps.items():
        sidecars = {case: _sidecar(found[case]) for case in known}
        first = next(iter(sidecars.values()))
        name = str(first.get("method", folder.name))
        name = name if name not in results else folder.name
        if name in results:
            raise UsageError(f"{folder}: '{name}' is evaluated already; give each folder once.")
        cases = [
            measure(found[case], known[case], sidecar, by=by) for case, sidecar in sidecars.items()
        ]
        for c in cases:
            if c.unseen > UNSEEN:
                report(f"{folder}: {c.unseen:.0%} of the lesion of {c.case} was not looked at")
        results[name] = _result(name, folder, cases, first, seed=seed, replicates=replicates)
    return list(results.values())


def _maps(folder: Path) -> dict[str, Path]:
    """Map of each case in a folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder written by volumediff localize.")
    ending = f"_{MAP}.nii.gz"
    found = {p.name.removesuffix(ending): p for p in sorted(folder.glob(f"*{ending}"))}
    if not found:
        raise UsageError(f"{folder}: has no *{ending}; localize first, with -o {folder}.")
    return found


def _sidecar(path: Path) -> dict[str, Any]:
    sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{sidecar}: cannot be read ({error}); localize again.") from None


def measure(
    path: Path, truth: Truth, sidecar: Mapping[str, Any], *, by: str | None = None
) -> Measured:
    """Figures of one map.

    Arguments:
        path: the map; foreground and mask lie beside it
        truth: mask with its case
        sidecar: content of the map's JSON
        by: attribute that names the subgroup
    """
    volume, mask = read(path), read(truth.path, kind="label")
    check_grids(volume, mask)
    scores = torch.from_numpy(volume.array[0])
    lesion = torch.from_numpy(mask.array[0] > 0)
    beside = {
        name: _label(path, name) for name in (FOREGROUND, MASK) if _beside(path, name).is_file()
    }
    seen = beside.get(FOREGROUND, torch.ones_like(lesion))
    scores = torch.where(seen, scores, scores[seen].min() if bool(seen.any()) else 0.0)
    inside = seen | lesion
    counts = detection.histogram(scores, lesion, foreground=inside)
    dice = {
        name: overlap(
            (scores > value) & seen, lesion, foreground=inside, spacing_mm=volume.spacing_mm
        ).dice
        for name, value in sidecar.get("thresholds", {}).items()
    }
    own = None
    if MASK in beside:
        own = lesions(beside[MASK], lesion, spacing_mm=volume.spacing_mm)
    return Measured(
        case=truth.case,
        patient=truth.patient,
        group=str(truth.attributes.get(by, "")) if by else "",
        score=float(sidecar.get("score") or 0.0),
        abnormal=bool(lesion.any()),
        ap=detection.average_precision(counts),
        auroc=detection.auroc(counts),
        dice=dice,
        lesions=own,
        histogram=counts,
        unseen=float((lesion & ~seen).sum()) / max(int(lesion.sum()), 1),
    )


def _beside(path: Path, name: str) -> Path:
    return path.with_name(path.name.replace(MAP, name))


def _label(path: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(read(_beside(path, name), kind="label").array[0] > 0)


def _result(
    name: str,
    folder: Path,
    cases: Sequence[Measured],
    facts: Mapping[str, Any],
    *,
    seed: int,
    replicates: int,
) -> MethodResult:
    # the same draws for every method, and common bins, so that differences are the methods'
    common = detection.coarse([c.histogram for c in cases])
    slim = [Measured(**{**vars(c), "histogram": h}) for c, h in zip(cases, common, strict=True)]

    def interval(statistic: Statistic, chosen: Sequence[Measured]) -> Interval:
        patients = [c.patient for c in chosen]
        return bootstrap(chosen, statistic, patients=patients, seed=seed, replicates=replicates)

    groups = sorted({c.group for c in slim} - {""})
    return MethodResult(
        method=name,
        folder=folder,
        measures={m: interval(statistic, slim) for m, statistic in MEASURES.items()},
        groups={
            g: {
                m: interval(MEASURES[m], [c for c in slim if c.group == g]) for m in GROUP_MEASURES
            }
            for g in groups
        },
        cases=cases,
        facts=facts,
    )


def to_json(results: Sequence[MethodResult]) -> dict[str, Any]:
    """Everything but the histograms, as plain values."""

    def intervals(measures: Mapping[str, Interval]) -> dict[str, Any]:
        return {name: asdict(value) for name, value in measures.items()}

    return {
        r.method: {
            "folder": str(r.folder),
            "measures": intervals(r.measures),
            "groups": {g: intervals(m) for g, m in r.groups.items()},
            "cases": [
                {
                    "case": c.case,
                    "patient": c.patient,
                    "group": c.group,
                    "score": c.score,
                    "abnormal": c.abnormal,
                    "voxel_ap": c.ap,
                    "voxel_auroc": c.auroc,
                    "dice": dict(c.dice),
                    "unseen": c.unseen,
                    "lesions": None if c.lesions is None else asdict(c.lesions),
                }
                for c in r.cases
            ],
            "fingerprint": r.facts.get("fingerprint"),
            "supervision": r.facts.get("supervision"),
            "scope": r.facts.get("scope"),
            "weights_sha256": r.facts.get("weights_sha256"),
        }
        for r in results
    }
