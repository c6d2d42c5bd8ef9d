"""A golden record: what every shipped configuration and every localization method computes.

    python benchmarks/golden.py --out before.json
    python benchmarks/golden.py --out after.json --only pseudo3d thor --part localize
    python benchmarks/golden.py --compare before.json after.json

For refactorings that must not change a bit. `train` takes every shipped configuration through three
steps, a validation and a checkpoint at a small size, and records SHA-256 of the weights and of their
average beside every figure of the journal. `localize` trains tiny runs of every kind that a method
may need, and records SHA-256 of the voxels of every volume that each method writes, with its score
and thresholds; and one segmentation, one sample and one evaluation. Where a command refuses, its one
line is the record. Hashes are of names, types, shapes and numbers, not of files.

FILE.json is written after every entry, and the same command goes on from it. What was trained lies
in the folder FILE.work beside it, which may be deleted afterwards. Numbers are those of one machine,
one release of torch and one thread: `about` says which.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import nibabel as nib
import numpy as np
import torch
import yaml
from safetensors.torch import load_file

# ---- all that this script knows of the package: how it is called, and what it writes --------------

from volumediff.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


def train_words(config: str, out: Path, words: Sequence[str]) -> list[str]:
    return ["train", config, *words, f"output={out}"]


def localize_words(
    run: Path,
    inputs: Path,
    out: Path,
    method: str,
    words: Sequence[str],
    classifier: Path | None = None,
    region: Path | None = None,
) -> list[str]:
    lent = [] if classifier is None else ["--classifier", str(classifier)]
    lent += [] if region is None else ["--region", str(region)]
    said = ["localize", str(run), "-i", str(inputs), "-o", str(out), "--method", method]
    return [*said, "--device", "cpu", *lent, *words]


def segment_words(run: Path, inputs: Path, out: Path, words: Sequence[str]) -> list[str]:
    return ["segment", str(run), "-i", str(inputs), "-o", str(out), "--device", "cpu", *words]


def sample_words(run: Path, out: Path) -> list[str]:
    return ["sample", str(run), "-o", str(out), "-n", "2", "--steps", "3", "--device", "cpu"]


def evaluate_words(maps: Path, truth: Path) -> list[str]:
    return ["evaluate", str(maps), "--truth", str(truth), "--replicates", "50"]


def files_of_run(run: Path) -> tuple[dict[str, Path], Path]:
    """Weights and their average in the last checkpoint, and the journal."""
    (last,) = sorted(run.glob("checkpoints/last-*"))
    names = {name: last / f"{name}.safetensors" for name in ("weights", "ema")}
    return names, run / "metrics.jsonl"


def figures_of_map(out: Path) -> dict[str, Any]:
    """Score and thresholds of every case, and its findings."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*_desc-anomaly_map.json")):
        facts = json.loads(path.read_text())
        case = path.name.removesuffix("_desc-anomaly_map.json")
        wanted = ("score", "threshold", "thresholds")
        found[case] = {name: facts[name] for name in wanted if name in facts}
        listed = json.loads((out / f"{case}_desc-anomaly_findings.json").read_text())
        found[case]["findings"] = numbers(listed)
    return found


METHODS = CONFIGS / "anomaly"
FOLDERS = ("autoencoders", "pipelines", "classifiers", "comparers")  # what is trained, in order

# ---- tiny runs ------------------------------------------------------------------------------------

SIDE = {64: 16, 128: 32, 256: 32}  # voxels of a configuration's volumes -> voxels here
EXTENT_MM = 192.0
# Of whatever part of a configuration has them: so small that a step takes no time.
SMALL = {
    "latent_channels": 4,
    "codes": 16,
    "squeeze": 4,
    "width": 16,
    "layers": 1,
    "heads": 2,
}
# Of whatever part of a method has them.
QUICK = {
    "steps": 3,
    "seeds": 3,
    "epochs": 2,
    "samples": 500,
    "members": 2,
    "iterations": 3,
    "passes": 3,
    "count": 2,
    "candidates": 500,
    "size": 50,
}


@dataclass(frozen=True)
class Run:
    """A training run.

    Arguments:
        config: shipped configuration
        words: on top of it
        lent: word -> the run that it names
        data: folder of cases, `population`, or none where the run of another one decides
    """

    config: str
    words: tuple[str, ...] = ()
    lent: Mapping[str, str] = field(default_factory=dict)
    data: str | None = "plain"


