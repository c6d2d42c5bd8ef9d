"""Segmentation methods on one footing: the same volumes and CPU time, and the trivial answers.

    python benchmarks/segmentation.py SETTINGS.yaml --data DATA --test PATTERN --out OUT

SETTINGS says how long each method trains and which there are, such as

    minutes: 5                       CPU time of the training of each method
    words: [recipe.labels=[1,2]]     for all of them
    samples: 16                      label maps of controls that draw
    labels: [1, 2]                   of the controls, where the common words name none
    methods:
      - {name: unet, config: patch_64, words: [method=unet]}
      - {name: ccdm, config: patch_64, words: [method=ccdm], segment: [samples=5]}
      - {name: ccdm, config: patch_64, words: [method=ccdm], use: {direct: [predictor=one_step]}}
      - {name: base, config: patch_64, words: [recipe=healthy], use: {}}
      - {name: ledm, config: patch_64, words: [method=ledm, "probe.of={runs}/base"], few: true}
    controls: [mean_mask, independent_voxels, majority, monai]
    labelled: mouse01              the training cases of `few: true`, a pattern

Cases whose file names match PATTERN are the test part, all others train; make it so that no
patient is in both. Methods are trained and used by the commands that users have: seconds per step
are measured in a short run first, so that the schedule of the learning rate ends with the time.
`use` asks one trained run in several ways; `alone: true` leaves the common words out, and `steps`
sets the number of steps. The controls:

    mean_mask            mean of the training masks at each voxel, no image
    majority             of the readers of the test case itself, for sets with readers
    independent_voxels   every voxel drawn alone from the mean of the case's own readers: what the
                         distance between sets of masks (GED) cannot tell from good samples
    boosted_trees        gradient-boosted trees on local features, for sets with readers and one
                         object in the middle; a sample is what at least c readers say
    monai                MONAI's U-Net of 1.2 M parameters by a loop of its own: batch 2, Dice and
                         cross entropy, Adam, shifts and intensity changes, the last weights
    monai_few            the same on the labelled cases alone

What is finished is not done again. The table is that of `volumediff evaluate`, with the CPU time.
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

Parts = Mapping[str, Path]

PROBE = (2, 20)  # steps of the two short runs
READER = re.compile(r"_reader-\d+_mask")


class Failed(Exception):
    """A command ended with an error; the others go on."""


def cpu_seconds() -> float:
    """CPU time of all finished children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(*words: object, log: Path) -> float:
    """Runs volumediff; returns its CPU seconds."""
    start = cpu_seconds()
    with log.open("a", encoding="utf-8") as file:
        line = [sys.executable, "-m", "volumediff", *map(str, words)]
        file.write(" ".join(line) + "\n")
        file.flush()
        done = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise Failed(f"{words[0]}: exit code {done.returncode}; see {log}")
    return cpu_seconds() - start


def divide(data: Path, pattern: str, labelled: str, out: Path) -> Parts:
    """Folders of links to the parts; files at the top of the data are in all of them."""
    parts = {name: out / name for name in ("train", "few", "test")}
    if all(part.is_dir() for part in parts.values()):
        return parts
    for file in sorted(data.rglob("*")):
        if file.is_dir():
            continue
        place = file.relative_to(data)
        tests = re.search(pattern, file.name) is not None
        wanted = {
            "train": not tests,
            "few": not tests and re.search(labelled, file.name) is not None,
            "test": tests,
        }
        for name, part in parts.items():
            if wanted[name] or len(place.parts) == 1:
                (part / place).parent.mkdir(parents=True, exist_ok=True)
                (part / place).symlink_to(file.resolve())
    return parts


def train(entry: Mapping[str, Any], settings: Mapping[str, Any], parts: Parts, out: Path) -> None:
    """Trains one run for the time that all have."""
    name = entry["name"]
    run, record, log = out / "runs" / name, out / "runs" / f"{name}.json", out / f"{name}.log"
    if record.is_file():
        return
    data = parts["few" if entry.get("few") else "train"]
    common = () if entry.get("alone") else settings.get("words", ())
    words = [word.replace("{runs}", str(out / "runs")) for word in (*common, *entry["words"])]
    words.append(f"data.root={data}")
    fixed = (f"data.cache={out / 'cache'}", "data.workers=0", f"output={run}")
    probed = []
    for steps in PROBE:
        shutil.rmtree(run, ignore_errors=True)
        more = (f"optim.steps={steps}", "validation.every=1000000", "save_every=1000000")
        probed.append(command("train", entry["config"], *words, *fixed, *more, log=log))
    per_step = max((probed[1] - probed[0]) / (PROBE[1] - PROBE[0]), 1e-3)
    shutil.rmtree(run)
    minutes = entry.get("minutes", settings["minutes"])
    steps = entry.get("steps", max(int(minutes * 60 / per_step), 10))
    more = (f"optim.steps={steps}", f"validation.every={steps}", f"save_every={steps}")
    used = command("train", entry["config"], *words, *fixed, *more, log=log)
    facts = {"steps": steps, "train_cpu_seconds": round(used, 1)}
    record.write_text(json.dumps(facts), encoding="utf-8")


