"""Domain shift and impure training sets on simulated subjects.

    python benchmarks/shift.py --out OUT --steps 1000

First part: trained and calibrated on site A, tested on site B (another contrast, bias field and
noise). Voxel AP, drift of healthy scores and maps, false alarms at A's threshold and at that of k
healthy volumes of B, what test-time adaptation gains and erases, and all but the last once more
with intensities that are standardised to landmarks of A, in training and in tests. Second part:
the same training set with 0 to 20 % of lesions that nobody marked, and with exchanged class
labels.

Trains what is not trained yet, measures what is not measured yet (one line per volume in
OUT/results.jsonl) and prints tables, which OUT/shift.json holds too: the same call goes on where
it was stopped.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from shift_cases import SITES, healthy_of, items, population_of, write_training
from shift_tables import tables

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.threshold import HealthyFPR
from volumediff.calibration.collect_maps import recalibrate
from volumediff.calibration.of_run import calibration_for, calibration_path, load_method
from volumediff.calibration.site import drift_between
from volumediff.data.anomalies import KINDS
from volumediff.metrics import detection
from volumediff.randomness import key
from volumediff.runs.trained import Trained, load_trained
from volumediff.settings.run_config import load_run_config
from volumediff.training.loop import train

RATE = 0.05
THRESHOLD = f"threshold={{name: healthy_fpr, rate: {RATE}, min_volumes: 1}}"
POPULATION_SEED = 11


@dataclass(frozen=True)
class Run:
    """A training set.

    Arguments:
        impure: share of training volumes with lesions that are called healthy
        flipped: share of exchanged labels; None for a run without classes
        intensity: how the numbers of files are normalized
    """

    impure: float = 0.0
    flipped: float | None = None
    intensity: str = "{name: window, center: 501, width: 1000, foreground: nonzero}"

    @property
    def recipe(self) -> str:
        """The word for it; half of the volumes of a run with classes have lesions."""
        if self.flipped is None:
            return "recipe={name: healthy, atlas: true}"
        return (
            "recipe={name: class_conditional, attribute: group, values: [healthy, sick], "
            "atlas: true}"
        )


RUNS = {
    "pure": Run(),
    "standardised": Run(intensity="{name: histogram, foreground: nonzero}"),
    "impure-05": Run(impure=0.05),
    "impure-10": Run(impure=0.1),
    "impure-20": Run(impure=0.2),
    "labels-00": Run(flipped=0.0),
    "labels-05": Run(flipped=0.05),
    "labels-10": Run(flipped=0.1),
    "labels-20": Run(flipped=0.2),
}
ROWS = ("intensity", "atlas", "scan")


def variants(args: argparse.Namespace) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> row and words of the first part."""
    adapt = f"adapt={{name: affine, {args.adapt}}}"
    everywhere = f"adapt={{name: affine, {args.adapt}, quantile: 1.0}}"
    return {
        **{name: (name, ()) for name in ROWS},
        "scan adapted": ("scan", (adapt,)),
        "scan adapted everywhere": ("scan", (everywhere,)),
    }