@dataclass(frozen=True)
class Method:
    """How a method is called.

    Arguments:
        run: the run that it gets
        words: on top of its configuration
        lent: word -> another run that it names
        classifier: the run of a classifier
        region: whether it is told where to look
        inputs: folder of the cases
    """

    run: str = "wavelet"
    words: tuple[str, ...] = ()
    lent: Mapping[str, str] = field(default_factory=dict)
    classifier: str | None = None
    region: bool = False
    inputs: str = "new"


CLASSES = "{name: class_conditional, attribute: group, values: [healthy, sick]}"
COLD = "kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}"
DISCRETE = "kernel={name: discrete, schedule: {name: cosine, zero_terminal_snr: true}}"


def restoring(corruption: str) -> Run:
    return Run("wavelet_64", (f"recipe={{name: degradation, corruption: {corruption}}}", COLD))


def detecting(corruption: str) -> Run:
    return Run("wavelet_64", (f"recipe={{name: synthetic_anomalies, corruption: {corruption}}}",))


RUNS = {
    "wavelet": Run("wavelet_64"),
    "patch": Run("patch_64"),
    "pseudo3d": Run("pseudo3d_64"),
    "kl": Run("kl_64"),
    "latent": Run("latent_64", lent={"space.autoencoder": "kl"}),
    "binary": Run("binary_64"),
    "bits": Run("latent_64", (DISCRETE,), {"space.autoencoder": "binary"}),
    "classes": Run("wavelet_64", (f"recipe={CLASSES}",)),
    "simplex": Run("patch_64", ("noise=simplex",)),
    "pyramid": Run("patch_64", ("noise=pyramid",)),
    "told": Run("patch_64", ("noise=simplex", "recipe.reference=true")),
    "boxes": Run("patch_64", ("recipe={name: local_noise, region: {name: box, side_mm: 24}}",)),
    "masked": Run(
        "wavelet_64",
        (
            "recipe={name: local_noise, region: {name: cells, share: 0.5, cell_mm: 16}, "
            "mask_loss: 0.1}",
        ),
    ),
    "voids": Run(
        "wavelet_64",
        ("recipe={name: inpainting, region: {name: cells, share: 0.75, cell_mm: 16}}",),
    ),
    "edges": Run(
        "wavelet_64",
        ("recipe={name: inpainting, region: {name: blobs, share: [0.05, 0.95]}, edges: 3}",),
    ),
    "translation": Run(
        "wavelet_64",
        ("recipe={name: translation, region: slabs}", "data.channels=[FLAIR,T2w]"),
        data="two",
    ),
    **{f"restoring-{c}": restoring(c) for c in ("foreign_patch", "disentangled")},
    **{f"restoring-{c}": restoring(c) for c in ("poisson_patch", "coarse")},
    **{f"detecting-{c}": detecting(c) for c in ("foreign_patch", "poisson_patch")},
    **{f"detecting-{c}": detecting(c) for c in ("natural_patch", "texture_patch")},
    "detecting-mixture": detecting("{name: mixture, of: [{name: mood}, {name: bias_field}]}"),
    "dae": Run("dae_64"),
    "vae": Run("vae_64"),
    "context_vae": Run("context_vae_64"),
    "fanogan": Run("fanogan_64"),
    "soft_intro_vae": Run("soft_intro_vae_64"),
    "vq_tokens": Run("vq_tokens_64"),
    "token_prior": Run("token_prior_64", lent={"autoencoder.autoencoder": "vq_tokens"}),
    "classifier": Run("encoder_64", lent={"classifier.of": "wavelet"}, data=None),
    "comparer": Run("siamese_64", lent={"comparer.of": "wavelet"}, data=None),
    "marked": Run("wavelet_64", data="labelled"),
    "labels": Run("wavelet_64", ("recipe={name: label_diffusion, labels: [1]}",), data="labelled"),
}
# Methods that are not in here get the run "wavelet" as they are.
BOXES = ("route.box_mm=32", "route.overlap_mm=8")
METHOD = {
    "andi": Method("pyramid"),
    "anoddpm": Method("simplex"),
    "anofpdm": Method("classes"),
    "bernoulli": Method("bits"),
    "cddpm": Method("told"),
    "cevae": Method("context_vae"),
    "cfg_inversion": Method("classes"),
    "class_contrast": Method("classes"),
    "dae": Method("dae"),
    "dae_diffusion": Method("restoring-coarse"),
    "ddib": Method("classes"),
    "dif_fuse": Method(classifier="classifier"),
    "diff_scm": Method("classes"),
    "diffusion_features": Method("marked"),
    "disyre": Method("restoring-foreign_patch"),
    "disyre_v2": Method("restoring-disentangled"),
    "draem": Method("detecting-texture_patch"),
    "fanogan": Method("fanogan"),
    "fpi": Method("detecting-foreign_patch"),
    "grid": Method(words=BOXES),
    "healthy_inpainting": Method("voids"),
    "hu": Method("classes"),
    "inpaint_given": Method(region=True),
    "itermask3d": Method("edges"),
    "ltm": Method("token_prior"),
    "mad_ad": Method("masked"),
    "mae": Method("voids"),
    "mmccd": Method("translation", inputs="new-two"),
    "nsa": Method("detecting-natural_patch"),
    "pddpm": Method("boxes", BOXES),
    "phanes": Method(lent={"first.run": "soft_intro_vae"}),
    "pii": Method("detecting-poisson_patch"),
    "pii_diffusion": Method("restoring-poisson_patch"),
    "ra": Method("soft_intro_vae"),
    "sadm": Method(lent={"map.run": "comparer"}),
    "saliency": Method(classifier="classifier"),
    "synthetic": Method("detecting-mixture"),
    "vae": Method("vae"),
    "vae_restoration": Method("vae"),
    "wolleb": Method(classifier="classifier"),
    "wolleb_ddpm": Method(classifier="classifier"),
}
# Once more with runs of the other kinds.
ALSO = {
    "patch": ("scan", "thor", "features", "repaint"),
    "pseudo3d": ("scan", "thor", "features", "repaint"),
    "latent": ("scan", "thor", "features", "repaint", "pinaya", "vae"),
    "vae": ("intensity", "atlas"),
    "simplex": ("thor",),
    "classes": ("scan",),
}
# ---- cases ----------------------------------------------------------------------------------------

