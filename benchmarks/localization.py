"""Localization on real volumes: rows of several recipes and pipelines against simple baselines.

    python benchmarks/localization.py --data DATA --out OUT --spacing 4 --steps 2500

DATA holds `healthy_t1` (aligned, skull-stripped), `pathology` (T1w and masks on the same template)
and `lesion_masks` (shapes of real lesions on it). Trains what is not trained yet, measures what is
not measured yet (one line per volume in OUT/results.jsonl), and prints tables: the same call goes
on where it was stopped. Patients of test volumes are never trained, calibrated or tuned on;
smoothing is tuned on validation lesions, thresholds come from healthy calibration volumes and from
validation lesions, and the best Dice is an oracle.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from localization_cases import Item, coarsened, items
from localization_runs import RUNS, words
from localization_tables import heat_map, latest, tables
from torch.nn.functional import interpolate

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.threshold import HealthyFPR, ValidationThreshold
from volumediff.calibration.lesions import validation_pairs
from volumediff.calibration.of_run import calibrate, load_method
from volumediff.data.splits import Split
from volumediff.inference.cost import counted
from volumediff.metrics import detection
from volumediff.randomness import key
from volumediff.runs.trained import Trained, load_trained
from volumediff.settings.run_config import load_run_config
from volumediff.training.loop import train

SUITES = ("healthy", "glioma", "ms-real", "stroke", "ms", "synthetic", "sizes")
NORMALIZED = "normalize={name: voxelwise, sigma_mm: 4.0, pool_mm: 4.0, floor: 0.1}"
# Names of this benchmark: a shipped row with words on top.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "intensity_dark": ("intensity", ("baseline.sign=-1",)),
    # what residual normalization is worth
    "scan_raw": ("scan", ("normalize=raw",)),
    "synthetic_z": ("synthetic", (NORMALIZED,)),
    "ddpm_z": ("ddpm", (NORMALIZED,)),
    # by a student of the run, see `students` in localization_tables
    "ddpm_z_student": ("ddpm", (NORMALIZED, "sampler=student")),
    "ssim_ensemble_z": ("ssim_ensemble", (NORMALIZED,)),
    "ssim_ensemble_z_student": ("ssim_ensemble", (NORMALIZED, "sampler=student")),
    # the papers' numbers of steps, and few
    "ddpm_paper": ("ddpm", ("sampler={name: ancestral, steps: 300}",)),
    "ddpm_few": ("ddpm", ("sampler={name: dpmpp, steps: 10}",)),
    "ssim_ensemble_paper": ("ssim_ensemble", ("sampler={name: ancestral, steps: 300}",)),
    "ssim_ensemble_few": ("ssim_ensemble", ("sampler={name: dpmpp, steps: 10}",)),
    "thor_paper": ("thor", ("sampler={name: ancestral, steps: 350}",)),
    "thor_few": ("thor", ("sampler={name: ancestral, steps: 35}",)),
    "autoddpm_paper": (
        "autoddpm",
        ("first.sampler={name: ancestral, steps: 200}", "sampler={name: ancestral, steps: 50}"),
    ),
    "autoddpm_few": (
        "autoddpm",
        ("first.sampler={name: dpmpp, steps: 10}", "sampler={name: ancestral, steps: 6}"),
    ),
    "ddim_inversion_paper": ("ddim_inversion", ("sampler={name: ddim, steps: 500}",)),
    "ddim_inversion_few": ("ddim_inversion", ("sampler={name: ddim, steps: 40}",)),
}
FINE = "wavelet-synthetic"  # runs of coarser grids take their test volumes from this one
SMOOTHING_MM = (2.0, 4.0, 8.0, 12.0)
RATE = 0.05


@dataclass(frozen=True)
class Prepared:
    """A method with what was fitted for it."""

    name: str
    method: Method
    calibration: Calibration | None


def trained_run(name: str, args: argparse.Namespace) -> Trained:
    """The run, trained as far as it is not yet, after the one that it is built on."""
    run = RUNS[name]
    if run.first is not None:
        trained_run(run.first, args)
    began = time.monotonic()
    wanted = words(
        run, str(args.data), str(args.out), name, steps=args.steps, spacing=args.spacing
    )
    folder = train(load_run_config(run.pipeline, wanted))
    print(f"{name}: trained in {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return load_trained(folder, which="last")


def prepared(trained: Trained, name: str, extra: Sequence[str]) -> Prepared:
    """A method and its calibration on the run's own healthy volumes."""
    base, own = VARIANTS.get(name, (name, ()))
    if name.endswith(("_paper", "_few")):  # raw maps: hundreds of calls for each healthy volume
        return Prepared(name, load_method(trained, base, [*own, *extra]), None)
    options = [[*own, *extra]]
    if name == "smoothing":
        options = [[f"baseline.sigma_mm={s}", *extra] for s in SMOOTHING_MM]
    found = []
    for option in options:
        method = load_method(trained, base, option)
        fitted = calibrate(trained, method, name, report=lambda line: None)
        found.append(Prepared(name, method, fitted))
    if len(found) == 1:
        return found[0]
    best = max(found, key=lambda p: _validation_ap(trained, p))
    print(f"smoothing: {best.method} is best on validation lesions", flush=True)
    return best


