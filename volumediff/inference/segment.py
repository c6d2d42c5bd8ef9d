"""Segmentation with a trained run: of one examination in memory, or file by file.

<case>_dseg.nii.gz                    most probable label at each voxel
<case>_label-<value>_probseg.nii.gz   probability of a label
<case>_label-<value>_desc-variance_map.nii.gz   variance of the samples
<case>_desc-entropy_map.nii.gz        entropy of the label, in nats
<case>_dseg.json                      method, weights, inputs, volume of every label
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import volumediff
from volumediff.data.cases import Case
from volumediff.errors import UsageError
from volumediff.inference.options import SegmentOptions
from volumediff.outputs.batch import Result, Summary, process
from volumediff.outputs.export import Writer, write_json
from volumediff.outputs.input_grid import InputGrid
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.inputs import Examination, examination_of, find_inputs, prepared
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.segmentation._base import Segmentation, Segmenter, load_segmenter

__all__ = ["Segmented", "Segmenting", "segment", "segmenting"]


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a method says about one examination.

    Arguments:
        examination: what was given
        found: on the prepared grid
        grid: of the input
        facts: what is recorded beside the labels
    """

    examination: Examination
    found: Segmentation
    grid: InputGrid
    facts: Mapping[str, Any]

    def volumes_ml(self, labels: np.ndarray) -> dict[str, float]:
        """Volume of every label in a label map on the grid of the input."""
        voxel_ml = abs(float(np.linalg.det(self.grid.record.native.affine[:3, :3]))) / 1000
        return {str(v): float((labels == v).sum()) * voxel_ml for v in self.found.values}

    def write(self, folder: Path) -> tuple[list[Path], dict[str, float]]:
        """Writes labels, probabilities and records; returns the files and the volumes in ml."""
        writer = Writer(folder, self.examination.id, self.grid)
        volumes = self.volumes_ml(writer.label("dseg", self.found.labels[0]))
        for i, value in enumerate(self.found.values):
            writer.image(f"label-{value}_probseg", self.found.probabilities[0, i : i + 1])
            if self.found.variance is not None:
                writer.image(f"label-{value}_desc-variance_map", self.found.variance[0, i : i + 1])
        writer.image("desc-entropy_map", self.found.entropy[0])
        sidecar = folder / f"{self.examination.id}_dseg.json"
        findings = [vars(f) for f in self.grid.record.findings]
        write_json(
            sidecar,
            {
                **self.facts,
                "volumes_ml": volumes,
                "preprocessing_findings": findings,
                "notice": "Research software, not for diagnosis.",
            },
        )
        return [*writer.files, sidecar], volumes


@dataclass(frozen=True, eq=False)
class Segmenting:
    """A settled segmentation: everything that the results of a call have in common."""

    trained: Trained
    segmenter: Segmenter
    options: SegmentOptions

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, beside the volume."""
        return {
            "task": "segment",
            "method": repr(self.segmenter),
            "weights": self.trained.digest,
            "preprocessing": repr(self.trained.preprocessing),
            "seed": self.options.seed,
            "version": volumediff.__version__,
        }

    def __call__(self, examination: Examination) -> Segmented:
        """Segments one examination.

        Raises:
            DataError: other channels than the model's, or an empty volume
        """
        trained, digests = self.trained, examination.digests
        ready = prepared(trained, list(examination.images.values()))
        d, h, w = ready.x.shape[1:]
        with explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)):
            found = self.segmenter.segment(
                trained.model,
                ready.x[None].to(trained.device),
                foreground=ready.foreground[None].to(trained.device),
                spacing_mm=ready.spacing_mm,
                key=key(self.options.seed, "segment", *digests.values()),
                condition=trained.condition(examination.attributes),
            )
        facts = {
            "case": examination.id,
            "method": self.options.method,
            "segmenter": repr(self.segmenter),
            "seed": self.options.seed,
            "inputs": {
                name: {"file": file, "sha256": digests[name]}
                for name, file in examination.files.items()
            },
            **provenance(trained),
        }
        grid = InputGrid(trained.preprocessing, ready.record)
        return Segmented(examination, found, grid, facts)


def segmenting(trained: Trained, options: SegmentOptions) -> Segmenting:
    """Settles a segmentation.

    Raises:
        UsageError: no such method, or a run that does not segment
    """
    trained.segments()
    segmenter = load_segmenter(options.method, options.overrides)
    try:
        segmenter.check(trained.model)
    except ValueError as error:
        reason = f"does not suit {trained.run}: {error}"
        raise UsageError(f"method '{options.method}': {reason}") from None
    return Segmenting(trained, segmenter, options)


def segment(
    trained: Trained,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: SegmentOptions,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Segments every case of the sources and writes the results.

    Arguments:
        trained: a run with the recipe label_diffusion
        source: file, folder or manifest, or several of them
        out: output folder
        options: method and the rest
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: method, run, sources and output folder do not fit
        DataError: a source has no cases, or the disk is full
    """
    work = segmenting(trained, options)
    names = trained.image_names(options.channels)
    cases, problems = find_inputs(
        source, channels=names, layout=options.layout, patients=trained.config.data.patients
    )
    policy = trained.preprocessing.policy

    def one(case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        files, volumes = work(examination_of(case, inputs, policy=policy)).write(folder)
        return Result(files, {"volumes_ml": volumes})

    return process(
        cases,
        out,
        settings=work.settings,
        work=one,
        problems=problems,
        overwrite=overwrite,
        report=report,
    )