SIZE, SPACING_MM = 16, 4.0
LESIONS = ("sick", "healthy")  # in turn


def phantom(seed: int, *, sick: bool) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid with a core, and the mask of a bright blob in it where it is sick."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij"))
    radius = np.sqrt(((axes - rng.normal(0, 0.05, (3, 1, 1, 1))) ** 2).sum(0))
    x = 100 * (radius < 0.9) + rng.uniform(60, 120) * (radius < 0.5)
    x = x * (1 + 0.05 * rng.standard_normal(x.shape)) * (radius < 0.9)
    centre = rng.uniform(-0.4, 0.4, (3, 1, 1, 1))
    lesion = (np.sqrt(((axes - centre) ** 2).sum(0)) < 0.25) & sick
    return (x + 150 * lesion).astype(np.float32), lesion.astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    """Without compression, whose bytes are not ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([SPACING_MM] * 3 + [1.0])), path)


def write_cases(
    folder: Path,
    *,
    cases: int,
    first: int = 0,
    channels: Sequence[str] = ("T1w",),
    labels: bool = False,
) -> Path:
    """Healthy and sick volumes in turn, with ages and groups."""
    if (folder / "participants.tsv").is_file():
        return folder
    rows = ["participant_id\tage\tgroup"]
    for i in range(first, first + cases):
        sick = i % 2 == 0
        x, lesion = phantom(i, sick=sick)
        for k, channel in enumerate(channels):
            save(folder / f"sub-{i:02d}_{channel}.nii", x if k == 0 else 300 * (x > 0) - x)
        if labels:
            save(folder / f"sub-{i:02d}_label.nii", lesion)
        rows.append(f"sub-{i:02d}\t{20 + i}\t{'sick' if sick else 'healthy'}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


CASES = {
    "plain": {"cases": 16},
    "labelled": {"cases": 24, "labels": True},
    "two": {"cases": 16, "channels": ("FLAIR", "T2w")},
    "new": {"cases": 1, "first": 90},
    "new-two": {"cases": 1, "first": 90, "channels": ("FLAIR", "T2w")},
    "test": {"cases": 3, "first": 90},
    "truth": {"cases": 3, "first": 90, "labels": True},
}

# ---- calls ----------------------------------------------------------------------------------------


class Refused(Exception):  # noqa: N818
    """The one line of a command that failed."""


def call(words: Sequence[object], work: Path) -> None:
    """Runs a command of the program in this process.

    Raises:
        Refused: it failed; its line, without the name of the folder
    """
    sys.argv = ["volumediff", *map(str, words)]
    said, complained = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            main()
    except SystemExit as stop:
        code = stop.code
    except Exception as error:  # noqa: BLE001 - a fault of the program is a record, too
        traceback.print_exc()
        raise Refused(_line(f"{type(error).__name__}: {error}", work)) from None
    if code:
        lines = complained.getvalue().strip().splitlines() or [f"exit code {code}"]
        errors = [line for line in lines if "error" in line] or lines
        raise Refused(_line(f"{code}: {errors[-1]}", work))


def _line(text: str, work: Path) -> str:
    return " ".join(text.replace(str(work), "WORK").split())


class Bench:
    """The tiny runs and cases of one record, made when they are asked for."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.failed: dict[str, Refused] = {}
        self.done: set[str] = set()

    def cases(self, name: str) -> Path:
        return write_cases(self.work / "cases" / name, **CASES[name])

    def trained(self, name: str) -> Path:
        """The folder of a run of RUNS, or of a shipped configuration with `/` in its name."""
        if name in self.failed:
            raise self.failed[name]
        run = RUNS[name] if name in RUNS else shipped_run(name)
        out = self.work / "runs" / name.replace("/", "-")
        if name not in self.done:
            try:
                lent = [f"{word}={self.trained(other)}" for word, other in run.lent.items()]
                words = [*small(run.config), *self.data_words(run), *run.words, *lent]
                call(train_words(run.config, out, words), self.work)
            except Refused as refused:
                self.failed[name] = refused
                raise
            self.done.add(name)
        return out

    def data_words(self, run: Run) -> list[str]:
        if run.data is None:
            return []
        split = "data.split={validation: 0.2, calibration: 0.4}"
        words = [split, f"data.cache={self.work / 'cache'}", "data.workers=0"]
        side = f"data.preprocessing.shape={[small_side(run.config)] * 3}"
        if run.data == "population":
            spacing = EXTENT_MM / small_side(run.config)
            words += ["data.root=population", "data.population.subjects=10", side]
            return [*words, f"data.preprocessing.spacing_mm={spacing:g}"]
        words += [f"data.root={self.cases(run.data)}", side, "memory.dtype=float32"]
        return [*words, f"data.preprocessing.spacing_mm={SPACING_MM:g}"]

    def train(self, name: str) -> Any:
        """Hashes and figures of a run."""
        weights, journal = files_of_run(self.trained(name))
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        return {n: hash_of_tensors(p) for n, p in weights.items()} | {"journal": kept}

    def localize(self, name: str, call_of: Method) -> Any:
        out, words = self.localized(name, call_of)
        del words
        found = {"volumes": hashes_of_volumes(out), "figures": figures_of_map(out)}
        shutil.rmtree(out)
        return found

    def localized(self, name: str, method: Method, to: str = "out") -> tuple[Path, list[str]]:
        out = self.work / to
        shutil.rmtree(out, ignore_errors=True)
        run = self.trained(method.run)
        lent = [f"{word}={self.trained(other)}" for word, other in method.lent.items()]
        words = [*quick(METHODS / f"{name}.yaml"), *method.words, *lent]
        classifier = None if method.classifier is None else self.trained(method.classifier)
        region = None
        if method.region:
            region = self.cases("truth") / "sub-90_label.nii"
        inputs = self.cases(method.inputs)
        said = localize_words(run, inputs, out, name, words, classifier, region)
        call(said, self.work)
        return out, said

    def segment(self) -> Any:
        out = self.work / "segmented"
        shutil.rmtree(out, ignore_errors=True)
        words = ("samples=2", "sampler.steps=3")
        call(segment_words(self.trained("labels"), self.cases("new"), out, words), self.work)
        return {"volumes": hashes_of_volumes(out)}

    def sample(self, run: str) -> Any:
        out = self.work / "samples"
        shutil.rmtree(out, ignore_errors=True)
        call(sample_words(self.trained(run), out), self.work)
        return {"volumes": hashes_of_volumes(out)}

    def evaluate(self) -> Any:
        out, _ = self.localized("scan", Method(inputs="test"), to="evaluated")
        call(evaluate_words(out, self.cases("truth")), self.work)
        return numbers(json.loads((out / "evaluation.json").read_text()))


