"""What each part of a localization is worth: settings against each other on the same volumes.

    python benchmarks/ablation.py SETTINGS.yaml --data DATA --out OUT [--against NAME]

SETTINGS is a list, such as

    - {name: atlas, run: runs/a, method: atlas}
    - {name: atlas histogram, run: runs/b, method: atlas}
    - {name: synthetic, run: runs/c0, method: synthetic, overrides: [normalize=raw]}
    - {name: synthetic, run: runs/c1, method: synthetic, overrides: [normalize=raw]}

Entries of one name are one setting with other seeds of its training: their figures are averaged
by volume. `channel` (T1w) says which image of a case is given to the run, and `which` (last) which
checkpoint; `align: true` aligns patients affinely to the MNI152 first. DATA holds `patients` and
`pathology` (patients with masks) and `healthy_t1` (healthy volumes). Suites:

    patients    patients with their own lesions, on the grids of their files
    synthetic   a lesion of every kind of the test family in healthy volumes that no setting's run
                trains or selects on; inserted on the grid of the file, the same for all settings
    healthy     the same volumes as they are: share of the brain that is in the mask

Average precision (AP) is that of the voxels of the file's own grid inside its foreground. Each
volume is a line of OUT/results.jsonl; what is there already, of equal weights, method and seed, is
not measured again. Intervals are over patients (bootstrap), and differences are paired by volume.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import volumediff
from volumediff.anomaly.methods._base import Method
from volumediff.calibration.of_run import calibration_for, load_method
from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import mni152
from volumediff.data.anomalies import KINDS, insert
from volumediff.data.cases import Case
from volumediff.data.foreground import foreground
from volumediff.data.grid import Grid
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.registration import RegistrationVolume, align_affine
from volumediff.data.splits import Split
from volumediff.data.survey import find_cases
from volumediff.data.volume import Volume, read
from volumediff.errors import UsageError
from volumediff.metrics import detection
from volumediff.metrics.bootstrap import bootstrap
from volumediff.outputs.input_grid import InputGrid
from volumediff.randomness import key
from volumediff.runs.trained import Trained

SUITES = ("patients", "synthetic", "healthy")
# Patients of `pathology`, whose files say nothing about their source.
PATHOLOGY = {"ms_p07": "mslub", "glioma_DU7294": "tcga", "glioma_FG6692": "tcga"}
REPLICATES = 2000
# Files of volumes with inserted lesions hold 1 to 1001 in the foreground and 0 outside.
UNITS, OFFSET = 500.0, 1.0


@dataclass(frozen=True, eq=False)
class Setting:
    """One line of the table.

    Arguments:
        name: of the line; several with one name are averaged
        run: folder of a run, or the name of a model that ships with the package
        method: name or YAML file
        overrides: of the method
        channel: image of a case that the run is given
        which: checkpoint
        align: whether a patient is aligned affinely to the MNI152 first, as `prepare` does it
    """

    name: str
    run: str
    method: str
    overrides: tuple[str, ...] = ()
    channel: str = "T1w"
    which: str = "last"
    align: bool = False

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Setting":
        """A setting as the file has it."""
        try:
            return cls(**{**entry, "overrides": tuple(entry.get("overrides", ()))})
        except TypeError as error:
            raise SystemExit(f"settings: {entry}: {error}") from None

    def loaded(self) -> Trained:
        """Its run."""
        return volumediff.load(self.run, which=self.which, device="auto").trained


@dataclass(frozen=True, eq=False)
class Item:
    """One volume on the grid of its file.

    Arguments:
        suite, name, patient, dataset, kind: of the volume
        image: as it is given to the run
        inside: its foreground, which counts
        truth: its lesion; None in a healthy volume
        calibrates: whether a run calibrates on it: its mask is then no test
    """

    suite: str
    name: str
    patient: str
    dataset: str
    kind: str
    image: Volume
    inside: np.ndarray
    truth: np.ndarray | None
    calibrates: bool = field(default=False)


def patients(data: Path, channel: str) -> Iterator[Item]:
    """Patients whose lesions have a mask."""
    found = [(c, str(c.attributes["dataset"])) for c in find_cases(data / "patients")]
    folder = data / "pathology"
    for name, dataset in PATHOLOGY.items():
        files = {p.stem.split(".")[0].rsplit("_", 1)[1]: p for p in folder.glob(f"{name}_*")}
        mask = files.pop("mask")
        found.append((Case(name, name, files, mask), dataset))
    for case, dataset in found:
        if channel not in case.images or case.label is None:
            continue
        image, label = read(case.images[channel]), read(case.label, kind="label")
        inside, truth = foreground(image.array[0], "auto"), label.array[0] > 0
        yield Item("patients", case.id, case.patient, dataset, "own", image, inside | truth, truth)


def held_out(data: Path, runs: Sequence[Trained], *, count: int) -> list[tuple[Case, bool]]:
    """Healthy cases that no run trains or selects on, and whether one calibrates on them.

    Raises:
        UsageError: there are none
    """
    used, calibrating = set(), set()
    for run in runs:
        path = run.run / "splits.json"
        if path.is_file():
            split = Split.load(path)
            used |= {split.patients[c] for c in (*split.train, *split.validation)}
            calibrating |= {split.patients[c] for c in split.calibration}
    cases = [c for c in find_cases(data / "healthy_t1") if c.patient not in used]
    if not cases:
        raise UsageError("no healthy volume is left that no run trains or selects on.")
    chosen = sorted(cases, key=lambda c: (c.patient in calibrating, key(0, "held", c.id)))[:count]
    return [(c, c.patient in calibrating) for c in chosen]


def healthy(held: Sequence[tuple[Case, bool]]) -> Iterator[Item]:
    """The held-out volumes as they are."""
    for case, calibrates in held:
        image = read(next(iter(case.images.values())))
        inside = foreground(image.array[0], "auto")
        yield Item(
            "healthy", case.id, case.patient, "healthy", "none", image, inside, None, calibrates
        )


def synthetic(held: Sequence[tuple[Case, bool]], *, seed: int) -> Iterator[Item]:
    """A lesion of every kind in each held-out volume."""
    plain = Preprocessing()
    ready = [plain.prepare(case) for case, _ in held]
    for i, (case, calibrates) in enumerate(held):
        mine, donor = ready[i], ready[(i + 1) % len(ready)]
        for kind in KINDS:
            if kind == "foreign_patch" and (len(held) < 2 or donor.x.shape != mine.x.shape):
                continue
            x, truth = insert(
                mine.x,
                mine.foreground,
                kind=kind,
                key=key(seed, "ablation", case.id, kind),
                spacing_mm=mine.spacing_mm,
                donor=donor.x,
            )
            inside = mine.foreground[0].numpy()
            stored = (((x + 1) * UNITS + OFFSET) * mine.foreground).numpy().astype(np.float32)
            grid = mine.record.canonical
            yield Item(
                "synthetic",
                f"{case.id}-{kind}-{seed}",
                case.patient,
                "synthetic",
                kind,
                Volume(stored, grid.affine, "image", grid),
                inside,
                truth[0].numpy(),
                calibrates,
            )


def aligned(item: Item) -> Alignment:
    """The way of a volume without skull to the grid of the MNI152 and back."""
    template, grid = mni152(), item.image.grid
    scan = RegistrationVolume(item.image.array[0], item.inside, grid)
    reference = RegistrationVolume(template.x, template.object, template.grid)
    matrix = align_affine(scan, reference, skull=False)
    return Alignment(Grid(grid.shape, grid.affine), template.grid, matrix)


def measured(
    trained: Trained, method: Method, setting: Setting, item: Item, seed: int
) -> dict[str, Any]:
    """The figures of one volume."""
    began = time.monotonic()
    image, way = item.image, None
    if setting.align and item.suite == "patients":
        way = aligned(item)
        moved = way.apply(image.array, fill=min(0.0, float(image.array.min())))
        image = Volume(moved, way.template.affine, "image", way.template)
    prepared = trained.preprocessing.prepare_volumes([image])
    example = trained.placed(
        prepared.x, prepared.foreground, prepared.spacing_mm, condition=trained.condition({})
    )
    found = method.localize(
        trained.model,
        example.x,
        foreground=example.foreground,
        spacing_mm=example.spacing_mm,
        key=key(seed, "ablation", item.suite, item.name),
        condition=example.condition,
        calibration=calibration_for(trained, method, setting.method),
    )
    home = InputGrid(trained.preprocessing, prepared.record)
    seconds = time.monotonic() - began
    voxel = float(np.prod(item.image.spacing_mm)) / 1000
    row: dict[str, Any] = {"seconds": seconds, "score": found.score}
    if found.mask is not None:
        mask = home.label(found.mask[0])
        mask = (mask if way is None else way.back_labels(mask))[0] > 0
        row["mask_ml"] = float(mask.sum()) * voxel
        row["flagged"] = float(mask[item.inside].mean())
    if item.truth is None:
        return row
    a = home.image(found.map[0])
    if way is not None:
        a = way.back(a, fill=min(0.0, float(a.min())))
    a = torch.from_numpy(a[0])
    truth, inside = torch.from_numpy(item.truth), torch.from_numpy(item.inside)
    h = detection.histogram(a, truth, foreground=inside)
    row |= {
        "ap": detection.average_precision(h),
        "auroc": detection.auroc(h),
        "prevalence": detection.prevalence(h),
        "best_dice": detection.best_dice(h).dice,
        "lesion_ml": float(item.truth.sum()) * voxel,
    }
    if found.mask is not None:
        overlap = float((mask & item.truth).sum())
        row["dice"] = 2 * overlap / float(mask.sum() + item.truth.sum())
    return row


def measure(settings: Sequence[Setting], args: argparse.Namespace) -> None:
    """Measures what OUT/results.jsonl lacks."""
    path = args.out / "results.jsonl"
    done = {_place(r) for r in _records(path)}
    held = held_out(args.data, [s.loaded() for s in settings], count=args.subjects)
    print(f"held out: {', '.join(c.id + ' (calibrates)' * k for c, k in held)}", flush=True)
    with path.open("a") as file:
        for s in settings:
            trained, began, count = s.loaded(), time.monotonic(), 0
            method = load_method(trained, s.method, s.overrides)
            facts = {
                "setting": s.name,
                "run": s.run,
                "method": s.method,
                "channel": s.channel,
                "align": s.align,
                "supervision": method.supervision,
                "weights": trained.digest[:16],
                "preprocessing": repr(trained.preprocessing),
                "fingerprint": method.fingerprint,
                "version": volumediff.__version__,
            }
            for seed in args.seeds:
                for item in _items(s, held, args, seed):
                    row = facts | {
                        "seed": seed,
                        "suite": item.suite,
                        "case": item.name,
                        "patient": item.patient,
                        "dataset": item.dataset,
                        "kind": item.kind,
                        "calibrates": item.calibrates,
                    }
                    if _place(row) in done:
                        continue
                    row |= measured(trained, method, s, item, seed)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    count += 1
            print(f"{s.name}: {count} volumes, {time.monotonic() - began:.0f} s", flush=True)


def _items(
    s: Setting, held: Sequence[tuple[Case, bool]], args: argparse.Namespace, seed: int
) -> Iterator[Item]:
    if "patients" in args.suites:
        yield from patients(args.data, s.channel)
    if s.channel != "T1w":
        return  # the healthy volumes have no other image
    if "synthetic" in args.suites:
        yield from synthetic(held, seed=seed)
    if "healthy" in args.suites:
        yield from healthy(held)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = (
        "weights",
        "preprocessing",
        "fingerprint",
        "channel",
        "align",
        "seed",
        "suite",
        "case",
    )
    return tuple(row[name] for name in names)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


Table = Mapping[str, Mapping[str, float]]
"""Setting -> volume -> figure."""


def figures(
    rows: Sequence[Mapping[str, Any]], name: str, *, suite: str
) -> tuple[Table, dict[str, Mapping[str, Any]]]:
    """A figure by setting and volume, averaged over seeds of trainings and of noise."""
    gathered: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, Mapping[str, Any]] = {}
    for r in rows:
        if r["suite"] == suite and name in r:
            gathered.setdefault(r["setting"], {}).setdefault(r["case"], []).append(r[name])
            facts[r["case"]] = r
    table = {s: {c: float(np.mean(v)) for c, v in cases.items()} for s, cases in gathered.items()}
    return table, facts


def _interval(values: Mapping[str, float], facts: Mapping[str, Any], sign: str = "") -> str:
    """Mean over volumes with its interval over patients."""
    if not values:
        return ""
    who = [facts[c]["patient"] for c in values]
    i = bootstrap(
        list(values.values()),
        lambda v: float(np.mean(v)),
        patients=who,
        replicates=REPLICATES,
    )
    if len(set(who)) < 3:
        return f"{i.value:{sign}.3f}"
    return f"{i.value:{sign}.3f} ({i.low:{sign}.3f} to {i.high:{sign}.3f})"


def tables(rows: Sequence[Mapping[str, Any]], order: Sequence[str], against: str) -> str:
    """Everything there is to print, in Markdown."""
    parts = [_suite(rows, order, against, suite) for suite in ("patients", "synthetic")]
    parts += [_each(rows, order), _kinds(rows, order), _flagged(rows, order)]
    return "\n\n".join(part for part in parts if part)


def _suite(
    rows: Sequence[Mapping[str, Any]], order: Sequence[str], against: str, suite: str
) -> str:
    table, facts = figures(rows, "ap", suite=suite)
    if not table:
        return ""
    sources = sorted({f["dataset"] for f in facts.values()})
    lines = []
    for name in order:
        mine = table.get(name, {})
        other = table.get(against, {})
        gain = {c: v - other[c] for c, v in mine.items() if c in other and name != against}
        cells = [
            f"{np.mean([v for c, v in mine.items() if facts[c]['dataset'] == source]):.3f}"
            if any(facts[c]["dataset"] == source for c in mine)
            else ""
            for source in sources
        ]
        cells = [] if len(sources) == 1 else cells
        lines.append([name, _interval(mine, facts), _interval(gain, facts, "+"), *cells])
    head = ["setting", "AP", f"minus {against}", *(sources if len(sources) > 1 else [])]
    people = len({f["patient"] for f in facts.values()})
    return f"{suite}: {len(facts)} volumes of {people} people\n\n" + _table(head, lines)


def _each(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    table, facts = figures(rows, "ap", suite="patients")
    common, _ = figures(rows, "prevalence", suite="patients")
    if not table:
        return ""
    cases = sorted(facts)
    lines = [[n, *(_cell(table.get(n, {}), c) for c in cases)] for n in order]
    first = next(iter(common.values()))
    lines.insert(0, ["share of lesion voxels", *(_cell(first, c, 4) for c in cases)])
    return "AP of each patient\n\n" + _table(["setting", *cases], lines)


def _kinds(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    table, facts = figures(rows, "ap", suite="synthetic")
    kinds = [k for k in KINDS if any(f["kind"] == k for f in facts.values())]
    if not kinds:
        return ""
    lines = []
    for name in order:
        by_kind = {
            k: [v for c, v in table.get(name, {}).items() if facts[c]["kind"] == k] for k in kinds
        }
        lines.append([name, *(f"{np.mean(v):.3f}" if v else "" for v in by_kind.values())])
    return "AP by kind of synthetic lesion\n\n" + _table(["setting", *kinds], lines)


def _flagged(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    shares, facts = figures(rows, "flagged", suite="healthy")
    sick, theirs = figures(rows, "mask_ml", suite="patients")
    dice, _ = figures(rows, "dice", suite="patients")
    seconds, _ = figures(rows, "seconds", suite="patients")
    lines = []
    for name in order:
        mine = {c: v for c, v in shares.get(name, {}).items() if not facts[c]["calibrates"]}
        used = {c: v for c, v in shares.get(name, {}).items() if facts[c]["calibrates"]}
        cells = [_interval(mine, facts), _interval(used, facts)]
        cells += [_interval(t.get(name, {}), theirs) for t in (sick, dice)]
        times = list(seconds.get(name, {}).values())
        lines.append([name, *cells, f"{np.mean(times):.1f}" if times else ""])
    head = ["setting", "share of healthy brains in the mask", "the same, of calibration volumes"]
    head += ["mask of a patient in ml", "Dice", "seconds"]
    return "At the method's own threshold\n\n" + _table(head, lines)


def _cell(values: Mapping[str, float], case: str, digits: int = 3) -> str:
    return f"{values[case]:.{digits}f}" if case in values else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", type=Path, help="YAML list of settings")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suites", nargs="+", default=SUITES, choices=SUITES)
    parser.add_argument("--subjects", type=int, default=6, help="held-out healthy volumes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of lesions and noise")
    parser.add_argument("--against", help="setting that the others are compared with; the first")
    parser.add_argument("--tables", action="store_true", help="print what is there")
    args = parser.parse_args()
    settings = [Setting.of(entry) for entry in yaml.safe_load(args.settings.read_text())]
    order = list(dict.fromkeys(s.name for s in settings))
    against = args.against or order[0]
    if against not in order:
        parser.error(f"--against {against}: choose from {', '.join(order)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        measure(settings, args)
    rows = [r for r in _records(args.out / "results.jsonl") if r["setting"] in order]
    text = tables(rows, order, against)
    (args.out / "tables.md").write_text(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