def trained_run(name: str, args: argparse.Namespace) -> Trained:
    """The run, trained as far as it is not yet."""
    run, spacing = RUNS[name], args.spacing
    population = population_of(POPULATION_SEED, spacing)
    data = write_training(
        args.out / "data" / name,
        population,
        subjects=args.subjects,
        impure=run.impure,
        sick=0.0 if run.flipped is None else 0.5,
        flipped=run.flipped or 0.0,
        kinds=KINDS,
    )
    words = (
        f"data.root={data}",
        f"data.preprocessing.spacing_mm={spacing:g}",
        f"data.preprocessing.shape={list(population.shape)}",
        "data.preprocessing.centre=volume",
        f"data.preprocessing.intensity={run.intensity}",
        "data.split.by_attribute=true",
        "data.augmentation={flip: [0]}",
        f"data.cache={args.out / 'cache'}",
        "network.coordinates=true",
        run.recipe,
        "memory={dtype: bfloat16, channels_last: true}",
        "optim={lr: 2e-3, warmup: 50, decay: 0.01, batch_size: 2, weight_decay: 1e-2, "
        f"betas: [0.9, 0.99], ema: 0.99, steps: {args.steps}}}",
        f"validation={{every: {max(args.steps // 2, 1)}, volumes: 2}}",
        "save_every=250",
        f"output={args.out / name}",
    )
    began = time.monotonic()
    folder = train(load_run_config("wavelet_64", words))
    print(f"{name}: trained in {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return load_trained(folder, which="last", device=args.device)


def site_of(
    trained: Trained,
    row: str,
    method: Method,
    own: Calibration,
    site: str,
    args: argparse.Namespace,
) -> Calibration:
    """The calibration of a method on k healthy volumes of a site, fitted once."""
    path = calibration_path(trained, method, row)
    path = path.parent / f"{site}-{args.volumes}" / path.name
    if path.with_name(f"{path.name}.json").is_file():
        return Calibration.load(path)
    population = population_of(POPULATION_SEED, args.spacing)
    examples = healthy_of(trained, population, site, count=args.volumes)
    found = recalibrate(own, method, trained.model, examples, seed=args.seed)
    found.save(path)
    return found


def measured(
    trained: Trained, method: Method, own: Calibration, there: Calibration, e: Example, number: int
) -> dict[str, Any]:
    """Map before normalization, histogram and volume score of one volume."""
    began = time.monotonic()
    r = method.residual(trained.model, e, key=key(POPULATION_SEED, "shift", number))
    a = method.finish(r, own.statistics)
    rule = HealthyFPR(rate=RATE, min_volumes=1)
    h = detection.histogram(a, e.truth, foreground=e.foreground)
    return {
        "raw": r.map,
        "histogram": h,
        "score": method.score(a, foreground=e.foreground, errors=r.errors, healthy=own.errors),
        "false_alarms": detection.rates(h, rule(own)).fpr,
        "false_alarms_site": detection.rates(h, rule(there)).fpr,
        "seconds": time.monotonic() - began,
    }


def volumes(
    trained: Trained,
    method: Method,
    own: Calibration,
    there: Calibration,
    site: str,
    args: argparse.Namespace,
    done: set[tuple[Any, ...]],
) -> Iterator[dict[str, Any]]:
    """Figures of the test volumes of a site; the healthy twin of a lesion is measured once."""
    population = population_of(POPULATION_SEED, args.spacing)
    facts = (trained.digest[:16], method.fingerprint, site)
    twin: tuple[int, dict[str, Any]] | None = None
    kinds = tuple(args.kinds)

    def wanted(subject: int, kind: str) -> bool:
        return (*facts, subject, kind) not in done

    for item in items(trained, population, site, count=args.tests, kinds=kinds, wanted=wanted):
        truth = item.sick.truth
        if truth is None or not bool(truth.any()):
            continue  # a deformation of flat tissue may change nothing
        if twin is None or twin[0] != item.subject:
            figures = measured(trained, method, own, there, item.healthy, item.subject)
            twin = (item.subject, figures)
            if wanted(item.subject, "none"):
                shown = {k: v for k, v in figures.items() if k not in ("raw", "histogram")}
                yield {"subject": item.subject, "kind": "none", **shown}
        sick = measured(trained, method, own, there, item.sick, item.subject)
        yield {
            "subject": item.subject,
            "kind": item.kind,
            "ap": detection.average_precision(sick["histogram"]),
            "prevalence": detection.prevalence(sick["histogram"]),
            # what the lesion adds to the map, over the same volume without it
            "excess": float((sick["raw"] - twin[1]["raw"])[truth].mean()),
            "score": sick["score"],
            "seconds": sick["seconds"],
        }


def measure(
    trained: Trained, name: str, args: argparse.Namespace, known: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Everything about a run that is not known yet."""
    done = {
        (r["weights"], r["fingerprint"], r["site"], r.get("subject"), r["kind"]) for r in known
    }
    if name == "pure":
        plan, sites = variants(args), tuple(args.sites)
    elif name == "standardised":
        plan, sites = {f"{row} standardised": (row, ()) for row in ROWS}, tuple(args.sites)
    elif RUNS[name].flipped is None:
        plan, sites = {row: (row, ()) for row in ("atlas", "scan")}, ("A",)
    else:
        plan, sites = {row: (row, ()) for row in ("class_contrast", "anofpdm", "scan")}, ("A",)
    for variant, (row, words) in plan.items():
        method = load_method(trained, row, (*words, THRESHOLD))
        own = calibration_for(trained, method, row, seed=args.seed)
        assert own is not None, "healthy_fpr is calibrated"
        for site in sites:
            there = site_of(trained, row, method, own, site, args)
            facts = {
                "run": name,
                "variant": variant,
                "site": site,
                "weights": trained.digest[:16],
                "fingerprint": method.fingerprint,
            }
            began, count = time.monotonic(), 0
            if (facts["weights"], facts["fingerprint"], site, None, "drift") not in done:
                drift = asdict(drift_between(method, own, there))
                yield {**facts, "kind": "drift", "volumes": args.volumes, **drift}
            for figures in volumes(trained, method, own, there, site, args, done):
                yield facts | figures
                count += 1
            seconds = time.monotonic() - began
            print(f"{name} {variant} {site}: {count} volumes in {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--sites", nargs="+", default=["A", "B"], choices=list(SITES))
    parser.add_argument("--steps", type=int, default=1000, help="of each run")
    parser.add_argument("--subjects", type=int, default=100, help="of each training set")
    parser.add_argument("--volumes", type=int, default=10, help="healthy volumes of a site")
    parser.add_argument("--tests", type=int, default=6, help="test subjects")
    parser.add_argument("--kinds", nargs="+", default=["hyper", "hypo", "texture", "cavity"])
    parser.add_argument("--spacing", type=float, default=4.0, help="voxel size in mm")
    parser.add_argument("--adapt", default="steps: 10, lr: 1.0e-3, draws: 2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the methods' noise")
    parser.add_argument(
        "--tables", action="store_true", help="print what is there, measure nothing"
    )
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(True)
    path = args.out / "results.jsonl"

    def stored() -> list[dict[str, Any]]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    for name in [] if args.tables else args.runs:
        trained = trained_run(name, args)
        with path.open("a") as file:
            for row in measure(trained, name, args, stored()):
                file.write(json.dumps(row) + "\n")
                file.flush()
    text, values = tables(stored())
    print(text, flush=True)
    (args.out / "shift.json").write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
