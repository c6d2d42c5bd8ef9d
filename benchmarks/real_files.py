"""Real volumes through all four pipelines: train on healthy T1w, localize in patients, compare.

    python benchmarks/real_files.py --data DATA --out OUT --steps 2000

DATA holds `healthy_t1` (aligned, skull-stripped, with a `split` column), `pathology` (T1w and
masks on the same template) and `ct`. Every part is the command that a user would give, so that the
same call goes on where it was stopped. Prints Markdown tables: voxel AP per patient and pipeline
beside the baselines, with Dice at the threshold that healthy volumes set. The CT part trains on
one scan and looks for a lesion inserted into the same scan: it shows that CT goes through, no
more.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import volumediff
from volumediff.data.anomalies import TEST, insert
from volumediff.data.intensity import Window
from volumediff.data.volume import read, write
from volumediff.evaluation.evaluate import MethodResult, evaluate
from volumediff.settings.run_config import load_run_config
from volumediff.training.loop import train

PIPELINES = ("patch", "wavelet", "latent", "pseudo3d")
BASELINES = ("intensity", "smoothing", "atlas", "prevalence")
CHANNEL = "T1w"
# 4 mm on the template's own grid: volumes stay aligned, as atlas and normalization need.
GRID = (
    "data.preprocessing.spacing_mm=4",
    "data.preprocessing.shape=[50,60,48]",
    "data.preprocessing.centre=volume",
    "data.split.by_attribute=true",
    "memory={dtype: bfloat16, channels_last: true}",
)
# Short training: a high rate that decays to zero, the healthy mean as a condition.
SHORT = (
    "recipe.atlas=true",
    "network.coordinates=true",
    "optim.lr=2e-3",
    "optim.warmup=50",
    "optim.decay=0.01",
    "optim.weight_decay=0.01",
    "optim.betas=[0.9,0.99]",
    "optim.ema=0.99",
    "optim.batch_size=2",
    "validation.best=null",
    "validation.previews=1",
)
CROPS = {"pseudo3d": ("crop=[50,60,24]",)}


def trained_run(name: str, out: Path, words: Sequence[str]) -> Path:
    """A run of a shipped configuration, trained as far as it is not yet."""
    start = time.monotonic()
    run = train(load_run_config(name, [*words, f"output={out / name}"]))
    print(f"{name}: trained in {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return run


def runs(
    data: Path, out: Path, pipelines: Sequence[str], steps: int, words: Sequence[str]
) -> dict[str, Path]:
    """The trained runs by pipeline; the autoencoder of the latent one comes first."""
    shared = [
        f"data.root={data / 'healthy_t1'}",
        f"data.cache={out / 'cache'}",
        *GRID,
        f"validation.every={max(steps // 4, 1)}",
    ]
    found = {}
    for pipeline in pipelines:
        extra = []
        if pipeline == "latent":
            first = [*shared, f"optim.steps={max(steps // 2, 1)}"]
            extra = [f"space.autoencoder={trained_run('kl_64', out, [*first, *words])}"]
        extra += CROPS.get(pipeline, ())
        diffusion = [*shared, *SHORT, f"optim.steps={steps}", *extra, *words]
        found[pipeline] = trained_run(f"{pipeline}_64", out, diffusion)
    return found


def localized(
    run: Path,
    source: Path,
    folder: Path,
    rows: Sequence[str],
    *,
    channels: Sequence[str] | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Folders of maps, one per row."""
    trained = volumediff.load(run, which="last")
    folders = []
    for row in rows:
        start = time.monotonic()
        summary = volumediff.localize_files(
            trained,
            source,
            folder / row,
            method=row,
            overrides=(overrides or {}).get(row, ()),
            channels=channels,
            trace=False,
            progress=lambda line: None,
        )
        seconds = (time.monotonic() - start) / max(len(summary.done), 1)
        print(f"{folder.name} {row}: {summary.line()}, {seconds:.1f} s per new case", flush=True)
        folders.append(folder / row)
    return folders


