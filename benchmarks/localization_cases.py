"""Test volumes of the localization benchmark: synthetic anomalies, real shapes, real lesions.

synthetic   every kind of anomaly in every held-out healthy subject, shapes of the test family
sizes       hyper and hypo of given contrast and size in held-out subjects (pitfalls of residuals)
stroke, ms  masks of real lesions, without their images, put into held-out healthy subjects
glioma, ms-real   patients with their own lesions
healthy     the held-out subjects as they are, for false alarms and scores
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import avg_pool3d

from volumediff.anomaly.method_input import Example
from volumediff.data.anomalies import KINDS, TEST, insert
from volumediff.data.cases import Case
from volumediff.randomness import key, uniform
from volumediff.runs.trained import Trained

__all__ = ["CONTRASTS", "SIZES_ML", "Item", "coarsened", "items"]

CONTRASTS = (-0.6, -0.3, -0.15, 0.15, 0.3, 0.6)  # of intensities in [-1, 1]
SIZES_ML = (1.0, 4.0, 16.0)
# Real shapes: dark in T1w, as old strokes and MS lesions are; every third is a hole or a texture.
LOOKS = {"stroke": ("hypo", "cavity", "texture"), "ms": ("hypo", "hypo", "texture")}
Held = Sequence[Case]
Whole = Callable[[int], Example]
PATIENTS = {
    "glioma": {"glioma_DU7294": "glioma_DU7294", "glioma_FG6692": "glioma_FG6692"},
    "ms-real": {"ms_p07": "ms_p07"},
}
RANGE_ML = {"stroke": (2.0, 80.0), "ms": (1.0, 40.0)}


@dataclass(frozen=True, eq=False)
class Item:
    """One test volume.

    Arguments:
        suite: group of test volumes
        name: of the volume, unique in its suite
        patient: whose volume it is; intervals are over patients
        kind: of the lesion
        example: the volume, with its truth
        contrast, volume_ml: of the suite `sizes`
    """

    suite: str
    name: str
    patient: str
    kind: str
    example: Example
    contrast: float | None = None
    volume_ml: float | None = None


def items(trained: Trained, data: Path, suites: tuple[str, ...], *, seed: int) -> Iterator[Item]:
    """The volumes of the suites, as the run preprocesses them.

    Arguments:
        data: folder with `pathology` and `lesion_masks`
        seed: of shapes, places and strengths; the same volumes for every run of one grid
    """
    held = trained.cases("test")
    whole = cache(lambda i: trained.example(held[i]))
    makers = {
        "healthy": lambda: _healthy(held, whole),
        "synthetic": lambda: _synthetic(held, whole, seed),
        "sizes": lambda: _sizes(held, whole, seed),
        "stroke": lambda: _shapes(trained, data, "stroke", held, whole, seed),
        "ms": lambda: _shapes(trained, data, "ms", held, whole, seed),
        "glioma": lambda: _patients(trained, data, "glioma"),
        "ms-real": lambda: _patients(trained, data, "ms-real"),
    }
    for suite in suites:
        yield from makers[suite]()


def coarsened(example: Example, trained: Trained, *, factor: int) -> Example:
    """The volume as a run of a coarser grid sees it: means of `factor`³ voxels."""
    inside = avg_pool3d(example.foreground.float(), factor) >= 0.5
    x = torch.where(inside, avg_pool3d(example.x, factor), -1.0)
    d, h, w = (factor * mm for mm in example.spacing_mm)
    return Example(x, inside, (d, h, w), trained.condition({}))


def _healthy(held: Held, whole: Whole) -> Iterator[Item]:
    for i, case in enumerate(held):
        example = whole(i)
        yield Item("healthy", case.id, case.patient, "none", _with(example, example.x, None))


def _synthetic(held: Held, whole: Whole, seed: int) -> Iterator[Item]:
    for i, case in enumerate(held):
        for kind in KINDS:
            example = whole(i)
            donor = whole((i + 1) % len(held))
            x, truth = _inserted(example, kind, key(seed, case.id, kind), donor=donor.x[0].cpu())
            name = f"{case.id}-{kind}"
            yield Item("synthetic", name, case.patient, kind, _with(example, x, truth))


def _sizes(held: Held, whole: Whole, seed: int) -> Iterator[Item]:
    for i, case in enumerate(held[:3]):
        for contrast in CONTRASTS:
            for size in SIZES_ML:
                family = replace(TEST, contrast=(abs(contrast),) * 2, volume_ml=(size, size))
                kind = "hyper" if contrast > 0 else "hypo"
                example = whole(i)
                x, truth = _inserted(example, kind, key(seed, case.id, size), family=family)
                name = f"{case.id}-{contrast:+g}-{size:g}ml"
                made = _with(example, x, truth)
                yield Item("sizes", name, case.patient, kind, made, contrast, size)


def _shapes(
    trained: Trained, data: Path, source: str, held: Held, whole: Whole, seed: int
) -> Iterator[Item]:
    """Two masks of real lesions in every held-out subject."""
    low, high = RANGE_ML[source]
    table = (data / "lesion_masks" / "volumes.tsv").read_text().splitlines()[1:]
    sized = [(name, float(ml)) for name, ml in (line.split("\t") for line in table)]
    masks = [n for n, ml in sized if n.startswith(source) and low <= ml <= high]
    order = sorted(masks, key=lambda n: uniform(seed, "shape", n))
    for j, name in enumerate(order[: 2 * len(held)]):
        i, look = j % len(held), LOOKS[source][j % 3]
        case = held[i]
        marked = Case(case.id, case.patient, case.images, data / "lesion_masks" / name)
        prepared = trained.preprocessing.prepare(marked)
        shape = prepared.label > 0
        example = whole(i)
        if int((shape & example.foreground[0].cpu()).sum()) < 8:
            continue  # nothing of it is left at this resolution
        x, truth = _inserted(example, look, key(seed, case.id, name), shape=shape)
        if bool(truth.any()):
            made = _with(example, x, truth)
            yield Item(source, f"{case.id}-{name.split('_mask')[0]}", case.patient, look, made)


def _patients(trained: Trained, data: Path, suite: str) -> Iterator[Item]:
    for name, stem in PATIENTS[suite].items():
        folder = data / "pathology"
        images = {"T1w": folder / f"{stem}_T1w.nii.gz"}
        case = Case(name, name, images, folder / f"{stem}_mask.nii.gz")
        yield Item(suite, name, name, suite, trained.example(case))


def _inserted(
    example: Example, kind: str, lesion: int, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return insert(
        example.x[0].cpu(),
        example.foreground[0].cpu(),
        kind=kind,
        key=lesion,
        spacing_mm=example.spacing_mm,
        **options,
    )


def _with(example: Example, x: torch.Tensor, truth: torch.Tensor | None) -> Example:
    volume = x if x.dim() == 5 else x[None]
    mask = None if truth is None else truth[None].to(example.x.device)
    return replace(example, x=volume.to(example.x), truth=mask)
