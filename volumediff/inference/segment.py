"""Segmentation with a trained run: of one examination in memory, or file by file.

<case>_dseg.nii.gz                    most probable label at each voxel
<case>_label-<value>_probseg.nii.gz   probability of a label; label 0 is the background
<case>_label-<value>_desc-variance_map.nii.gz   variance of the samples
<case>_label-<value>_desc-votes_map.nii.gz      share of the samples that have the label
<case>_desc-entropy_map.nii.gz        entropy of the label, in nats
<case>_desc-mutualinformation_map.nii.gz        disagreement of the members, in nats
<case>_desc-sample<i>_dseg.nii.gz     label map of a sample, if they are asked for
<case>_dseg.json                      method, weights, inputs, network calls, volume of every label
                                      with the interval that holds 95 % of the samples
seen-<hash>.json                      subjects that the weights were trained on
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

import volumediff
from volumediff.calibration.segmentation_fits import fitted
from volumediff.data.label_names import KEY as LABEL_NAMES
from volumediff.data.label_names import label_name, names_in
from volumediff.data.seen import Seen
from volumediff.errors import UsageError
from volumediff.evaluation.leakage import keep
from volumediff.inference.case_by_case import find_cases, work_through
from volumediff.inference.conditions import check_names, settled
from volumediff.inference.cost import Cost, counted
from volumediff.inference.fill import Filling, filled_warnings, filling
from volumediff.inference.members import with_members
from volumediff.inference.options import SegmentOptions
from volumediff.model import Model
from volumediff.outputs.batch import Result, Summary
from volumediff.outputs.case_files import examination_files
from volumediff.outputs.export import Writer
from volumediff.outputs.input_grid import InputGrid
from volumediff.outputs.label_tables import write_label_tables
from volumediff.outputs.segmentation_files import DSEG, sample_of
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.inputs import Examination, find_inputs, prepared
from volumediff.runs.provenance import provenance
from volumediff.runs.stripping import stripped, strips, unaligned
from volumediff.runs.trained import Trained
from volumediff.samples.input_guard import accepted
from volumediff.samples.preparation_record import RunPreparation, recorded_preparation
from volumediff.samples.seen_record import seen_by
from volumediff.segmentation.method_files import load_segmenter
from volumediff.segmentation.result import Segmentation
from volumediff.segmentation.segmenters._base import Segmenter

__all__ = ["DEFAULT", "Segmented", "Segmenting", "segment", "segmenting"]

DEFAULT = "label_diffusion"  # the method of runs that were configured for none
INTERVAL = (0.025, 0.975)  # quantiles over the samples


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a method says about one examination.

    Arguments:
        examination: what was given
        found: on the prepared grid
        grid: of the input
        spacing_mm: of the prepared grid
        facts: what is recorded beside the labels
        cost: network calls and memory
        seen: what the weights have seen
    """

    examination: Examination
    found: Segmentation
    grid: InputGrid
    spacing_mm: tuple[float, float, float]
    facts: Mapping[str, Any]
    cost: Cost
    seen: Seen

    @cached_property
    def labels(self) -> UInt8[np.ndarray, "1 d h w"]:
        """The label map on the grid of the input: its most probable labels, or what
        post-processing has made of those of the prepared grid."""
        found = self.found
        if found.final is not None:
            return self.grid.label(found.final[0])
        return self.grid.most_probable(found.probabilities[0], found.values)

    def volumes_ml(self, labels: np.ndarray) -> dict[str, float]:
        """Volume of every label in a label map on the grid of the input."""
        voxel_ml = abs(float(np.linalg.det(self.grid.record.native.affine[:3, :3]))) / 1000
        return {str(v): float((labels == v).sum()) * voxel_ml for v in self.found.values}

    def intervals_ml(self) -> dict[str, list[float]]:
        """Volume of every label that 95 % of the samples hold, on the prepared grid; empty where
        there are none."""
        samples = self.found.samples
        if samples is None:
            return {}
        voxel_ml = math.prod(self.spacing_mm) / 1000
        quantiles = torch.tensor(INTERVAL, dtype=torch.float64)
        sizes = {v: (samples == v).flatten(1).sum(dim=1).double() for v in self.found.values}
        return {
            str(v): (torch.quantile(n.cpu(), quantiles) * voxel_ml).tolist()
            for v, n in sizes.items()
        }

    def write_dicom(self, folder: Path) -> list[Path]:
        """Writes labels and probabilities as DICOM objects in the space of the given series.

        Raises:
            UsageError: highdicom is not installed
            DataError: no DICOM series, or one that no object can refer to
        """
        from volumediff.dicom_output.write import write_labels_dicom

        found = self.found
        shares = {
            value: self.grid.image(found.probabilities[0, i : i + 1])[0]
            for i, value in enumerate(found.values)
        }
        return write_labels_dicom(
            examination_files(folder, self.examination),
            next(iter(self.examination.images.values())).path,
            self.labels[0],
            shares,
            grid=self.grid.record.native,
            facts=self.facts,
        )

    def write(self, folder: Path, *, samples: bool = False) -> tuple[list[Path], dict[str, float]]:
        """Writes labels, probabilities and records; returns the files and the volumes in ml.

        Arguments:
            folder: where to
            samples: whether the label map of every sample is written
        """
        found = self.found
        place = examination_files(folder, self.examination)
        writer = Writer(place, self.grid)
        record = keep(folder, self.seen)
        names = names_in(self.facts)
        write_label_tables(folder, DSEG, {v: label_name(v, names) for v in found.values})
        volumes = self.volumes_ml(writer.native_label(DSEG, self.labels))
        shares = found.shares[0]
        writer.image("label-0_probseg", shares[:1], beyond=1.0)  # nothing is there
        for i, value in enumerate(found.values):
            writer.image(f"label-{value}_probseg", found.probabilities[0, i : i + 1])
            if found.variance is not None:
                writer.image(f"label-{value}_desc-variance_map", found.variance[0, i : i + 1])
            if found.votes is not None:
                writer.image(f"label-{value}_desc-votes_map", found.votes[0, i : i + 1])
        writer.image("desc-entropy_map", found.entropy[0])
        if found.mutual_information is not None:
            writer.image("desc-mutualinformation_map", found.mutual_information[0])
        if samples and found.samples is not None:
            for i, drawn in enumerate(found.samples, start=1):
                writer.label(sample_of(i), drawn[None])
        findings = [vars(f) for f in self.grid.record.findings]
        files = writer.record(
            DSEG,
            {
                **self.facts,
                "seen": record.name,
                "volumes_ml": volumes,
                "volumes_ml_interval": self.intervals_ml(),
                "preprocessing_findings": findings,
                "notice": "Research software, not for diagnosis.",
            },
        )
        return [*files, record], volumes