# ---- words from configurations --------------------------------------------------------------------


def config_of(name: str) -> tuple[str, dict[str, Any]]:
    """The folder and the tree of a shipped configuration of a run."""
    (path,) = [p for f in FOLDERS for p in CONFIGS.glob(f"{f}/{name}.yaml")]
    return path.parent.name, yaml.safe_load(path.read_text())


def small_side(name: str) -> int:
    return SIDE[config_of(name)[1]["data"]["preprocessing"]["shape"][0]]


def small(name: str) -> list[str]:
    """Words that make a configuration small and short, levels and kinds of layers left."""
    _, tree = config_of(name)
    words = ["optim.steps=3", "optim.warmup=1", "optim.ema=0.5", "save_every=3"]
    words += ["validation.every=3", "validation.volumes=2"]
    if tree["validation"]["previews"]:
        words.append("validation.previews=1")
        words += ["validation.preview_steps=2"] * ("preview_steps" in tree["validation"])
    if tree["validation"].get("best"):
        words.append("validation.best.volumes=2")
    for part in ("network", "autoencoder", "classifier", "comparer"):
        section = tree.get(part) or {}
        if "widths" in section:
            words.append(f"{part}.widths={[4] + [8] * (len(section['widths']) - 1)}")
        if section and (part == "network" or "groups" in section):
            words.append(f"{part}.groups=2")
        words += [f"{part}.{k}={v}" for k, v in SMALL.items() if k in section]
    if tree["crop"]:
        full = tree["data"]["preprocessing"]["shape"][0]
        words.append(f"crop={[n * small_side(name) // full for n in tree['crop']]}")
    return words


