"""New volumes from a trained run: sample i of a seed is the same in any call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import volumediff
from volumediff.condition import Condition
from volumediff.config import build, overridden, suggestion
from volumediff.data.cases import Case
from volumediff.data.grid import Grid
from volumediff.data.volume import Volume
from volumediff.errors import UsageError
from volumediff.guidance._base import Guidance, with_classes
from volumediff.inference.conditions import check_names
from volumediff.inference.options import SampleOptions
from volumediff.outputs.batch import Result, Summary, process
from volumediff.outputs.export import write_json
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.samplers._base import Sampler
from volumediff.shapes import Shape

__all__ = ["Sampling", "names_of", "sample", "sampling"]

# What overrides change; students have a sampler of their own.
DEFAULT: dict[str, Any] = {"sampler": {"name": "dpmpp", "steps": 50}, "guidance": None}
STUDENT: dict[str, Any] = {"sampler": {"name": "student"}, "guidance": None}


@dataclass(frozen=True, eq=False)
class Sampling:
    """Settled sampling: everything that the samples of a call have in common.

    Arguments:
        trained: the run
        sampler: with its number of steps
        guidance: of the denoiser; None for none
        size: voxels of a sample
        grid: where they lie
        condition: of the model
        options: as they were asked for
    """

    trained: Trained
    sampler: Sampler
    guidance: Guidance | None
    size: Shape
    grid: Grid
    condition: Condition
    options: SampleOptions

    @property
    def settings(self) -> dict[str, Any]:
        """What a sample depends on, beside its name."""
        return {
            "task": "sample",
            "sampler": repr(self.sampler),
            "guidance": repr(self.guidance),
            "shape": self.size,
            "label": self.options.label,
            "attributes": dict(self.options.attributes),
            "weights": self.trained.digest,
            "seed": self.options.seed,
            "version": volumediff.__version__,
        }

    @torch.no_grad()
    def draw(self, name: str) -> Volume:
        """The sample of a name, with intensities in about [-1, 1]."""
        trained, model = self.trained, self.trained.diffusion
        kernel = model.kernel
        channels = trained.recipe.channels(trained.channels)
        with (
            explained(trained.config, mode="infer", device=trained.device, shape=self.size),
            trained.config.memory.arithmetic(),
        ):
            noise = model.noise((key(self.options.seed, name),), (channels, *self.size))
            denoise = model.denoise if self.guidance is None else self.guidance(model.denoise)
            z = self.sampler.sample(
                denoise,
                kernel,
                kernel.prior(noise(-1)),
                self.sampler.times(kernel.schedule),
                condition=self.condition,
                noise=noise,
            )
            x = model.decode(z, self.size)[0].float().cpu().numpy()
        return Volume(x, self.grid.affine, "image", self.grid)


def names_of(count: int) -> list[str]:
    """Names of the first samples."""
    return [f"sample-{i + 1:04d}" for i in range(count)]


def sampling(trained: Trained, options: SampleOptions) -> Sampling:
    """Settles what is drawn.

    Raises:
        UsageError: the run cannot sample without an image, or has no shape of its own
    """
    trained.samples()
    model = trained.diffusion
    try:
        named = trained.recipe.class_of(options.attributes)
        others = {
            name: value
            for name, value in options.attributes.items()
            if trained.recipe.class_of({name: value}) is None
        }
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    check_names(trained, others)
    label = options.label if named is None else named
    if not 0 <= label <= trained.recipe.classes:
        raise UsageError(
            f"label {label}: the run has the classes 0 to {trained.recipe.classes - 1}, "
            f"and {trained.recipe.classes} for none."
        )
    section = trained.config.data.preprocessing
    size = options.shape or section.shape
    if size is None:
        raise UsageError(
            f"{trained.name}: its volumes have no common shape; choose one, such as 64 64 64."
        )
    spacing = section.spacing() or (1.0, 1.0, 1.0)
    condition = trained.condition(options.attributes)
    if trained.recipe.classes:
        condition = condition.replace(label=torch.full((1,), label, device=trained.device))
    tree = _chosen(options.overrides, DEFAULT if model.walk is None else STUDENT)
    sampler = build("sampler", tree["sampler"])
    guidance = None if tree["guidance"] is None else build("guidance", tree["guidance"])
    try:
        sampler = sampler.of(model)
        sampler.check(type(model.kernel))
        if guidance is not None:
            guidance = with_classes(guidance, trained.recipe.classes)
    except ValueError as error:
        raise UsageError(str(error)) from None
    grid = _centred(size, spacing)
    return Sampling(trained, sampler, guidance, size, grid, condition, options)


def _chosen(words: Sequence[str], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Sampler and guidance, as in a configuration."""
    tree = overridden(usual, words)
    unknown = [name for name in tree if name not in DEFAULT]
    if unknown:
        hint = suggestion(unknown[0], list(DEFAULT))
        raise UsageError(f"{unknown[0]}: sampling takes {', '.join(DEFAULT)}.{hint}")
    return tree


def sample(
    trained: Trained,
    out: Path | str,
    count: int,
    options: SampleOptions,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Draws volumes and writes `sample-<number>_image.nii.gz` with intensities in about [-1, 1].

    Arguments:
        trained: a run whose volumes need no image condition
        out: output folder
        count: number of samples
        options: sampler and the rest
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per sample; None shows progress on the terminal

    Raises:
        UsageError: the run cannot sample without an image, or has no shape of its own
    """
    work = sampling(trained, options)

    def one(case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        del inputs  # a sample has none
        path = work.draw(case.id).save(folder / f"{case.id}_image.nii.gz")
        sidecar = folder / f"{case.id}_image.json"
        write_json(sidecar, {"case": case.id, **work.settings, **provenance(trained)})
        return Result([path, sidecar], {})

    return process(
        [Case(name, name, {}) for name in names_of(count)],
        out,
        settings=work.settings,
        work=one,
        overwrite=overwrite,
        report=report,
    )


def _centred(size: Shape, spacing: tuple[float, float, float]) -> Grid:
    """A grid along R, A, S whose centre is the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)]
    return Grid(size, affine)