def use(entry: Mapping[str, Any], data: Path, out: Path) -> None:
    """Segments the test part with a trained run, in all the ways that are asked for."""
    name = entry["name"]
    for label, words in entry.get("use", {name: entry.get("segment", ())}).items():
        place = out / "results" / label
        record = out / "results" / f"{label}.json"
        if record.is_file():
            continue
        shutil.rmtree(place, ignore_errors=True)
        given = ("segment", data, "--run", out / "runs" / name, "-o", place, "--which", "last")
        used = command(*given, "--write-samples", *words, log=out / f"{name}.log")
        facts = json.loads((out / "runs" / f"{name}.json").read_text(encoding="utf-8"))
        facts |= {"test_cpu_seconds": round(used, 1)}
        record.write_text(json.dumps(facts), encoding="utf-8")


# controls


def cases_of(data: Path) -> list[Any]:
    """The cases of a folder, as commands find them."""
    from volumediff.data.survey import find_cases

    return find_cases(data)


def array(path: Path) -> np.ndarray:
    """The voxels of a file."""
    return np.asarray(nib.load(path).dataobj)


def readers_of(case: Any) -> np.ndarray:
    """Label maps of all readers (n, i, j, k), or the one label map."""
    files = list(case.labels.values()) or [case.label]
    return np.stack([array(file) for file in files]).astype(np.uint8)


def write(
    place: Path,
    case: Any,
    p: Mapping[int, np.ndarray],
    samples: Sequence[np.ndarray] = (),
) -> None:
    """The files of a segmentation, from probabilities by label."""
    place.mkdir(parents=True, exist_ok=True)
    affine = nib.load(next(iter(case.images.values()))).affine
    values = [0, *p]
    every = np.stack([np.clip(1 - sum(p.values()), 0, 1), *p.values()])
    labels = np.asarray(values, dtype=np.uint8)[every.argmax(0)]
    nib.save(nib.Nifti1Image(labels, affine), place / f"{case.id}_dseg.nii.gz")
    for value, share in zip(values, every, strict=True):
        image = nib.Nifti1Image(share.astype(np.float32), affine)
        nib.save(image, place / f"{case.id}_label-{value}_probseg.nii.gz")
    for i, drawn in enumerate(samples, start=1):
        name = f"{case.id}_desc-sample{i}_dseg.nii.gz"
        nib.save(nib.Nifti1Image(drawn.astype(np.uint8), affine), place / name)


def mean_mask(train: Path, test: Path, place: Path, values: Sequence[int], samples: int) -> None:
    """The mean training mask, for grids of one shape."""
    maps = np.concatenate([readers_of(case) for case in cases_of(train)])
    p = {v: (maps == v).mean(0) for v in values}
    for case in cases_of(test):
        write(place, case, p)


def majority(train: Path, test: Path, place: Path, values: Sequence[int], samples: int) -> None:
    """What most readers of the test case say: the best that one mask can do."""
    for case in cases_of(test):
        maps = readers_of(case)
        write(place, case, {v: ((maps == v).mean(0) > 0.5).astype(float) for v in values})


def independent_voxels(
    train: Path, test: Path, place: Path, values: Sequence[int], samples: int
) -> None:
    """Samples with the right share at every voxel and nothing else."""
    (value,) = values
    for number, case in enumerate(cases_of(test)):
        p = (readers_of(case) == value).mean(0)
        draw = np.random.default_rng(number)
        drawn = [(draw.random(p.shape) < p) * value for _ in range(samples)]
        write(place, case, {value: p}, drawn)


