"""The contract of tasks: keyed weights, losses sample by sample, checkpoints that are whole."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from volumediff.contracts.requirements import equal, require
from volumediff.errors import UsageError
from volumediff.model import Batch
from volumediff.settings.run_config import RunConfig, parse
from volumediff.tasks import Task, build_task

__all__ = ["check_task"]

SHAPE = (8, 8, 8)


def check_task(cls: type, *, config: Mapping[str, Any] | None = None) -> None:
    """What a run of an example configuration would train.

    Arguments:
        config: nested, as in YAML, small, and without data; `task` may be left out

    Raises:
        UsageError: no example
    """
    require(issubclass(cls.schema, RunConfig), "schema must extend RunConfig.")
    if config is None:
        raise UsageError(
            f"task {cls.__name__}: expected config=, a small configuration, got none."
        )
    settings = parse({**config, "task": cls})
    require(isinstance(settings, cls.schema), "The configuration is not one of its schema.")
    task, again = build_task(settings), build_task(settings)
    first, second = task.state(), again.state()
    require(first.keys() == second.keys() and bool(first), "There is nothing to store.")
    for name, value in first.items():
        equal(value, second[name], f"The fresh weights of {name} do not follow from the seed.")
    torch_state = torch.get_rng_state()
    with torch.device("meta"):
        build_task(settings)
    require(torch.equal(torch.get_rng_state(), torch_state), "Building draws random numbers.")
    for part in task.frozen:
        loose = [n for n, p in part.named_parameters() if p.requires_grad]
        require(not loose, f"Frozen weights ask for gradients: {', '.join(loose[:2])}.")
    require(task.main in task.modules(), f"main is {task.main}, which is no player.")
    task.module.train()
    batch = task.batch(SHAPE, 2)
    for player in task.modules():
        _player(task, player, batch)
    # another build with other weights, loaded: the same loss
    with torch.no_grad():
        for p in again.trained().values():
            p.add_(0.1)
    again.load(first)
    again.module.train()
    equal(
        again.loss(task.main, batch).detach(),
        task.loss(task.main, batch).detach(),
        "Weights that are loaded into a fresh build do not give the same loss.",
        rtol=1e-5,
        atol=1e-6,
    )


def _player(task: Task, player: str, batch: Batch) -> None:
    task.module.zero_grad(set_to_none=True)
    losses = task.loss(player, batch)
    require(losses.shape == (2,), f"The loss of {player} is not one number per sample.")
    require(losses.isfinite().all(), f"The loss of {player} is not finite.")
    losses.mean().backward()
    own = {id(p) for p in task.parameters()[player]}
    named = dict(task.module.named_parameters())
    others = [n for n, p in named.items() if id(p) not in own and _moved(p)]
    require(not others, f"The loss of {player} trains {', '.join(others[:2])}, another's.")
    require(
        any(_moved(p) for p in task.parameters()[player]),
        f"The loss of {player} has no gradient in its own parameters.",
    )
    for i in range(2):
        alone = task.loss(player, _sample(batch, i)).detach()
        text = f"The loss of {player} on a sample depends on its batch."
        equal(alone, losses[i : i + 1].detach(), text, rtol=1e-4, atol=1e-5)


def _moved(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


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