def quick(path: Path) -> list[str]:
    """Words that make a method short."""

    def walk(tree: dict[str, Any], place: str) -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{place}{key}.")
            elif key in QUICK and isinstance(value, int) and value > QUICK[key]:
                yield f"{place}{key}={QUICK[key]}"

    return list(walk(yaml.safe_load(path.read_text()), ""))


def shipped_run(name: str) -> Run:
    """FOLDER/CONFIG as a run on the population, built on other ones where it has to be."""
    config = name.partition("/")[2]
    _, tree = config_of(config)
    space, autoencoder = tree.get("space"), tree.get("autoencoder")
    if isinstance(space, dict) and "autoencoder" in space:
        other = Path(space["autoencoder"]).name
        return Run(config, (), {"space.autoencoder": f"autoencoders/{other}"}, "population")
    if autoencoder and "autoencoder" in autoencoder:
        other = Path(autoencoder["autoencoder"]).name
        return Run(config, (), {"autoencoder.autoencoder": f"autoencoders/{other}"}, "population")
    if "comparer" in tree:
        return Run(config, (), {"comparer.of": "pipelines/wavelet_64"}, None)
    if "classifier" in tree:  # simulated subjects have no classes
        return RUNS["classifier"]
    return Run(config, (), {}, "population")


# ---- hashes ---------------------------------------------------------------------------------------


def digest(*parts: bytes) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()


def hash_of_tensors(path: Path) -> str:
    """Of sorted names, types, shapes and numbers of a safetensors file."""
    tensors = load_file(path)
    parts: list[bytes] = []
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()]
        parts += [tensor.reshape(-1).view(torch.uint8).numpy().tobytes()]
    return digest(*parts)


def hashes_of_volumes(folder: Path) -> dict[str, str]:
    """name -> type, shape and numbers of every NIfTI file, as they are stored."""
    found = {}
    for path in sorted(folder.rglob("*.nii*")):
        array = np.ascontiguousarray(nib.load(path).dataobj.get_unscaled())
        about = f"{array.dtype.newbyteorder('=')} {array.shape}".encode()
        found[str(path.relative_to(folder))] = digest(about, array.tobytes())
    return found


