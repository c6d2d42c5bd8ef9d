"""The gallery of methods: one simulated case, every localization method's map, cost and AP.

    python benchmarks/gallery.py --work WORK --docs volumediff/docs

Trains the run of `volumediff demo --train` in WORK if it is not there, draws one subject with one
lesion that neither it nor the shipped model has seen, localizes it by every method that one of the
two serves, and writes `examples/gallery.md` and `images/gallery/METHOD.webp`. Methods that are
measured already are not measured again: the same command goes on where it was stopped. Figures of
segmentation methods are those of `benchmarks/README.md`.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_erosion

from volumediff import config
from volumediff.anomaly.baselines import Baseline
from volumediff.anomaly.detectors import Detector
from volumediff.anomaly.fitted._base import Fitted
from volumediff.anomaly.fitted.atlas_deformed import AtlasDeformed
from volumediff.anomaly.fitted.atlas_z import AtlasZ
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.methods.fusion import Fusion
from volumediff.anomaly.methods.rebuilder import Rebuilder
from volumediff.api.loading import load
from volumediff.api.results import LocalizationResult
from volumediff.api.run import Run
from volumediff.commands._demo import Test, load_demo, write_test
from volumediff.config.listing import summary
from volumediff.config.shipped_models import DEFAULT
from volumediff.data.population import Population
from volumediff.documentation.method_matrix import needs_of
from volumediff.errors import DataError, UsageError
from volumediff.metrics import detection
from volumediff.settings.run_config import parse
from volumediff.storage.atomic import atomic
from volumediff.training.loop import train

# Far from the training subjects of the demo; a lesion that is easy to see.
CASE = Test(subjects=1, first=10_000, kinds=("cavity",))
SUBJECT = f"sub-{CASE.first}_{CASE.kinds[0]}"
SHAPE, SPACING_MM = (51, 61, 51), (3.0, 3.0, 3.0)
CALIBRATION_VOLUMES = 8
ENLARGED = 3  # pixels of a picture for each voxel
FAMILIES = (
    "Simple baselines",
    "Diffusion models of healthy volumes",
    "Guided by the labels of volumes",
    "Trained on synthetic anomalies",
    "Autoencoders",
    "Features of a network",
    "Several methods at once",
)

HEAD = """# Gallery of methods

One simulated subject with one lesion, seen by every method that can run on the model that ships
or on the run of `volumediff demo --train`. **One simulated case says nothing about patients, and
little about which method is better**: the subject is a deformed template, the lesion a hole that
is easy to see, and the runs are small. Read it for what the maps look like and for what they cost.
`benchmarks/README.md` of the repository compares methods on more than one case.

