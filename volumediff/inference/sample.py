"""New volumes from a trained run, as NIfTI: sample i of a seed is the same in any call."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

import volumediff
from volumediff.condition import HEALTHY
from volumediff.config import build
from volumediff.data.cases import Case
from volumediff.data.grid import Grid
from volumediff.data.volume import write
from volumediff.errors import UsageError
from volumediff.outputs.batch import Result, Summary, process
from volumediff.outputs.export import write_json
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.shapes import Shape

__all__ = ["sample"]


@torch.no_grad()
def sample(
    trained: Trained,
    out: Path | str,
    *,
    count: int,
    sampler: str = "dpmpp",
    steps: int = 50,
    shape: Shape | None = None,
    label: int = HEALTHY,
    attributes: Mapping[str, str | float] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Draws volumes and writes `sample-<number>_image.nii.gz` with intensities in about [-1, 1].

    Arguments:
        trained: a run whose volumes need no image condition
        out: output folder
        count: number of samples
        sampler: name
        steps: of the sampler
        shape: voxels; None takes those of the run's volumes
        label: class, for class-conditional runs
        attributes: scalars, for runs conditioned on some
        seed: of the samples
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per sample; None shows progress on the terminal

    Raises:
        UsageError: the run cannot sample without an image, or has no shape of its own
    """
    trained.samples()
    model = trained.diffusion
    if not 0 <= label <= trained.recipe.classes:
        raise UsageError(
            f"--label {label}: the run has the classes 0 to {trained.recipe.classes - 1}, and "
            f"{trained.recipe.classes} for none."
        )
    section = trained.config.data.preprocessing
    size = shape or section.shape
    if size is None:
        raise UsageError(
            f"{trained.run}: its volumes have no common shape; choose one with --shape 64 64 64."
        )
    spacing = section.spacing() or (1.0, 1.0, 1.0)
    condition = trained.condition(attributes or {})
    if trained.recipe.classes:
        condition = condition.replace(label=torch.full((1,), label, device=trained.device))
    steps_of = build("sampler", {"name": sampler, "steps": steps})
    kernel = model.kernel
    try:
        steps_of.check(type(kernel))
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    grid = _centred(size, spacing)
    settings = {
        "task": "sample",
        "sampler": repr(steps_of),
        "shape": size,
        "label": label,
        "attributes": dict(attributes or {}),
        "weights": trained.digest,
        "seed": seed,
        "version": volumediff.__version__,
    }

    def work(case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        del inputs  # a sample has none
        channels = trained.recipe.channels(trained.channels)
        with explained(trained.config, mode="infer", device=trained.device, shape=size):
            noise = model.noise((key(seed, case.id),), (channels, *size))
            z = steps_of.sample(
                model.denoise,
                kernel,
                kernel.prior(noise(-1)),
                steps_of.times(kernel.schedule),
                condition=condition,
                noise=noise,
            )
            x = model.decode(z, size)[0].float().cpu().numpy()
        path = folder / f"{case.id}_image.nii.gz"
        write(path, x, like=grid, kind="image")
        sidecar = folder / f"{case.id}_image.json"
        write_json(sidecar, {"case": case.id, **settings, **provenance(trained)})
        return Result([path, sidecar], {})

    names = [f"sample-{i + 1:04d}" for i in range(count)]
    return process(
        [Case(name, name, {}) for name in names],
        out,
        settings=settings,
        work=work,
        overwrite=overwrite,
        report=report,
    )


def _centred(size: Shape, spacing: tuple[float, float, float]) -> Grid:
    """A grid along R, A, S whose centre is the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)]
    return Grid(size, affine)
