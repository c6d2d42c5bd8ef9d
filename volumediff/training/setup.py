"""Preparation before step 0: data, statistics, and the task on its device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from volumediff.data.lesion_free import LesionFree
from volumediff.distributed.processes import on_main
from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.recipes._base import Recipe
from volumediff.samples.dataset import Crop, Keyed, Order, Samples
from volumediff.samples.input_guard import InputGuard
from volumediff.samples.input_profile import FOLDER as INPUTS
from volumediff.samples.input_profile import InputProfile
from volumediff.samples.label_checks import check_prepared_labels
from volumediff.samples.landmarks import keep_landmarks
from volumediff.samples.preparation_record import NAME as PREPARATION
from volumediff.samples.preparation_record import told_preparation
from volumediff.samples.sources import drawn_volumes, gather
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume, healthy_volumes
from volumediff.settings.run_config import RunConfig, saved_config
from volumediff.settings.sections import POPULATION
from volumediff.storage.cache import Cache
from volumediff.storage.checkpoint import exists
from volumediff.storage.records import write
from volumediff.tasks import Task, build_task, task_of, warm_start

__all__ = ["TrainingSetup", "prepare"]


@dataclass(frozen=True)
class TrainingSetup:
    """What the loop runs on.

    Arguments:
        task: module on its device, players and losses
        samples: of training and validation
        batch_size: global batch size
        facts: for the run's manifest
    """

    task: Task
    samples: Samples
    batch_size: int
    facts: Mapping[str, Any]

    def name(self, wanted: int, step: int) -> str:
        """The sample that had this key in this step, for messages."""
        dataset = self.samples.dataset
        order = Order(len(dataset), dataset.seed)
        for number in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = order.place(number)
            if key(dataset.seed, epoch, index) == wanted:
                return f"{dataset.volumes[index].id} (epoch {epoch})"
        return f"key {wanted}"


def prepare(
    config: RunConfig, accelerator: Accelerator, report: Callable[[str], None]
) -> TrainingSetup:
    """Data in the cache, statistics of the training split, and the task on its device.

    Raises:
        UsageError: configuration, data and recipe do not fit
        DataError: a file is refused, or a part of the run is damaged
    """
    run, kind, adapts = config.output, task_of(config), config.adapter is not None
    on_main(accelerator, lambda: kind.keep(config, run))
    if adapts:
        on_main(accelerator, lambda: keep_landmarks(run, config.start_from))
    task, fresh = build_task(config, run=run), not exists(run, "last")
    task.begin_training(run, fresh=fresh)
    if config.start_from is not None and fresh and not adapts:
        warm_start(task, config.start_from, report)
    task.module.to(accelerator.device)
    task.training_only.to(accelerator.device)
    cache, recipe = Cache(config.data.cache or run.parent / "cache", report), task.recipe
    training, validation = gather(
        config, accelerator, cache, recipe=recipe, fits=kind.fits_intensities and not adapts
    )
    rule = config.data.lesion_free
    if rule is not None and recipe.needs_labels:
        raise UsageError("data.lesion_free: this recipe learns from labels; leave it out.")
    if rule is not None:
        training, validation = (
            _with_windows(_crop(task, config), part, rule, report)
            for part in (training, validation)
        )
    _check_labels(recipe, training + validation)
    check_prepared_labels(recipe, training)
    _check_drawn(config, recipe)
    # Every process takes part, whatever it sees on the disk by now: on_main is a collective.
    on_main(accelerator, lambda: _measure_once(config, recipe, training, report))
    dataset = Keyed(
        volumes=training, recipe=recipe, seed=config.seed, statistics=Statistics.load(run)
    )
    held = replace(dataset, volumes=validation)
    sound = healthy_volumes(recipe, validation)
    scans = held if recipe.needs_labels or not sound else replace(dataset, volumes=sound)
    dataset, held = (replace(part, distances=task.distances) for part in (dataset, held))
    whole = Samples(dataset, held, scans, sound)
    # What was fitted for the weights that an adapter corrects came with them.
    fitted = task.fit(whole, fresh=fresh and not adapts, cache=cache, accelerator=accelerator)
    cut = {
        "crop": _crop(task, config),
        "located": task.located,
        "lesion_free": rule,
        "noise": task.loss_noise,
    }
    return TrainingSetup(
        task=task,
        samples=replace(
            fitted,
            dataset=replace(
                fitted.dataset,
                **cut,
                foreground=task.foreground,
                augment=config.data.augmentation,
                drawn=drawn_volumes(config, accelerator, cache),
            ),
            held=replace(fitted.held, **cut),
        ),
        batch_size=config.optim.batch_size,
        facts={
            "volumes": {"train": len(training), "validation": len(validation)},
            "borrowed": task.borrowed,
            **task.facts,
        },
    )


def _crop(task: Task, config: RunConfig) -> Crop | None:
    try:
        return None if config.crop is None else task.crop(config.crop)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _with_windows(
    crop: Crop | None,
    volumes: Sequence[TrainingVolume],
    rule: LesionFree,
    report: Callable[[str], None],
) -> list[TrainingVolume]:
    """The volumes without lesions, and those whose lesion-free planes hold a training crop.

    Raises:
        UsageError: no crop, so that a sample would be the whole volume, or none is left
    """
    if crop is None:
        raise UsageError(
            "data.lesion_free: expected training crops that fit between lesions, got whole "
            "volumes; choose a patch or pseudo3d configuration, or give crop."
        )
    size, stride = crop.shape[rule.axis], crop.stride[rule.axis]
    kept: list[TrainingVolume] = []
    left_out: list[TrainingVolume] = []
    for volume in volumes:
        label = volume.array("label")
        if label is None or not label.any():
            sick = volume.attributes.get("group") == "sick"
            (left_out if sick else kept).append(volume)
            continue
        free = rule.free(label, spacing_mm=volume.spacing_mm)
        fits = rule.starts(free, size=size, stride=stride)
        (kept if fits else left_out).append(volume)
    if left_out:
        report(
            f"data.lesion_free: {len(left_out)} volumes have no lesion-free slab of {size} "
            f"{rule.planes} planes, or a lesion that nobody marked, and are left out: "
            f"{left_out[0].id}"
        )
    if not kept and volumes:
        raise UsageError(
            f"data.lesion_free: none of {len(volumes)} volumes has {size} {rule.planes} planes "
            "without a lesion; make crop thinner or margin_mm smaller."
        )
    return kept


def _measure_once(
    config: RunConfig,
    recipe: Recipe,
    training: Sequence[TrainingVolume],
    report: Callable[[str], None],
) -> None:
    run, source = config.output, config.start_from
    if not (run / "statistics").is_dir():
        adapted = config.adapter is not None and source is not None
        found = Statistics.load(source) if adapted else Statistics.measure(recipe, training)
        found.save(run)
    if (run / INPUTS).is_dir():
        return
    profile = InputProfile.measure(training)
    profile.save(run)
    _keep_preparation(config)
    if source is not None:
        guard = InputGuard.of_run(source, saved_config(source).data.channels)
        for difference in guard.cohort(profile):
            report(
                f"start_from = {source}: a typical volume of the data is new to it: "
                f"{difference.text}"
            )


def _keep_preparation(config: RunConfig) -> None:
    """What `prepare` wrote about the data set goes with the run."""
    root = config.data.root
    found = None if root in (None, POPULATION) else told_preparation(Path(str(root)))
    if found is not None:
        write(config.output / PREPARATION, found)


def _check_drawn(config: RunConfig, recipe: Recipe) -> None:
    if config.data.drawn is None:
        return
    told = "a label map" if recipe.needs_labels else "a class" if recipe.classes else None
    told = told or (f"attributes ({', '.join(recipe.scalars)})" if recipe.scalars else None)
    if told is not None:
        raise UsageError(
            f"data.drawn: expected a recipe without labels, classes and scalars, got one with "
            f"{told}, which drawn volumes do not have; leave data.drawn out."
        )


def _check_labels(recipe: Recipe, volumes: list[TrainingVolume]) -> None:
    missing = [v.id for v in volumes if recipe.needs_labels and v.entry.load("label") is None]
    if missing:
        raise UsageError(
            f"recipe: needs a label map for every case; {len(missing)} have none, for example "
            f"{missing[0]}."
        )
