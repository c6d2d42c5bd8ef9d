"""All that has to be there before step 0: data, statistics, and the module on its device."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.recipes._base import Recipe
from volumediff.shapes import Shape
from volumediff.spaces import StateSpace
from volumediff.storage.cache import Cache
from volumediff.storage.checkpoint import exists
from volumediff.training.assemble import build_recipe, build_task, channels_of, keep_sources
from volumediff.training.dataset import Crop, Keyed, Order
from volumediff.training.latents import Precomputed, encoded
from volumediff.training.processes import on_main
from volumediff.training.run_config import RunConfig
from volumediff.training.selection import with_lesions
from volumediff.training.sources import gather
from volumediff.training.statistics import Statistics
from volumediff.training.task import Comparison, Compression, Diffusion, Task
from volumediff.training.volumes import TrainingVolume, healthy_volumes
from volumediff.training.warm_start import warm_start

__all__ = ["Prepared", "crop_of", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """What the loop runs on.

    Arguments:
        task: module on its device, players and losses
        dataset: training samples
        held: validation samples in the same form
        scans: validation volumes, whole and in voxels, the healthy ones where that matters
        lesions: the same volumes with a lesion each, if the checkpoint is selected by them
        batch_size: global batch size
        facts: for the run's manifest
    """

    task: Task
    dataset: Keyed
    held: Keyed
    scans: Keyed
    lesions: Sequence[TrainingVolume]
    batch_size: int
    facts: Mapping[str, Any]

    def name(self, wanted: int, step: int) -> str:
        """The sample that had this key in this step, for messages."""
        order = Order(len(self.dataset), self.dataset.seed)
        for number in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = order.place(number)
            if key(self.dataset.seed, epoch, index) == wanted:
                return f"{self.dataset.volumes[index].id} (epoch {epoch})"
        return f"key {wanted}"


def prepare(
    config: RunConfig, accelerator: Accelerator, report: Callable[[str], None]
) -> Prepared:
    """Data in the cache, statistics of the training split, and the task on its device.

    Raises:
        UsageError: configuration, data and recipe do not fit
        DataError: a file is refused, or a part of the run is damaged
    """
    run, recipe = config.output, build_recipe(config)
    problem = recipe.problem(channels_of(config))
    if problem:
        raise UsageError(f"recipe: {problem}")
    on_main(accelerator, lambda: keep_sources(config, run))
    task = build_task(config, run=run)
    if config.start_from is not None and not exists(run, "last"):
        warm_start(task.module, config.start_from)
    task.module.to(accelerator.device)
    cache = Cache(config.data.cache or run.parent / "cache", report)
    training, validation = gather(config, accelerator, cache)
    _check_labels(recipe, training + validation)
    # Every process takes part, whatever it sees on the disk by now: on_main is a collective.
    on_main(accelerator, lambda: _measure_once(recipe, training, run))
    statistics = Statistics.load(run)
    voxels = Keyed(
        volumes=training,
        recipe=recipe,
        seed=config.seed,
        statistics=statistics,
    )
    held = replace(voxels, volumes=validation)
    sound = healthy_volumes(recipe, validation)
    scans = held if recipe.needs_labels or not sound else replace(voxels, volumes=sound)
    dataset = voxels
    if isinstance(task, Diffusion):
        whole = config.crop is None and config.data.augmentation is None
        if whole and task.digest and recipe.fixed:
            dataset, held = _in_latents(config, task, dataset, held, cache, accelerator)
        # Codes of an autoencoder have no unit variance of their own, masks or not.
        fits = recipe.normalised or not task.model.space.exact
        if fits and not task.model.space.binary and not exists(run, "last"):
            everything = (dataset.sample(i, key=0).x[None] for i in range(len(dataset)))
            task.fit(x.to(accelerator.device) for x in everything)
    crop, lesions, best = _crop(config, task), [], config.validation.best
    # A map of one denoising step says nothing where noise is in a region alone.
    mapped = recipe.whole or recipe.corruption is not None
    if best is not None and isinstance(task, Diffusion) and mapped:
        chosen = sound[: best.volumes]
        lesions = with_lesions(chosen, seed=config.seed, cache=cache, accelerator=accelerator)
    seen = isinstance(task, Diffusion | Comparison)
    located = seen and task.model.network.coordinates
    return Prepared(
        task=task,
        dataset=replace(dataset, crop=crop, located=located, augment=config.data.augmentation),
        held=replace(held, crop=crop, located=located),
        scans=scans,
        lesions=lesions,
        batch_size=config.optim.batch_size,
        facts={
            "volumes": {"train": len(training), "validation": len(validation)},
            "autoencoder": task.digest,
        },
    )


def _measure_once(recipe: Recipe, training: Sequence[TrainingVolume], run: Path) -> None:
    if not (run / "statistics").is_dir():
        Statistics.measure(recipe, training).save(run)


def _in_latents(
    config: RunConfig,
    task: Diffusion,
    dataset: Keyed,
    held: Keyed,
    cache: Cache,
    accelerator: Accelerator,
) -> tuple[Keyed, Keyed]:
    """Both splits with raw latents in place of voxels, and the task made to expect them."""
    space = task.model.space
    convert = partial(
        encoded,
        space=space,
        digest=task.digest,
        described=json.dumps(config.space, sort_keys=True),
        cache=cache,
        accelerator=accelerator,
    )
    atlas = dataset.statistics.atlas
    if atlas is not None:
        with torch.no_grad():
            atlas = space.analysis(atlas[None].to(accelerator.device))[0].cpu()
    statistics = replace(dataset.statistics, atlas=atlas)
    task.states = Precomputed().to(accelerator.device)
    return (
        replace(dataset, volumes=convert(dataset.volumes), statistics=statistics),
        replace(held, volumes=convert(held.volumes), statistics=statistics),
    )


def _crop(config: RunConfig, task: Task) -> Crop | None:
    """How training crops are taken.

    Raises:
        UsageError: the crop does not fit the stride
    """
    if config.crop is None:
        return None
    try:
        if isinstance(task, Compression):
            return Crop(config.crop, task.autoencoder.stride)
        return crop_of(task.module.space, config.crop)
    except ValueError as error:
        raise UsageError(str(error)) from None


def crop_of(space: StateSpace, shape: Shape) -> Crop:
    """Crops of a volume that are windows of its state.

    Raises:
        ValueError: the shape is no multiple of the stride
    """
    # Sizes that tell the axes apart say where the space puts each of them.
    sizes = (2, 3, 5)
    d, h, w = (n * s for n, s in zip(sizes, space.stride, strict=True))
    first, second, third = (sizes.index(n) for n in space.grid((d, h, w)))
    return Crop(shape, space.stride, (first, second, third))


def _check_labels(recipe: Recipe, volumes: list[TrainingVolume]) -> None:
    missing = [v.id for v in volumes if recipe.needs_labels and v.entry.load("label") is None]
    if missing:
        raise UsageError(
            f"recipe: needs a label map for every case; {len(missing)} have none, for example "
            f"{missing[0]}."
        )