def local_features(x: np.ndarray) -> np.ndarray:
    """What trees see of a voxel: smoothed intensities, edges, place, and figures of the whole."""
    from scipy import ndimage

    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in x.shape), indexing="ij")
    smooth = {s: ndimage.gaussian_filter(x, s) for s in (0.6, 1, 1.5, 2.5, 4)}
    i, j, k = (slice(n // 2 - n // 8, n // 2 + n // 8) for n in x.shape)
    middle = np.percentile(smooth[1][i, j, k], (50, 90, 100))
    whole = [np.full_like(x, value) for value in middle]
    high, low = ndimage.maximum_filter(smooth[1], 9), ndimage.minimum_filter(smooth[1], 5)
    others = (ndimage.gaussian_gradient_magnitude(x, 1), ndimage.median_filter(x, 3), high, low)
    return np.stack([x, np.sqrt(sum(a**2 for a in axes)), *smooth.values(), *others, *whole], -1)


def boosted_trees(
    train: Path, test: Path, place: Path, values: Sequence[int], samples: int
) -> None:
    """Trees for the share of the readers; samples are the levels of their agreement."""
    from scipy import ndimage
    from sklearn.ensemble import HistGradientBoostingRegressor

    (value,) = values
    draw, rows, shares = np.random.default_rng(0), [], []
    for case in cases_of(train):
        features = local_features(array(next(iter(case.images.values()))).astype(np.float32))
        share = (readers_of(case) == value).mean(0)
        near = ndimage.binary_dilation(share > 0, iterations=3)
        chosen = near | (draw.random(share.shape) < 0.05)
        rows.append(features[chosen])
        shares.append(share[chosen])
    trees = HistGradientBoostingRegressor(
        max_iter=150, min_samples_leaf=100, learning_rate=0.08, random_state=0
    ).fit(np.concatenate(rows), np.concatenate(shares))
    for case in cases_of(test):
        features = local_features(array(next(iter(case.images.values()))).astype(np.float32))
        p = trees.predict(features.reshape(-1, features.shape[-1])).reshape(features.shape[:-1])
        pieces, _ = ndimage.label(p > 0.15)
        i, j, k = (slice(n // 2 - n // 8, n // 2 + n // 8) for n in p.shape)
        inside = pieces[i, j, k]
        counts = np.bincount(inside[inside > 0], minlength=2)
        p = np.clip(p, 0, 1) * (pieces == counts.argmax())
        readers = len(readers_of(case))
        levels = [(p > (c - 0.5) / readers) * value for c in range(1, readers + 1)]
        write(place, case, {value: p}, levels)


def monai(
    train: Path, test: Path, place: Path, values: Sequence[int], minutes: float
) -> dict[str, float]:
    """MONAI's U-Net by a loop of its own."""
    import time

    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    torch.set_num_threads(1)

    def image(case: Any) -> torch.Tensor:
        x = array(next(iter(case.images.values()))).astype(np.float32)
        low, high = np.percentile(x, (0.5, 99.5))
        return torch.from_numpy(np.clip((x - low) / (high - low), 0, 1) * 2 - 1).float()

    index = {v: i for i, v in enumerate(values, start=1)}
    cases = cases_of(train)
    xs = torch.stack([image(case) for case in cases])[:, None]
    ys = [[torch.from_numpy(np.vectorize(lambda v: index.get(v, 0))(m)) for m in readers_of(case)]
          for case in cases]  # fmt: skip
    network = UNet(3, 1, len(values) + 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    start, steps = time.process_time(), 0
    while (spent := time.process_time() - start) < minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - spent / (minutes * 60)) ** 0.9
        pick = torch.randint(len(xs), (2,))
        shift = torch.randint(-4, 5, (3,)).tolist()
        x = torch.roll(xs[pick], shift, (2, 3, 4))
        x = x * (0.8 + 0.4 * torch.rand(2, 1, 1, 1, 1)) + 0.2 * torch.randn(2, 1, 1, 1, 1)
        y = torch.stack([ys[i][int(torch.randint(len(ys[i]), ()))] for i in pick])[:, None]
        loss = loss_of(network(x), torch.roll(y, shift, (2, 3, 4)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    network.eval()
    for case in cases_of(test):
        with torch.no_grad():
            p = network(image(case)[None, None]).softmax(1)[0].numpy()
        write(place, case, {v: p[i] for v, i in index.items()})
    return {"steps": steps, "train_cpu_seconds": round(minutes * 60, 1)}


CONTROLS = {f.__name__: f for f in (mean_mask, majority, independent_voxels, boosted_trees)}


def control(
    name: str, settings: Mapping[str, Any], parts: Parts, values: list[int], out: Path
) -> None:
    """One of the controls, in the files of a segmentation."""
    record = out / "results" / f"{name}.json"
    if record.is_file():
        return
    place = out / "results" / name
    shutil.rmtree(place, ignore_errors=True)
    facts: dict[str, float] = {}
    if name == "monai":
        facts = monai(parts["train"], parts["test"], place, values, settings["minutes"])
    elif name == "monai_few":
        facts = monai(parts["few"], parts["test"], place, values, settings["minutes"])
    else:
        samples = settings.get("samples", 16)
        CONTROLS[name](parts["train"], parts["test"], place, values, samples)
    record.write_text(json.dumps(facts), encoding="utf-8")


def labels_of(settings: Mapping[str, Any]) -> list[int]:
    """The label values that the settings or their words name."""
    if "labels" in settings:
        return list(settings["labels"])
    word = next(w for w in settings["words"] if w.startswith("recipe.labels="))
    return list(yaml.safe_load(word.partition("=")[2]))


def main() -> None:
    """Trains, segments, evaluates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("settings", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", required=True, help="regular expression of test file names")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    settings = yaml.safe_load(given.settings.read_text(encoding="utf-8"))
    out = given.out.resolve()
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (out / "results").mkdir(exist_ok=True)
    parts = divide(given.data, given.test, settings.get("labelled", ".^"), out)
    for name in settings.get("controls", ()):
        control(name, settings, parts, labels_of(settings), out)
    for entry in settings["methods"]:
        print(entry["name"], flush=True)
        try:
            train(entry, settings, parts, out)
            use(entry, parts["test"], out)
        except Failed as failure:
            print(f"{entry['name']}: {failure}", flush=True)
    folders = sorted(path for path in (out / "results").iterdir() if path.is_dir())
    command("evaluate", *folders, "--truth", parts["test"], "-o", out / "evaluation",
            log=out / "evaluate.log")  # fmt: skip
    print((out / "evaluate.log").read_text(encoding="utf-8"))
    for record in sorted((out / "results").glob("*.json")):
        print(record.stem, record.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