@dataclass(frozen=True, eq=False)
class Segmenting:
    """A settled segmentation: everything that the results of a call have in common.

    Arguments:
        trained: the run
        method: its name
        segmenter: the method
        options: of the call
        others: runs beside it, of an ensemble
        fills: draws channels that an examination lacks
    """

    trained: Trained
    method: str
    segmenter: Segmenter
    options: SegmentOptions
    others: tuple[Trained, ...] = ()
    fills: Filling | None = None

    @cached_property
    def preparation(self) -> RunPreparation | None:
        """What is recorded about the run's volumes; heads are stripped where these were."""
        return recorded_preparation(self.trained.run)

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, beside the volume."""
        return {
            "task": "segment",
            "method": repr(self.segmenter),
            "weights": self.trained.digest,
            "preprocessing": repr(self.trained.preprocessing),
            "seed": self.options.seed,
            "samples": self.options.write_samples,
            "conditions": dict(self.options.conditions),
            "version": volumediff.__version__,
            **({} if self.fills is None else {"fill": self.fills.settings}),
            **({"dicom": True} if self.options.dicom else {}),
        }

    @property
    def _label_names(self) -> dict[str, dict[str, str]]:
        known = self.trained.label_names
        return {LABEL_NAMES: {str(value): name for value, name in known.items()}} if known else {}

    def __call__(self, examination: Examination) -> Segmented:
        """Segments one examination.

        Raises:
            DataError: other channels than the model's, an empty volume, or one that the run was
                plainly not trained for
        """
        if self.fills is not None:
            examination = self.fills(examination)
        trained, digests = self.trained, examination.digests
        images, force = list(examination.images.values()), self.options.force
        taken = accepted(trained.guard.files(images), force=force)
        brain = stripped(examination.images) if strips(self.preparation) else None
        ready = prepared(trained, images if brain is None else list(brain.values()))
        taken += accepted(trained.guard.volume(ready), force=force)
        conditions = settled(
            trained,
            {**examination.attributes, **self.options.conditions},
            ready,
            key=key(self.options.seed, "conditions", *digests.values()),
        )
        d, h, w = ready.x.shape[1:]
        with (
            explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)),
            trained.config.memory.arithmetic(),
            counted(trained.model, *(other.model for other in self.others)) as cost,
        ):
            found = self.segmenter.segment(
                trained.model,
                ready.x[None].to(trained.device),
                foreground=ready.foreground[None].to(trained.device),
                spacing_mm=ready.spacing_mm,
                key=key(self.options.seed, "segment", *digests.values()),
                condition=conditions.condition,
            )
        facts = {
            "case": examination.id,
            "patient": examination.patient,
            "method": self.method,
            "segmenter": repr(self.segmenter),
            "seed": self.options.seed,
            "stripped": brain is not None,
            **conditions.facts(),
            "inputs": {
                name: {"file": file, "sha256": digests[name]}
                for name, file in examination.files.items()
            },
            **trained.task.facts,
            **self._label_names,
            "read_policy": asdict(trained.preprocessing.policy),
            "network_calls": cost.network_calls,
            "filled": dict(examination.filled),
            "forced": list(taken.forced),
            "warnings": [
                *conditions.warnings,
                *filled_warnings(examination.filled),
                *taken.warnings,
                *(unaligned(self.preparation) if brain is not None else []),
            ],
            "members": [provenance(other) for other in self.others],
            **provenance(trained),
        }
        grid = InputGrid(trained.preprocessing, ready.record)
        runs = [trained, *self.others]
        if examination.filled and self.fills is not None:
            runs.append(self.fills.work.trained)
        seen = reduce(or_, (seen_by(each.run) for each in runs))
        return Segmented(examination, found, grid, ready.spacing_mm, facts, cost, seen)


def segmenting(
    trained: Trained,
    options: SegmentOptions,
    *,
    announce: Callable[[str], None] = lambda line: None,
) -> Segmenting:
    """Settles a segmentation; fits what the method fits on the run's validation volumes.

    Arguments:
        trained: a run that segments
        options: method and the rest
        announce: receives progress lines of a fit

    Raises:
        UsageError: no such method, or a run that does not segment
    """
    trained.segments()
    check_names(trained, options.conditions)
    method = options.method or trained.config.method or DEFAULT
    asked = trained.task.lend(Model)
    distilled = asked is not None and asked.walk is not None
    segmenter = load_segmenter(method, options.overrides, distilled=distilled)
    try:
        segmenter.check(trained.model)
    except ValueError as error:
        reason = f"does not suit {trained.run}: {error}"
        raise UsageError(f"method '{method}': {reason}") from None
    segmenter, others = with_members(trained, segmenter)
    segmenter = fitted(trained, segmenter, seed=options.seed, report=announce)
    fills = None if options.fill is None else filling(trained, options.fill)
    if fills is not None:
        announce(f"cases without {', '.join(fills.drawn)} get it from {', '.join(fills.sources)}")
    return Segmenting(trained, method, segmenter, options, others, fills)


def segment(
    trained: Trained,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: SegmentOptions,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Segments every case of the sources and writes the results.

    Arguments:
        trained: a run that segments
        source: file, folder or manifest, or several of them
        out: output folder
        options: method and the rest
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal
        announce: receives what happens before the first case

    Raises:
        UsageError: method, run, sources and output folder do not fit
        DataError: a source has no cases, or the disk is full
    """
    work = segmenting(trained, options, announce=announce)
    if work.fills is None:
        find = partial(find_inputs, channels=trained.image_names(options.channels))
    else:
        find = work.fills.find
    found = find_cases(trained, source, find, layout=options.layout, dicom=options.dicom)

    def one(examination: Examination, folder: Path) -> Result:
        segmented = work(examination)
        files, volumes = segmented.write(folder, samples=options.write_samples)
        if options.dicom:
            files += segmented.write_dicom(folder)
        facts = {"volumes_ml": volumes, **vars(segmented.cost)}
        return Result(files, facts, segmented.facts["warnings"])

    return work_through(
        trained, found, out, one, settings=work.settings, overwrite=overwrite, report=report
    )
