"""Segmented cases prepared for a report: truth, label maps of the methods, and their samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from volumediff.colours import UNCERTAIN
from volumediff.data.volume import check_grids, read
from volumediff.evaluation.output_folders import segmentations_in
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.truths import Truth
from volumediff.outputs.case_files import CaseFiles
from volumediff.outputs.segmentation_files import (
    ENTROPY,
    files_beside,
    probabilities_of,
    samples_of,
)
from volumediff.reporting.scene import OutlinedMask, Scene, ScoreMap
from volumediff.reporting.views import start_of

__all__ = ["LabelView", "disagreement", "label_views"]

LabelMap = UInt8[np.ndarray, "d h w"]
SHOWN_SAMPLES = 8
ENTROPY_NAME = "entropy"
TRUTH_EDGE = "#ffffff"


@dataclass(frozen=True, eq=False)
class LabelView:
    """One segmented case to look at, all arrays on one grid with axes along R, A, S.

    Arguments:
        title: of the case
        note: one line beside it
        image: intensities
        truth: label values; of several readers, what most of them say
        found: label values of every method, by name; the first is the one in question
        maps: probabilities and entropy of the first method that has them, by name
        samples: caption -> label map of a reader or a sample, to stand side by side
        label_names: label value -> what it is
        spacing_mm: voxel size
        affine: voxel index to RAS millimetres
        files: name -> file that the page links to
    """

    title: str
    note: str
    image: Float[np.ndarray, "d h w"]
    truth: LabelMap
    found: Mapping[str, LabelMap]
    maps: Mapping[str, Float[np.ndarray, "d h w"]] = field(default_factory=dict)
    samples: Mapping[str, LabelMap] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    affine: Float[np.ndarray, "4 4"] | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def start(self) -> tuple[int, int, int]:
        """The voxel to look at first: where the smallest label is thickest."""
        sizes = {int(v): int((self.truth == v).sum()) for v in np.unique(self.truth) if v}
        if not sizes:
            first = next(iter(self.found.values()), self.truth)
            return start_of(first > 0, self.image, self.spacing_mm)
        rarest = min(sizes, key=lambda v: sizes[v])
        return start_of(self.truth == rarest, self.image, self.spacing_mm)

    def scene(self) -> Scene:
        """The same for the viewer of its page: filled labels, the edge of the truth, maps."""
        maps = {
            name: ScoreMap(array, "nats" if name == ENTROPY_NAME else "probability")
            for name, array in self.maps.items()
        }
        if len(self.samples) > 1:
            shares = disagreement([*self.samples.values()])
            maps["disagreement of the samples"] = ScoreMap(shares, "share", UNCERTAIN)
        return Scene(
            title=self.title,
            images={"image": self.image},
            maps=maps,
            outlines={
                "truth": OutlinedMask(self.truth, TRUTH_EDGE, "inside a label of the truth")
            },
            labels={**self.found, "truth": self.truth, **self.samples},
            label_names=self.label_names,
            spacing_mm=self.spacing_mm,
            affine=self.affine,
            start=self.start(),
            note=self.note,
        )


def disagreement(samples: Sequence[LabelMap]) -> Float[np.ndarray, "d h w"]:
    """Share of the samples, at each voxel, without the label that most of them have there."""
    stacked = np.stack(samples)
    most = np.zeros(stacked.shape[1:], np.int32)
    for value in np.unique(stacked):
        np.maximum(most, (stacked == value).sum(axis=0, dtype=np.int32), out=most)
    return (1 - most / len(samples)).astype(np.float32)


def label_views(
    results: Sequence[SegmentationEvaluation], truths: Mapping[str, Truth], cases: Sequence[str]
) -> Iterator[LabelView]:
    """Views of cases, read one after another from the folders; cases without an image are left
    out."""
    paths = {r.method: segmentations_in(r.folder, truths) for r in results}
    known = {r.method: {c.case: c for c in r.cases} for r in results}
    for case in cases:
        truth = truths.get(case)
        if truth is None or truth.image is None:
            continue
        image = read(truth.image, policy=truth.policy)
        there = truth.label_maps(image)
        found, maps, samples, numbers = {}, {}, {}, []
        outputs = {"image": truth.image}
        if there.readers is not None:
            samples = {f"reader {i}": m for i, m in enumerate(there.readers, start=1)}
        readers = len(samples)
        for method, files in paths.items():
            volume = read(files[case], kind="label")
            check_grids(image, volume)
            found[method] = volume.array[0].astype(np.uint8)
            outputs[f"labels, {method}"] = files[case]
            beside = files_beside(files[case])
            maps = maps or _maps(beside)
            if len(samples) == readers:
                drawn = samples_of(beside)[:SHOWN_SAMPLES]
                samples |= {
                    f"{method}, sample {i}": read(p, kind="label").array[0].astype(np.uint8)
                    for i, p in enumerate(drawn, start=1)
                }
            rows = known[method][case].agreement
            dice = [f"{row['dice']:.3f}" for row in rows.values() if np.isfinite(row["dice"])]
            numbers.append(f"{method} {', '.join(dice) or 'nothing to find'}")
        yield LabelView(
            title=case,
            note=f"Dice: {'; '.join(numbers)}",
            image=image.array[0],
            truth=there.consensus,
            found=found,
            maps=maps,
            samples=samples,
            label_names=results[0].names,
            spacing_mm=image.spacing_mm,
            affine=image.affine,
            files=outputs,
        )


def _maps(files: CaseFiles) -> dict[str, np.ndarray]:
    found = {f"probability of {v}": p for v, p in probabilities_of(files).items() if v}
    entropy = files.path(ENTROPY)
    found |= {ENTROPY_NAME: entropy} if entropy.is_file() else {}
    return {text: read(path).array[0] for text, path in found.items()}