def numbers(tree: Any) -> Any:
    """Numbers, truths and nulls of a tree, and texts without folders and times."""
    if isinstance(tree, dict):
        return {k: numbers(v) for k, v in tree.items() if k not in ("seconds", "version")}
    if isinstance(tree, list):
        return [numbers(v) for v in tree]
    return Path(tree).name if isinstance(tree, str) and os.sep in tree else tree


# ---- the record -----------------------------------------------------------------------------------


def entries(bench: Bench, parts: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    if "train" in parts:
        for folder in FOLDERS:
            for path in sorted(CONFIGS.glob(f"{folder}/*.yaml")):
                name = f"{folder}/{path.stem}"
                yield f"train/{name}", partial(bench.train, name)
    if "localize" in parts:
        for name in RUNS:
            yield f"run/{name}", partial(bench.train, name)
        for path in sorted(METHODS.glob("*.yaml")):
            method = METHOD.get(path.stem, Method())
            yield f"localize/{path.stem}", partial(bench.localize, path.stem, method)
        for run, names in ALSO.items():
            for name in names:
                other = METHOD.get(name, Method())
                method = Method(run, other.words, other.lent, other.classifier, other.region)
                yield f"localize/{name}@{run}", partial(bench.localize, name, method)
        yield "segment", bench.segment
        for run in ("wavelet", "patch", "pseudo3d", "latent"):
            yield f"sample/{run}", partial(bench.sample, run)
        yield "evaluate", bench.evaluate


def about() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def record(out: Path, parts: Sequence[str], only: Sequence[str]) -> None:
    """Goes through all entries that OUT has not yet."""
    known: dict[str, Any] = {"about": about(), "entries": {}, "seconds": {}}
    if out.is_file():
        known = json.loads(out.read_text())
    bench = Bench(out.resolve().with_suffix(".work"))
    bench.work.mkdir(parents=True, exist_ok=True)
    for name, compute in entries(bench, parts):
        if name in known["entries"] or (only and not any(word in name for word in only)):
            continue
        start = time.perf_counter()
        try:
            value = compute()
        except Refused as refused:
            value = str(refused)
        known["entries"][name] = value
        known["seconds"][name] = round(time.perf_counter() - start, 2)
        fresh = out.with_suffix(".part")
        fresh.write_text(json.dumps(known, indent=1))
        fresh.replace(out)
        print(f"{name}  {known['seconds'][name]} s  {value if isinstance(value, str) else ''}")


def leaves(tree: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every leaf with its place; numbers as JSON writes them, so that NaN equals NaN."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{place}: {key}")
    elif isinstance(tree, list) and tree:
        for i, value in enumerate(tree):
            yield from leaves(value, f"{place}: {i}")
    else:
        yield place, json.dumps(tree)


def compare(first: Path, second: Path) -> int:
    """Prints what differs, and gives the number of lines."""
    a, b = (json.loads(path.read_text()) for path in (first, second))
    if a["about"] != b["about"]:
        print(f"not alike: {a['about']} and {b['about']}")
    differences = 0
    for name in [*a["entries"], *(n for n in b["entries"] if n not in a["entries"])]:
        sides = [
            dict(leaves(t["entries"][name], name)) if name in t["entries"] else None
            for t in (a, b)
        ]
        if None in sides:
            print(f"{name}: missing in {first if sides[0] is None else second}")
            differences += 1
            continue
        one, other = sides
        for place in [*one, *(p for p in other if p not in one)]:
            if one.get(place) != other.get(place):
                print(f"{place}: {one.get(place, 'missing')} and {other.get(place, 'missing')}")
                differences += 1
    print(f"{len(a['entries'])} and {len(b['entries'])} entries, {differences} differences")
    return differences


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the record; goes on from what it holds")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of entries")
    parser.add_argument("--part", choices=("train", "localize"), help="both by default")
    parser.add_argument("--compare", type=Path, nargs=2, help="two records")
    words = parser.parse_args()
    if (words.out is None) == (words.compare is None):
        parser.error("expected either --out or --compare")
    if words.compare:
        raise SystemExit(1 if compare(*words.compare) else 0)
    torch.set_num_threads(1)
    record(words.out, [words.part] if words.part else ["train", "localize"], words.only)


if __name__ == "__main__":
    run()
