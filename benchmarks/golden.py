"""A golden record: what every shipped configuration and every localization method computes.

    python benchmarks/golden.py --out before.json
    python benchmarks/golden.py --out after.json --only pseudo3d thor --part localize
    python benchmarks/golden.py --compare before.json after.json

For refactorings that must not change a bit. `train` takes every shipped configuration through
three steps, a validation and a checkpoint at a small size, and records SHA-256 of the weights and
of their average beside every figure of the journal. `localize` trains tiny runs of every kind that
a method may need, and records SHA-256 of the voxels of every volume that each method writes, with
its score, thresholds and findings; the same for other words, samplers and memory policies than the
shipped ones; and segmentation, samples, an evaluation and a search. Where a command refuses, its
line is the record. Hashes are of names, types, shapes and numbers, not of files.

FILE.json is written after every entry, and the same command goes on from it. What was trained lies
in the folder FILE.work beside it, which may be deleted afterwards. Numbers are those of one
machine, one release of torch and one thread: `about` says which.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import nibabel as nib
import numpy as np
import torch
from golden_cases import CASES, SPACING_MM, write_cases
from golden_runs import (
    ALSO,
    EXTENT_MM,
    FOLDERS,
    LONGER,
    METHOD,
    METHODS,
    OTHERS,
    RUNS,
    Method,
    Run,
    names_of,
    quick,
    shipped_run,
    small,
    small_side,
)
from safetensors.torch import load_file

from volumediff.cli import main

# --- all that is known of the program besides main: its commands, and what they write ------------

# Entry now -> its name in older records, where something was renamed since.
RECORDED_AS: dict[str, str] = {}


def train_words(config: str, out: Path, words: Sequence[str]) -> list[str]:
    return ["train", config, *words, f"output={out}"]


def localize_words(
    run: Path, inputs: Path, out: Path, method: str, words: Sequence[str], options: dict[str, Any]
) -> list[str]:
    """`options`: classifier, region, saliency (paths), memory and seed, where they are given."""
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    said = ["localize", str(inputs), "--run", str(run), "-o", str(out), "--method", method]
    return [*said, "--device", "cpu", *given, *words]


def segment_words(run: Path, inputs: Path, out: Path, words: Sequence[str]) -> list[str]:
    return ["segment", str(inputs), *words, "--run", str(run), "-o", str(out), "--device", "cpu"]


def sample_words(run: Path, out: Path) -> list[str]:
    options = ["-o", str(out), "-n", "2", "--device", "cpu"]
    return ["sample", "sampler.steps=3", "--run", str(run), *options]


def evaluate_words(maps: Path, truth: Path) -> list[str]:
    return ["evaluate", str(maps), "--truth", str(truth), "--replicates", "50"]


def tune_words(run: Path, method: str, words: Sequence[str]) -> list[str]:
    levels = ("--levels", "-1,0", "--volumes", "2")
    return [
        "tune",
        "--run",
        str(run),
        "--method",
        method,
        "--json",
        "--device",
        "cpu",
        *levels,
        *words,
    ]


def forget_calibrations(run: Path) -> None:
    """So that an entry does not depend on those before it."""
    shutil.rmtree(run / "calibration", ignore_errors=True)


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
        found[case]["findings"] = numbers(listed["findings"])
    return found


# --- calls ---------------------------------------------------------------------------------------


class Refused(Exception):
    """The one line of a command that failed."""


def call(words: Sequence[str], work: Path) -> str:
    """What a command of the program prints, in this process.

    Raises:
        Refused: it failed; its line, without the name of the folder
    """
    sys.argv = ["volumediff", *words]
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
        raise Refused(_line(f"{code}: {errors[-1].removeprefix('volumediff: error: ')}", work))
    return said.getvalue()


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
                words = [*small(run.config), *(LONGER if name in RUNS else ())]
                words += [*self.data_words(run), *run.words, *lent]
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

    def localize(self, name: str, method: Method) -> Any:
        out = self.localized(name, method)
        found = {"volumes": hashes_of_volumes(out), "figures": figures_of_map(out)}
        shutil.rmtree(out)
        return found

    def localized(self, name: str, method: Method, to: str = "out") -> Path:
        out = self.work / to
        shutil.rmtree(out, ignore_errors=True)
        run = self.trained(method.run)
        forget_calibrations(run)
        lent = [f"{word}={self.trained(other)}" for word, other in method.lent.items()]
        replaced = tuple(word.partition("=")[0] + "." for word in method.words)
        short = [w for w in quick(name) if not w.startswith(replaced)]
        words = [*short, *method.words, *lent]
        options = dict(method.options)
        for option in {"region", "saliency"} & {*options}:
            folder, _, file = options[option].partition("/")
            options[option] = self.cases(folder) / file
        if "classifier" in options:
            options["classifier"] = self.trained(options["classifier"])
        call(localize_words(run, self.cases(method.inputs), out, name, words, options), self.work)
        return out

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
        out = self.localized("scan", Method(inputs="test"), to="evaluated")
        call(evaluate_words(out, self.cases("truth")), self.work)
        return numbers(json.loads((out / "evaluation.json").read_text()))

    def tune(self) -> Any:
        run = self.work / "runs" / "tuned"  # a copy, since figures are kept in the run
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.trained("wavelet"), run)
        return numbers(json.loads(call(tune_words(run, "ddpm", ["sampler.steps=3"]), self.work)))


# --- hashes --------------------------------------------------------------------------------------


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


def hashes_of_volumes(folder: Path) -> dict[str, dict[str, Any]]:
    """name -> hash of type, shape and numbers of every NIfTI file, as they are stored, with their
    mean and largest, which say how different is different."""
    found = {}
    for path in sorted(folder.rglob("*.nii*")):
        array = np.ascontiguousarray(nib.load(path).dataobj.get_unscaled())
        about = f"{array.dtype.newbyteorder('=')} {array.shape}".encode()
        found[str(path.relative_to(folder))] = {
            "sha256": digest(about, array.tobytes()),
            "mean": float(array.mean(dtype=np.float64)),
            "largest": float(array.max()),
        }
    return found


def numbers(tree: Any) -> Any:
    """Numbers, truths and nulls of a tree, without durations and versions of formats; no texts."""
    if isinstance(tree, dict):
        kept = {k: v for k, v in tree.items() if k not in ("seconds", "version")}
        return {k: numbers(v) for k, v in kept.items() if not isinstance(v, str)}
    if isinstance(tree, list):
        return [numbers(v) for v in tree if not isinstance(v, str)]
    return tree


# --- the record ----------------------------------------------------------------------------------


def entries(bench: Bench, parts: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    if "train" in parts:
        for name in (f"{folder}/{n}" for folder in FOLDERS for n in names_of(folder)):
            yield f"train/{name}", partial(bench.train, name)
    if "localize" in parts:
        for name in RUNS:
            yield f"run/{name}", partial(bench.train, name)
        for name in names_of(METHODS):
            method = METHOD.get(name, Method())
            yield f"localize/{name}", partial(bench.localize, name, method)
        for run, names in ALSO.items():
            for name in names:
                other = METHOD.get(name, Method())
                method = replace(other, run=run)
                yield f"localize/{name}@{run}", partial(bench.localize, name, method)
        for name, method in OTHERS.items():
            yield f"localize/{name}", partial(bench.localize, name.partition("+")[0], method)
        yield "segment", bench.segment
        for run in ("wavelet", "patch", "pseudo3d", "latent"):
            yield f"sample/{run}", partial(bench.sample, run)
        yield "evaluate", bench.evaluate
        yield "tune", bench.tune


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
    for new, compute in entries(bench, parts):
        name = RECORDED_AS.get(new, new)
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
