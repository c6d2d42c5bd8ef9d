"""One training step and one pass of inference, cut into named stages, on any tensors.

The stages of training are encode, forward, backward, optimizer, as in `volumediff.training.loop`;
those of inference are named by the task, which also makes the random batch. Where the task has
whole volumes pass through its module in validation, such a pass follows the step.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.errors import UsageError
from volumediff.optimization.state import TrainingState
from volumediff.planning.tracer import Tracer
from volumediff.settings.run_config import RunConfig
from volumediff.shapes import Shape
from volumediff.tasks import Stage, Task, task_of

__all__ = [
    "VALIDATION",
    "TracedStep",
    "crop_shape",
    "inference_step",
    "train_step",
    "training_step",
    "validates",
    "volume_shape",
    "with_moments",
]

OPTIMIZER = "optimizer"  # the stage whose temporary tensors are no activations
VALIDATION = "validation "  # begins the names of stages that training can do without


@dataclass(frozen=True)
class TracedStep:
    """Something to run again and again.

    Arguments:
        held: tensors that exist before, during and after it, by category of the tracer
        run: does it, given what names stages
    """

    held: Mapping[str, Sequence[Tensor]]
    run: Callable[[Stage], None]

    def traced(self, tracer: Tracer, within: Stage = lambda name: nullcontext()) -> None:
        """Runs it under an active tracer, with its tensors in their categories.

        Arguments:
            within: what else is to be told of stages
        """
        for category, tensors in self.held.items():
            tracer.adopt(category, tensors)
        tracer.follow(p for p in self.held["weights"] if isinstance(p, nn.Parameter))

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            holds = "other" if name == OPTIMIZER else "activations"
            with within(name), tracer.stage(name, holds=holds):
                yield

        self.run(stage)


def training_step(
    config: RunConfig,
    task: Task,
    *,
    device: torch.device | str = "cpu",
    most: int | None = None,
) -> TracedStep:
    """A step of training as it is from the second one on.

    Arguments:
        most: micro-batches that are run, if not all; the third finds nothing new
    """
    optim = config.optim
    state = TrainingState.fresh(task, optim)
    with_moments(state)
    apart = max((config.processes.number or 1) // config.processes.domain, 1)
    count = optim.batch_size // optim.accumulate // apart
    sizes = [crop_shape(config)] * optim.accumulate
    micros = [task.batch(size, max(count, 1), device=device) for size in sizes]

    def run(stage: Stage) -> None:
        train_step(state, micros[:most], clip=optim.clip, stage=stage)
        if validates(config):
            whole = task.batch(volume_shape(config), 1, device=device)
            with _evaluating(task.module):
                task.use(whole, stage=lambda name: stage(VALIDATION + name))

    buffers = (*task.module.buffers(), *task.training_only.buffers())
    states = [s for o in state.optimizers.values() for s in o.state.values()]
    held = {
        "weights": [*task.module.parameters(), *task.training_only.parameters()],
        "optimizer": [*(m for s in states for m in s.values()), *state.ema.tensors.values()],
        "other": [*buffers, *(t for b in micros for t in _tensors(b))],
    }
    return TracedStep(held, run)


def inference_step(
    config: RunConfig, task: Task, *, device: torch.device | str = "cpu"
) -> TracedStep:
    """A pass of inference over one whole volume."""
    batch = task.batch(volume_shape(config), 1, device=device)

    def run(stage: Stage) -> None:
        with _evaluating(task.module):
            task.use(batch, stage=stage)

    other = [*task.module.buffers(), *_tensors(batch)]
    return TracedStep({"weights": [*task.module.parameters()], "other": other}, run)


def _tensors(batch: Batch) -> list[Tensor]:
    given = batch.condition
    found = (batch.x, *batch.images, batch.mask, batch.region, batch.end)
    found += (given.label, given.scalars, given.coordinates)
    return [t for t in found if t is not None]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def validates(config: RunConfig) -> bool:
    """Whether whole volumes pass through the model in training."""
    return task_of(config).whole_volumes(config)


def volume_shape(config: RunConfig) -> Shape:
    """Voxels of a whole volume.

    Raises:
        UsageError: the configuration does not say
    """
    shape = config.data.preprocessing.shape or config.crop
    if shape is None:
        raise UsageError(
            "data.preprocessing.shape: not set, so the volumes have no common size; give one "
            "as the shape D H W."
        )
    return shape


def crop_shape(config: RunConfig) -> Shape:
    """Voxels of a training sample: the crop, which no volume exceeds by more than its padding."""
    return config.crop or volume_shape(config)


def with_moments(state: TrainingState) -> None:
    """Gives the optimizers their moments, as they are after the first step; the weights stay."""
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        optimizer.step()
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        optimizer.zero_grad()


def train_step(
    state: TrainingState, micros: Sequence[Batch], *, clip: float | None, stage: Stage
) -> None:
    """The update of all players from micro-batches."""
    task = state.task
    for player, optimizer in state.optimizers.items():
        parameters = state.players[player]
        for batch in micros:
            loss = _loss(task, player, batch, stage)
            with stage("backward"):
                (loss / len(micros)).backward()
        with stage(OPTIMIZER):
            nn.utils.clip_grad_norm_(parameters, clip or math.inf)
            optimizer.step()
            optimizer.zero_grad()
    state.step += 1
    with stage(OPTIMIZER):
        state.ema.update(state.trained, step=state.step)


def _loss(task: Task, player: str, batch: Batch, stage: Stage) -> Tensor:
    """The mean loss; the stage forward begins where the task's entry is called."""
    with ExitStack() as stages:

        def begin(*_: object) -> None:
            stages.close()
            stages.enter_context(stage("forward"))

        if task.entry is None:
            begin()
        else:
            stages.enter_context(stage("encode"))
            hook = task.entry.register_forward_pre_hook(begin)
            stages.callback(hook.remove)
        return task.loss(player, batch).mean()