def table(results: dict[str, list[MethodResult]]) -> str:
    """One line per pipeline and row, one column per case."""
    cases = [m.case for m in next(iter(results.values()))[0].cases]
    head = [
        "pipeline",
        "row",
        *cases,
        "mean AP (95 %)",
        "Dice, healthy FPR 5 %",
        "best Dice, pooled",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for pipeline, methods in results.items():
        for result in methods:
            aps = [f"{m.ap:.3f}" for m in result.cases]
            ap = result.measures["voxel_ap"]
            dice = result.measures["dice_healthy_fpr"].value
            cells = [
                pipeline,
                result.method,
                *aps,
                f"{ap.value:.3f} ({ap.low:.3f} to {ap.high:.3f})",
                f"{dice:.3f}",
                f"{result.measures['best_dice'].value:.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ct_case(data: Path, out: Path) -> tuple[Path, Path]:
    """Folders with the scan alone, and with a lesion in it beside its mask."""
    scan = read(data / "ct" / "abdomen_ct.nii.gz")
    clean, sick = out / "ct" / "train", out / "ct" / "test"
    if (sick / "abdomen_mask.nii.gz").is_file():
        return clean, sick
    window, hounsfield = Window(center=40.0, width=400.0), scan.array[0].astype(np.float32)
    body = window.mask(hounsfield)
    limits = window.limits(hounsfield, body)
    x = torch.from_numpy(window.apply(hounsfield, body, limits=limits))[None]
    changed, mask = insert(
        x,
        torch.from_numpy(body)[None],
        kind="hyper",
        key=1,
        spacing_mm=scan.spacing_mm,
        family=TEST,
    )
    # Only the lesion is written back: the window would cut bone and air everywhere else.
    lesion = window.invert(changed.numpy()[0], limits=limits)
    restored = np.where(mask.numpy()[0], lesion, hounsfield)[None]
    for folder in (clean, sick):
        folder.mkdir(parents=True, exist_ok=True)
    write(clean / "abdomen.nii.gz", scan.array.astype(np.float32), like=scan, kind="image")
    write(sick / "abdomen.nii.gz", restored, like=scan, kind="image")
    write(sick / "abdomen_mask.nii.gz", mask.numpy().astype(np.uint8), like=scan, kind="label")
    return clean, sick


def ct(data: Path, out: Path, steps: int, words: Sequence[str]) -> list[MethodResult]:
    """One CT through the patch pipeline; one scan leaves none to calibrate on."""
    clean, sick = ct_case(data, out)
    run = trained_run(
        "patch_64",
        out / "ct",
        [
            f"data.root={clean}",
            "data.preprocessing.spacing_mm=4",
            "data.preprocessing.shape=[80,72,80]",
            "data.preprocessing.intensity={name: window, center: 40, width: 400}",
            "data.split.validation=0",
            "data.split.calibration=0",
            *SHORT[2:],
            f"optim.steps={steps}",
            *words,
        ],
    )
    overrides = {
        "scan": ("normalize=raw", "threshold=best"),
        "intensity": ("threshold=best",),
        "smoothing": ("threshold=best",),
    }
    folders = localized(run, sick, out / "ct" / "maps", list(overrides), overrides=overrides)
    # the scan with its lesion is the one that was trained on: there is no other
    return evaluate(folders, sick, replicates=0, allow_seen=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pipelines", nargs="+", default=PIPELINES, choices=PIPELINES)
    parser.add_argument("--rows", nargs="+", default=("scan",))
    parser.add_argument("--steps", type=int, default=2000, help="of each pipeline")
    parser.add_argument("--no-ct", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*", help="key=value for every run")
    args = parser.parse_args()

    results = {}
    for pipeline, run in runs(args.data, args.out, args.pipelines, args.steps, args.words).items():
        # Baselines do not depend on the pipeline: once is enough.
        rows = [*args.rows, *(BASELINES if not results else ())]
        folder = args.out / "maps" / pipeline
        folders = localized(run, args.data / "pathology", folder, rows, channels=(CHANNEL,))
        results[pipeline] = evaluate(folders, args.data / "pathology", replicates=1000)
    print(table(results), flush=True)
    if not args.no_ct:
        results["CT, patch"] = ct(args.data, args.out, args.steps, args.words)
        print(table({"CT, patch": results["CT, patch"]}), flush=True)
    if args.json:
        rows = [
            {"pipeline": p, "row": r.method, "case": m.case, "voxel_ap": m.ap, "dice": m.dice}
            for p, methods in results.items()
            for r in methods
            for m in r.cases
        ]
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
