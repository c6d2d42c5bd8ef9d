"""The contract of tasks: one configuration, keyed weights, losses of samples, what is saved."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from volumediff.batch import Batch
from volumediff.config import named
from volumediff.contracts.requirements import equal, require
from volumediff.planning.planner import trace
from volumediff.settings.run_config import RunConfig, parse
from volumediff.tasks import Task, build_task, resolved

__all__ = ["check_task"]

SHAPE = (16, 16, 16)
# Keys that a schema asks for, where the caller gives none.
USUAL: dict[str, Any] = {
    "space": "voxel",
    "kernel": {"name": "gaussian", "schedule": "cosine"},
    "network": {"name": "unet", "widths": [4], "blocks": 1, "groups": 2},
    "autoencoder": {"name": "kl", "latent_channels": 2, "widths": [4, 4], "strides": [[2, 2, 2]]},
    "classifier": {"name": "encoder", "of": "patch_64", "widths": [4, 8], "groups": 2},
    "residual_segmenter": {"name": "siamese", "of": "wavelet_64", "widths": [4, 8], "groups": 2},
    "probe": {"of": "wavelet_64", "times": [0.2, 0.6], "hidden": [8], "members": 2},
    "teacher": "wavelet_64",
    "recipe": "healthy",
}
# Keys of tasks that take the data of the run that they borrow.
BORROWING = {"classifier", "residual_segmenter", "probe", "teacher"}


def check_task(cls: type[Task], **arguments: Any) -> None:
    """Everything that loop, planner, checkpoints and loader rely on.

    Arguments:
        cls: the task
        arguments: keys of its configuration, as in YAML
    """
    config = _config(cls, arguments)
    task = build_task(config)
    require(type(task) is cls, f"build gives a {type(task).__name__}.")
    task.begin_training(None, fresh=True)
    _weights(config, task)
    _losses(task)
    _checkpoint(task)
    for use, reason in vars(task.refusals).items():
        require(reason is None or "\n" not in reason, f"Its reason not to {use} is not one line.")
    for mode in ("train", "infer"):
        require(trace(config, mode=mode).stages, f"The planner sees no stage of {mode}.")


def _config(cls: type[Task], arguments: dict[str, Any]) -> RunConfig:
    needed = {n for n, field in cls.schema.model_fields.items() if field.is_required()}
    usual = {name: USUAL[name] for name in needed if name in USUAL}
    own = {name for name in cls.schema.model_fields if name in RunConfig.model_fields}
    require(own == set(RunConfig.model_fields), "Its schema lacks sections of RunConfig.")
    data = {"preprocessing": {"shape": list(SHAPE), "spacing_mm": 3.0}}
    sizes = {} if BORROWING & needed else {"data": data}
    config = parse({"task": named(cls), **sizes, **usual, **arguments})
    require(parse(config.dump()) == config, "A saved configuration is not read back as it was.")
    final = resolved(config)
    require(resolved(final) == final, "Resolving twice is not resolving once.")
    return final


def _weights(config: RunConfig, task: Task) -> None:
    """Weights follow from the seed, and exist on any device."""
    again = build_task(config).trained()
    other = build_task(config.model_copy(update={"seed": config.seed + 1})).trained()
    for name, parameter in task.trained().items():
        equal(parameter, again[name], "The same seed gives other weights.")
    differ = any(not torch.equal(p, other[n]) for n, p in task.trained().items())
    require(differ, "Weights do not depend on the seed.")
    with torch.device("meta"):
        empty = build_task(config).trained().values()
    require({p.device.type for p in empty} == {"meta"}, "It is not built on the meta device.")


def _losses(task: Task) -> None:
    """A loss per sample, of the sample alone, whose gradients reach the player's weights alone."""
    require(task.main in task.parameters(), f"Its main player {task.main} trains nothing.")
    for player, mine in task.parameters().items():
        batch = task.batch(SHAPE, 2)
        both = task.loss(player, batch)
        require(both.shape == (2,), f"There is not one loss of {player} per sample.")
        require(both.isfinite().all(), f"The loss of {player} is not finite.")
        task.module.zero_grad(set_to_none=True)
        both.mean().backward()
        everything = (*task.module.parameters(), *task.training_only.parameters())
        reached = {id(p) for p in everything if p.grad is not None}
        require(reached, f"The loss of {player} has no gradient.")
        require(reached <= {id(p) for p in mine}, f"The loss of {player} moves other weights.")
        again = task.loss(player, batch)
        equal(both, again, f"The loss of {player} does not follow from the keys.")
        for i in range(2):
            alone = task.loss(player, _sample(batch, i))
            text = f"The loss of {player} on a sample depends on its batch."
            equal(both[i : i + 1], alone, text, rtol=1e-4, atol=1e-5)
    task.module.zero_grad(set_to_none=True)


def _checkpoint(task: Task) -> None:
    """What is saved is what is trained, and comes back."""
    state = {name: tensor.clone() for name, tensor in task.state().items()}
    require(set(task.trained()) <= set(state), "A trained weight is not saved.")
    fixed = {n for n, p in task.module.named_parameters() if not p.requires_grad}
    kept = ", ".join(sorted(fixed & set(state))[:3])
    require(not kept, f"Weights that are not trained are saved: {kept}; name them in frozen.")
    with torch.no_grad():
        for parameter in task.trained().values():
            parameter.zero_()
    task.load(state)
    for name, tensor in task.state().items():
        equal(tensor, state[name], f"{name} does not come back from a checkpoint.")


def _sample(batch: Batch, i: int) -> Batch:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[i : i + 1]

    return replace(
        batch,
        x=batch.x[i : i + 1],
        keys=batch.keys[i : i + 1],
        condition=batch.condition.map(lambda v: v[i : i + 1]),
        images=tuple(image[i : i + 1] for image in batch.images),
        **{n: cut(getattr(batch, n)) for n in ("mask", "region", "hidden", "end")},
    )