def _validation_ap(trained: Trained, candidate: Prepared) -> float:
    aps = []
    pairs = validation_pairs(trained, seed=1, limit=None, truth="synthetic")
    for i, example in enumerate(pair.sick for pair in pairs):
        r = candidate.method.residual(trained.model, example, key=key(1, "tuning", i))
        a = candidate.method.finish(r, candidate.calibration.statistics)
        h = detection.histogram(a, example.truth, foreground=example.foreground)
        aps.append(detection.average_precision(h))
    return sum(aps) / len(aps)


def learners(out: Path) -> dict[str, str]:
    """Patient -> run, for everybody in a part other than test of some run of this benchmark."""
    found = {}
    for path in sorted(out.glob("*/splits.json")):
        split = Split.load(path)
        for case in (*split.train, *split.validation, *split.calibration):
            found[split.patients[case]] = path.parent.name
    return found


def measured(
    trained: Trained, p: Prepared, item: Item, *, coarsening: int, seed: int
) -> dict[str, Any]:
    """The figures of one volume; maps of a coarser grid are brought back to that of the volume."""
    e = item.example
    seen = e if coarsening == 1 else coarsened(e, trained, factor=coarsening)
    began = time.monotonic()
    with counted(trained.model) as cost:
        found = p.method.localize(
            trained.model,
            seen.x,
            foreground=seen.foreground,
            spacing_mm=seen.spacing_mm,
            key=key(seed, item.suite, item.name),
            condition=seen.condition,
            calibration=p.calibration,
        )
    row = {
        "suite": item.suite,
        "case": item.name,
        "patient": item.patient,
        "kind": item.kind,
        "contrast": item.contrast,
        "volume_ml": item.volume_ml,
        "score": found.score,
        "calls": cost.network_calls,
        "seconds": time.monotonic() - began,
    }
    fine = found.map
    if coarsening > 1:
        fine = interpolate(fine, scale_factor=coarsening, mode="trilinear") * e.foreground
    h = detection.histogram(fine, e.truth, foreground=e.foreground)
    thresholds: dict[str, float | None] = {}
    if p.calibration is not None:
        thresholds["healthy_fpr"] = HealthyFPR(rate=RATE, min_volumes=1)(p.calibration)
        thresholds["validation"] = ValidationThreshold()(p.calibration)
        row["false_alarms"] = detection.rates(h, thresholds["healthy_fpr"]).fpr
    if e.truth is None:
        return row
    best = detection.best_dice(h)
    return row | {
        "ap": detection.average_precision(h),
        "auroc": detection.auroc(h),
        "prevalence": detection.prevalence(h),
        "best_dice": best.dice,
        **{f"dice_{n}": _dice(h, t) for n, t in thresholds.items()},
    }


def _dice(h: detection.Histogram, threshold: float) -> float:
    """Of the voxels above a threshold; post-processing of the mask is left out."""
    r = detection.rates(h, threshold)
    positives, negatives = int(h.abnormal.sum()), int(h.healthy.sum())
    tp, fp = r.tpr * positives, r.fpr * negatives
    return 2 * tp / (tp + fp + positives)


def measure(
    trained: Trained, name: str, rows: Sequence[str], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of a run on the suites, what is measured already left out."""
    path = args.out / "results.jsonl"
    coarsening = RUNS[name].coarsening
    source = trained if coarsening == 1 else trained_run(FINE, args)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["weights"], r["fingerprint"], r["suite"], r["case"]) for r in known}
    used = learners(args.out)
    for row in rows:
        p = prepared(trained, row, args.words)
        facts = {
            "run": name,
            "row": row,
            "supervision": p.method.supervision,
            "weights": trained.digest[:16],
            "fingerprint": p.method.fingerprint,
            "seed": args.seed,
        }
        began, count = time.monotonic(), 0
        seen: dict[str, int] = {}
        for item in items(source, args.data, tuple(args.suites), seed=args.seed):
            assert item.patient not in used, (
                f"{item.suite} {item.name}: its patient is in a part of {used[item.patient]} "
                "other than test."
            )
            seen[item.suite] = seen.get(item.suite, 0) + 1
            if args.limit and seen[item.suite] > args.limit:
                continue
            place = (facts["weights"], facts["fingerprint"], item.suite, item.name)
            if place in done:
                continue
            yield facts | measured(trained, p, item, coarsening=coarsening, seed=args.seed)
            count += 1
        if count:
            seconds = time.monotonic() - began
            print(f"{name} {row}: {count} volumes in {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--rows", nargs="+", help="instead of those of each run")
    parser.add_argument("--suites", nargs="+", default=SUITES, choices=SUITES)
    parser.add_argument("--steps", type=int, default=5000, help="of each run")
    parser.add_argument("--spacing", type=float, default=3.0, help="voxel size in mm")
    parser.add_argument("--limit", type=int, help="volumes of each suite")
    parser.add_argument("--seed", type=int, default=0, help="of lesions and noise")
    parser.add_argument(
        "--tables", action="store_true", help="print what is there, measure nothing"
    )
    parser.add_argument("words", nargs="*", help="component.argument=value for every method")
    args = parser.parse_args()
    args.data, args.out = args.data.resolve(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(True)
    path = args.out / "results.jsonl"
    for name in [] if args.tables else args.runs:
        trained = trained_run(name, args)
        with path.open("a") as file:
            for row in measure(trained, name, args.rows or RUNS[name].rows, args):
                file.write(json.dumps(row) + "\n")
                file.flush()
    results = latest([json.loads(line) for line in path.read_text().splitlines()])
    print(tables(results), flush=True)
    heat_map(results, args.out / "sizes.png")


if __name__ == "__main__":
    main()
