"""Segmentation with a trained run, file by file.

<case>_dseg.nii.gz                    most probable label at each voxel
<case>_label-<value>_probseg.nii.gz   probability of a label
<case>_label-<value>_desc-variance_map.nii.gz   variance of the samples
<case>_desc-entropy_map.nii.gz        entropy of the label, in nats
<case>_dseg.json                      method, weights, inputs, volume of every label
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import volumediff
from volumediff.data.cases import Case
from volumediff.errors import UsageError
from volumediff.outputs.batch import Result, Summary, process
from volumediff.outputs.export import Writer, write_json
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.inputs import find_inputs, prepared_case
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.segmentation._base import load_segmenter

__all__ = ["segment"]


def segment(
    trained: Trained,
    source: Path | str,
    out: Path | str,
    *,
    method: str = "label_diffusion",
    overrides: Sequence[str] = (),
    channels: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Segments every case of the source.

    Arguments:
        trained: a run with the recipe label_diffusion
        source: file, folder or manifest
        out: output folder
        method: segmenter by name or path
        overrides: `key=value` words for it
        channels: names of the images; None takes those of the run
        seed: of the samples
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: method, run, source and output folder do not fit
        DataError: the source has no cases, or the disk is full
    """
    trained.segments()
    recipe = trained.recipe
    segmenter = load_segmenter(method, overrides)
    try:
        segmenter.check(trained.model)
    except ValueError as error:
        raise UsageError(f"method {method}: does not suit {trained.run}: {error}") from None
    names = trained.image_names(channels)
    cases, problems = find_inputs(source, channels=names, siblings=bool(recipe.scalars))
    settings = {
        "task": "segment",
        "method": repr(segmenter),
        "weights": trained.digest,
        "preprocessing": repr(trained.preprocessing),
        "seed": seed,
        "version": volumediff.__version__,
    }

    def work(case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        prepared = prepared_case(trained, case)
        d, h, w = prepared.x.shape[1:]
        with explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)):
            found = segmenter.segment(
                trained.model,
                prepared.x[None].to(trained.device),
                foreground=prepared.foreground[None].to(trained.device),
                spacing_mm=prepared.spacing_mm,
                key=key(seed, "segment", *inputs.values()),
                condition=trained.condition(case.attributes),
            )
        writer = Writer(folder, case.id, trained.preprocessing, prepared.record)
        native = writer.label("dseg", found.labels[0])
        for i, value in enumerate(found.values):
            writer.image(f"label-{value}_probseg", found.probabilities[0, i : i + 1])
            if found.variance is not None:
                writer.image(f"label-{value}_desc-variance_map", found.variance[0, i : i + 1])
        writer.image("desc-entropy_map", found.entropy[0])
        voxel_ml = abs(float(torch.linalg.det(_matrix(prepared.record.native.affine)))) / 1000
        volumes = {str(v): float((native == v).sum()) * voxel_ml for v in found.values}
        sidecar = folder / f"{case.id}_dseg.json"
        write_json(
            sidecar,
            {
                "case": case.id,
                "method": method,
                "segmenter": repr(segmenter),
                "volumes_ml": volumes,
                "seed": seed,
                "inputs": {
                    n: {"file": p.name, "sha256": inputs[n]} for n, p in case.images.items()
                },
                **provenance(trained),
                "preprocessing_findings": [vars(f) for f in prepared.record.findings],
                "notice": "Research software, not for diagnosis.",
            },
        )
        return Result([*writer.files, sidecar], {"volumes_ml": volumes})

    return process(
        cases,
        out,
        settings=settings,
        work=work,
        problems=problems,
        overwrite=overwrite,
        report=report,
    )


def _matrix(affine: object) -> torch.Tensor:
    return torch.as_tensor(affine, dtype=torch.float64)[:3, :3]
