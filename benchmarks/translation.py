"""Missing channels: FLAIR of T1w on few patients, in folds, against baselines.

    python benchmarks/translation.py DATA OUT --folds 3 --steps 300

DATA is a folder with CASE_T1w and CASE_FLAIR. Every fold trains one small patch run on the other
folds at 3 mm and translates its own cases with the run and with each baseline; then all cases of
all folds are compared with their FLAIR in one table.
"""

import argparse
import shutil
import time
from pathlib import Path

import volumediff

METHODS = ("translation", "polynomial", "histogram_match", "mean_target")
WORDS = (
    "method=translation",
    "data.channels=[T1w,FLAIR]",
    "recipe.targets=[FLAIR]",
    "network.widths=[16,32,48]",
    "crop=[24,24,24]",
    "memory.dtype=float32",
    "data.split.validation=0.2",
    "optim.lr=1e-3",
    "optim.warmup=20",
    "optim.ema=0.98",
    "validation.best=null",
    "validation.previews=0",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    names = sorted(p.name.removesuffix("_T1w.nii.gz") for p in given.data.glob("*_T1w.nii.gz"))
    for fold in range(given.folds):
        _fold(given.data, given.out, names, fold, folds=given.folds, steps=given.steps)
    folders = [given.out / method for method in METHODS]
    volumediff.evaluate(folders, given.data, output=given.out, html=True, report=print)


def _fold(data: Path, out: Path, names: list[str], fold: int, *, folds: int, steps: int) -> None:
    """Trains on the other folds, and translates the cases of this one."""
    held = names[fold::folds]
    for name in names:
        part = out / f"fold-{fold}" / ("test" if name in held else "train")
        part.mkdir(parents=True, exist_ok=True)
        for path in data.glob(f"{name}_*.nii.gz"):
            if not (part / path.name).exists():
                (part / path.name).symlink_to(path.resolve())
    run = out / f"fold-{fold}" / "run"
    root = out / f"fold-{fold}" / "train"
    words = (f"data.root={root}", f"output={run}", f"optim.steps={steps}")
    start = time.process_time()
    volumediff.train("patch_64", overrides=[*WORDS, *words, f"validation.every={steps}"])
    print(f"fold {fold}: {time.process_time() - start:.0f} s of CPU")
    trained = volumediff.load(run)
    for method in METHODS:
        folder = out / f"fold-{fold}" / method
        volumediff.translate_files(trained, out / f"fold-{fold}" / "test", folder, method=method)
        (out / method).mkdir(exist_ok=True)
        for path in [*folder.glob("*.nii.gz"), *folder.glob("*.json")]:
            shutil.copy(path, out / method / path.name)


if __name__ == "__main__":
    main()
