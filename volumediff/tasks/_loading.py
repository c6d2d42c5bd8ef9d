"""From a run's configuration to its task, and from a run's folder to the trained task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from volumediff.config import available, build, component
from volumediff.errors import DataError, UsageError
from volumediff.networks.pseudo3d import inflate
from volumediff.randomness import key
from volumediff.settings.bound_files import check_bound
from volumediff.settings.run_config import RunConfig, saved_config
from volumediff.storage import checkpoint
from volumediff.tasks._agreement import check_channels, check_parts, differences
from volumediff.tasks._base import Task, best_of

__all__ = ["build_task", "load_task", "resolved", "task_of", "warm_start"]


def task_of(config: RunConfig) -> type[Task]:
    """The class of what a configuration trains."""
    return component("task", config.task)


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with what follows from the runs that it borrows from; reads these.

    Raises:
        UsageError: there is no such run, or it trains something else
    """
    return task_of(config).resolve(config)


def build_task(config: RunConfig, *, run: Path | None = None) -> Task:
    """What the configuration trains, with fresh weights that follow from the seed.

    Arguments:
        run: the run's folder, with what it keeps of others; without it, borrowed weights that are
            not trained yet are built from their shipped configuration

    Raises:
        UsageError: parts do not fit; one line that names the key
    """
    config = resolved(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "weights"))
        task = task_of(config).build(config, run)
        if config.adapter is not None:
            _adapt(task, config.start_from, run)
    return task


def _adapt(task: Task, source: Path, run: Path | None) -> None:
    """Corrects the weights of another run in place of fresh ones; without a folder, as for the
    planner, the fresh ones.

    Raises:
        UsageError: the task has no adapters, or the other run trains something else
        DataError: the other run is damaged
    """
    config, base = task.config, ""
    adapter = build("adapter", config.adapter)
    if not task.adaptable:
        names = [n for n in available("task") if component("task", n).adaptable]
        raise UsageError(
            f"adapter: expected a task that trains one set of weights ({', '.join(names)}), got "
            f"{config.task}; leave the adapter out."
        )
    if run is not None:
        found = best_of(source, where="start_from")
        other, base = load_task(source, found=found), found.digest
        if type(other) is not type(task):
            raise UsageError(
                f"start_from = {source}: trains {other.noun}, expected {task.noun}; an adapter is "
                "of the same task."
            )
        check_channels(config, other.config, of=source)
        check_parts(config, other.config, of=source)
        if other.digest != task.digest:
            raise DataError(
                f"{run}: what it keeps of the runs {' and '.join(config.borrows())} is not what "
                f"start_from = {source} was trained with; restore it from a backup."
            )
        task.load(other.state())
    try:
        task.adapt(adapter, base=base)
    except ValueError as error:
        raise UsageError(f"adapter: {error}.") from None


def load_task(
    run: Path,
    *,
    which: Literal["best", "last"] = "best",
    weights: Literal["ema", "weights"] = "ema",
    overrides: Sequence[str] = (),
    found: checkpoint.Checkpoint | None = None,
) -> Task:
    """The trained task of a run, verified, on the CPU, in evaluation mode.

    Arguments:
        which: the checkpoint selected on validation, or the newest
        weights: the averaged weights, or those of the last step
        overrides: `a.b=c` overrides for its configuration, such as those of its memory policy
        found: the checkpoint, where it was verified a moment ago

    Raises:
        UsageError: no run, or no checkpoint of this kind yet
        DataError: the checkpoint is damaged or does not fit its configuration
    """
    config = saved_config(run, overrides)
    found = found or checkpoint.find(run, which)
    if found is None:
        raise UsageError(
            f"{run}: has no '{which}' checkpoint yet; train it further, or choose the other one."
        )
    check_bound(run, found)
    task = build_task(config, run=run)
    if found.state["borrowed"] != task.borrowed:
        sources = " and ".join(f"{name} = {path}" for name, path in config.frozen_runs.items())
        raise DataError(
            f"{run}: the weights of other runs that it uses ({sources}) are not those that it was "
            "trained with; restore them from a backup."
        )
    try:
        task.load(found.tensors(weights))
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{found.path}: does not fit {run}/config.yaml ({reason}).") from None
    task.merge()
    task.module.eval()
    return task


def warm_start(
    task: Task, source: Path, report: Callable[[str], None] = lambda line: None
) -> None:
    """Puts the averaged weights of a run into a fresh task, for fine-tuning.

    A task that can begin with runs of other tasks says what it took. All others take the whole
    network of a run of the same task.

    A pseudo-3D network may be trained on single slices first (`network.through_plane: false`, a
    crop of one slice) and is then inflated: every layer within the plane keeps its weights and
    gains an identity through the plane, so that the 3D run begins as the 2D model applied slice by
    slice. Normalisation of states is not taken over: it belongs to the data.

    Arguments:
        report: is told what was taken

    Raises:
        UsageError: the networks are not the same, beside layers through the plane
        DataError: the other run is damaged
    """
    other = load_task(source)
    for line in differences(task.config, other.config):
        report(f"start_from = {source}: {line}.")
    said = task.begin_with(other, where=f"start_from = {source}")
    if said is not None:
        report(said)
        return
    if type(other) is not type(task):
        raise UsageError(f"start_from = {source}: trains {other.noun}, expected {task.noun}.")
    check_channels(task.config, other.config, of=source)
    target = task.target
    weights, expected = other.target.state_dict(), target.state_dict()
    added = [t.shape[2] for n, t in expected.items() if n not in weights and t.ndim == 5]
    try:
        if added and set(weights) < set(expected):  # layers through the plane, or none are new
            weights = inflate(weights, kernel=added[0])
        target.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"start_from = {source}: does not fit this network ({reason}).") from None