![The subject's slice, with the outline of the lesion](../images/gallery/case.webp)

Slices are axial, with the patient's right on the right. Each map is scaled to its own highest
values. AP is the average precision over the voxels of this case; `prevalence`, the same value
everywhere, has the AP of chance. Calls are evaluations of the network. CPU seconds are those of
localizing this volume of 51 × 61 × 51 voxels on one core of a shared machine, without what a
method fits once for a run.

The page is made by one command:

<!-- not run: it trains the run of the demo and takes the better part of an hour -->
```sh
python benchmarks/gallery.py --work WORK --docs volumediff/docs
```"""


@dataclass(frozen=True)
class Measured:
    """A method on the case: on which run, or why on none; a cost without calibration."""

    method: str
    run: str | None
    refusal: str = ""
    ap: float = float("nan")
    calls: int = 0
    cpu_seconds: float = float("nan")


def family(method: Method) -> str:
    """The heading below which a method stands."""
    baselines, diffusion, guided, synthetic, autoencoders, features, several = FAMILIES
    match method:
        case Baseline() | AtlasZ() | AtlasDeformed():
            return baselines
        case Fusion():
            return several
        case Rebuilder():
            return autoencoders
        case Fitted():
            return features
        case Detector():
            return synthetic
        case _:
            return {"weak": guided, "self": synthetic}.get(method.supervision, diffusion)


def told(kind: str, name: str) -> str:
    """A method's name, as a link to its reference, and what it does."""
    page = {"anomaly": "localization", "segmentation": "segmentation"}[kind]
    what = summary(config.head(config.config_path(kind, name)))
    return f"[{name}](../reference/{page}-methods.md#{name}): {what}"


def runs(work: Path) -> dict[str, Run]:
    """The demo's own run, trained if it is not there, and the shipped model."""
    folder = work / "run"
    demo = load_demo()
    train(parse({**demo.run, "output": str(folder)}, where="demo.run"))
    return {"demo": load(folder, which=demo.which), DEFAULT: load(DEFAULT)}


def localized(run: Run, name: str, case: Path) -> tuple[LocalizationResult, float]:
    """The result and its CPU seconds, without what is fitted once for a run.

    The map needs no threshold here, which would take a calibration of every method.
    """
    while True:
        fitted: list[str] = []
        began = time.process_time()
        found = run.localize(
            case,
            method=name,
            overrides=["threshold=best"],
            calibration_volumes=CALIBRATION_VOLUMES,
            limits=False,
            trace=False,
            report=fitted.append,
        )
        if not fitted:
            return found, time.process_time() - began


def measured(name: str, served: dict[str, Run], folder: Path, picture: Path) -> Measured:
    """Localizes by a method on the first run that serves it; its picture is written."""
    case, truth = folder / f"{SUBJECT}_T1w.nii.gz", folder / f"{SUBJECT}_mask.nii.gz"
    refusals = []
    for run_name, run in served.items():
        try:
            found, seconds = localized(run, name, case)
        except (UsageError, DataError) as error:
            refusals.append(str(error))
            continue
        lesion = np.asarray(nib.load(truth).dataobj) > 0
        h = detection.histogram(
            torch.from_numpy(found.map),
            torch.from_numpy(lesion),
            foreground=torch.from_numpy(found.foreground),
        )
        draw(picture, np.asarray(nib.load(case).dataobj), found.map, lesion)
        return Measured(
            name,
            run_name,
            ap=detection.average_precision(h),
            calls=found.localized.cost.network_calls,
            cpu_seconds=seconds,
        )
    return Measured(name, None, refusal=refusals[0])


def draw(path: Path, image: np.ndarray, found: np.ndarray | None, lesion: np.ndarray) -> None:
    """The axial slice with most of the lesion; its outline; the map as heat, from 0 to its top."""
    k = int(lesion.sum((0, 1)).argmax())
    grey = image[:, :, k] / max(float(image.max()), 1e-9)
    pixels = np.repeat(grey[..., None], 3, -1)
    if found is not None:
        top = max(float(np.quantile(found[image > 0], 0.999)), 1e-9)
        share = np.clip(found[:, :, k] / top, 0, 1)
        heat = colormaps["inferno"](share)[..., :3]
        pixels = 0.4 * pixels + np.where((share > 0)[..., None], 0.85 * heat, 0)
    pixels, wide = (_enlarged(each) for each in (np.clip(pixels, 0, 1), lesion[:, :, k]))
    pixels[wide & ~binary_erosion(wide)] = (0.3, 0.9, 1.0)
    upright = np.rot90((pixels * 255).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(upright).save(path, quality=70, method=6)


def _enlarged(a: np.ndarray) -> np.ndarray:
    return a.repeat(ENLARGED, 0).repeat(ENLARGED, 1)


def page(results: dict[str, Measured]) -> str:
    """The gallery as Markdown."""
    lines = [HEAD]
    for heading in FAMILIES:
        members = [m for m in results.values() if family(read_method(m.method)) == heading]
        shown = sorted((m for m in members if m.run), key=lambda m: m.method)
        missing = sorted((m for m in members if not m.run), key=lambda m: m.method)
        lines += ["", f"## {heading}"]
        if shown:
            lines += ["", "| map | method | AP | calls | CPU s |", "|---|---|---|---|---|"]
        for m in shown:
            said = told("anomaly", m.method)
            if m.run == DEFAULT:
                said += f" By the shipped model `{DEFAULT}`."
            lines.append(
                f"| ![Map of {m.method}](../images/gallery/{m.method}.webp) | {said} "
                f"| {m.ap:.3f} | {m.calls} | {m.cpu_seconds:.1f} |"
            )
        if missing:
            lines += ["", "Not shown, since neither run serves them:", ""]
        lines += [f"- {told('anomaly', m.method)} {wanted(m)}" for m in missing]
    left = [name for name in config.shipped("anomaly") if name not in results]
    if left:
        lines += ["", "## Not measured yet", ""]
        lines += ["What these fit once for a run, or their chains, take minutes.", ""]
        lines += [f"- {told('anomaly', name)}" for name in left]
    return "\n".join([*lines, "", *segmentation()]) + "\n"


def segmentation() -> list[str]:
    """Every segmentation method with its sentence, and its figures where it was measured."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    section = text.partition("#### Hippocampus of mice")[2].partition("####")[0]
    figures: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            shown, seconds, _, calls, *dice = [c.strip(" *") for c in line.strip("|").split("|")]
            name, how = shown.split("`", 2)[1:]
            if name not in figures or "losses=" in figures[name][0]:  # as shipped, if it is there
                figures[name] = [how.strip(", "), seconds, calls, ", ".join(dice[:2])]
    lines = [
        "## Segmentation methods",
        "",
        "Figures are those of `benchmarks/README.md`, for crops of the hippocampus of mice: CPU",
        "seconds of training, calls of the network for one volume, Dice of hippocampus and of",
        "fimbria. Methods without figures were not measured on these volumes.",
        "",
        "| method | as measured | CPU s | calls | Dice |",
        "|---|---|---|---|---|",
    ]
    for name in config.shipped("segmentation"):
        cells = figures.get(name, ["", "–", "–", "–"])
        lines.append(f"| {told('segmentation', name)} | {' | '.join(cells)} |")
    return lines


def wanted(m: Measured) -> str:
    """The run that a method needs."""
    needs = needs_of(read_method(m.method))
    if needs:
        return f"It needs {', '.join(f'`{need}`' for need in needs)}."
    return f"It needs {m.refusal.partition('expected ')[2].partition(', got')[0]}."


def main() -> None:
    """Measures what is not measured yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="methods to measure now; all if left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    served = runs(args.work)
    folder = args.work / "case"
    write_test(CASE, Population(1, SHAPE, SPACING_MM), folder)
    pictures = args.docs / "images" / "gallery"
    image, lesion = (
        np.asarray(nib.load(folder / f"{SUBJECT}_{kind}.nii.gz").dataobj)
        for kind in ("T1w", "mask")
    )
    draw(pictures / "case.webp", image, None, lesion > 0)
    kept = args.work / "measured.json"
    found = json.loads(kept.read_text()) if kept.is_file() else []
    results = {each["method"]: Measured(**each) for each in found}
    for name in args.only or config.shipped("anomaly"):
        if name not in results:
            results[name] = measured(name, served, folder, pictures / f"{name}.webp")
            print(results[name], flush=True)
            with atomic(kept) as file:
                file.write(json.dumps([asdict(r) for r in results.values()], indent=1).encode())
    order = {name: results[name] for name in config.shipped("anomaly") if name in results}
    (args.docs / "examples" / "gallery.md").write_text(page(order), encoding="utf-8")


if __name__ == "__main__":
    main()
