"""One training step and one pass of inference, cut into named stages, on any tensors.

The stages of training are encode, forward, backward, optimizer, as in `volumediff.training.loop`,
and those of inference encode, denoise, decode. Where the configuration has whole volumes pass
through the model in training, such a validation follows the step.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from volumediff.autoencoders import Autoencoder
from volumediff.classification import ClassPosterior
from volumediff.condition import HEALTHY, Condition
from volumediff.errors import UsageError
from volumediff.model import Batch, Model
from volumediff.planning.tracer import Tracer
from volumediff.shapes import Shape
from volumediff.training.assemble import build_recipe, channels_of
from volumediff.training.run_config import RunConfig
from volumediff.training.state import State
from volumediff.training.task import (
    Classification,
    Comparison,
    Compression,
    Diffusion,
    Task,
)

__all__ = [
    "VALIDATION",
    "Step",
    "crop_shape",
    "inference_step",
    "random_batch",
    "train_step",
    "training_step",
    "use",
    "validates",
    "volume_shape",
    "with_moments",
]

Stage = Callable[[str], AbstractContextManager[None]]
LEVEL = 0.6  # any time will do
OPTIMIZER = "optimizer"  # the stage whose temporary tensors are no activations
VALIDATION = "validation "  # begins the names of stages that training can do without


@dataclass(frozen=True)
class Step:
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
    foreach: bool | None = None,
    most: int | None = None,
) -> Step:
    """A step of training as it is from the second one on.

    Arguments:
        foreach: whether the optimizer handles all parameters at once; None leaves it to torch,
            which does so on GPUs
        most: micro-batches that are run, if not all; the third finds nothing new
    """
    optim = config.optim
    state = State.fresh(task, optim)
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            group["foreach"] = foreach
    with_moments(state)
    count = optim.batch_size // optim.accumulate // (config.processes or 1)
    sizes = [crop_shape(config)] * optim.accumulate
    micros = [random_batch(config, task, size, max(count, 1), device=device) for size in sizes]

    def run(stage: Stage) -> None:
        train_step(state, micros[:most], clip=optim.clip, stage=stage)
        if validates(config):
            whole = random_batch(config, task, volume_shape(config), 1, device=device)
            with _evaluating(task.module):
                use(task, whole, stage=lambda name: stage(VALIDATION + name))

    states = [s for o in state.optimizers.values() for s in o.state.values()]
    held = {
        "weights": [*task.module.parameters()],
        "optimizer": [*(m for s in states for m in s.values()), *state.ema.tensors.values()],
        "other": [*task.module.buffers(), *(t for b in micros for t in _tensors(b))],
    }
    return Step(held, run)


def inference_step(config: RunConfig, task: Task, *, device: torch.device | str = "cpu") -> Step:
    """A pass of inference over one whole volume."""
    batch = random_batch(config, task, volume_shape(config), 1, device=device)

    def run(stage: Stage) -> None:
        with _evaluating(task.module):
            use(task, batch, stage=stage)

    other = [*task.module.buffers(), *_tensors(batch)]
    return Step({"weights": [*task.module.parameters()], "other": other}, run)


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
    wanted = config.validation
    shows = wanted.previews and config.classifier is None and config.comparer is None
    return bool(shows) or (wanted.best is not None and config.network is not None)


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


def random_batch(
    config: RunConfig, task: Task, shape: Shape, count: int, *, device: torch.device | str = "cpu"
) -> Batch:
    """A batch as the recipe makes it, of random numbers.

    Arguments:
        shape: voxels; those of the crop also bring the coordinates that the network takes
        count: samples
    """
    recipe, c = build_recipe(config), channels_of(config)

    def noise(*size: int) -> Tensor:
        return torch.rand(size, device=device) * 2 - 1

    diffusion, classifies = isinstance(task, Diffusion), isinstance(task, Classification)
    conditioned = diffusion or isinstance(task, Comparison)
    images = recipe.image_channels(c) if conditioned else ()
    label, scalars, place = None, None, None
    if (diffusion or classifies) and recipe.classes:
        label = torch.zeros(count, dtype=torch.int64, device=device)
    if conditioned and recipe.scalars:
        scalars = noise(count, len(recipe.scalars))
    if conditioned and task.model.network.coordinates and shape == config.crop:
        place = noise(count, 3, *task.model.space.grid(shape))
    return Batch(
        noise(count, recipe.channels(c) if conditioned else c, *shape),
        tuple(range(count)),
        Condition(label=label, scalars=scalars, coordinates=place),
        tuple(noise(count, n, *shape) for n in images),
        mask=noise(count, 1, *shape) if diffusion and recipe.shows_mask else None,
        region=noise(count, 1, *shape) if diffusion and recipe.local else None,
        end=noise(count, c, *shape) if diffusion and recipe.kernel == "cold" else None,
    )


def with_moments(state: State) -> None:
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


def train_step(state: State, micros: Sequence[Batch], *, clip: float | None, stage: Stage) -> None:
    """The update of all players from micro-batches."""
    task = state.task
    for player, optimizer in state.optimizers.items():
        parameters = task.parameters()[player]
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
        state.ema.update(task.trained(), step=state.step)


def _loss(task: Task, player: str, batch: Batch, stage: Stage) -> Tensor:
    """The mean loss; the forward stage of a diffusion model begins where its network does."""
    with ExitStack() as stages:

        def begin(*_: object) -> None:
            stages.close()
            stages.enter_context(stage("forward"))

        if isinstance(task, Diffusion):
            stages.enter_context(stage("encode"))
            hook = task.model.network.register_forward_pre_hook(begin)
            stages.callback(hook.remove)
        else:
            begin()
        return task.loss(player, batch).mean()


@torch.no_grad()
def use(task: Task, batch: Batch, *, stage: Stage) -> None:
    """One pass of inference over whole volumes: encode, denoise once, decode; or guide once."""
    d, h, w = batch.x.shape[2:]
    if isinstance(task, Compression) and not isinstance(task.autoencoder, Autoencoder):
        with stage("reconstruct"):
            task.reconstruct(batch.x)
        return
    if isinstance(task, Compression):
        x = batch.x.to(task.dtype)
        with stage("encode"):
            latent = task.autoencoder.encode(x)
        with stage("decode"):
            task.autoencoder.decode(latent, (d, h, w)).to(batch.x.dtype)
        return
    if isinstance(task, Classification):
        _guide(task, batch, stage)
        return
    if isinstance(task, Comparison):
        _compare(task, batch, stage)
        return
    model = task.module
    assert isinstance(model, Model), "there are four kinds of tasks"
    with stage("encode"):
        z = model.encode(batch.x)
        condition = model.told(batch.condition, batch.images, batch.mask)
        condition = model.referred(condition, z)
        noise = model.noise(batch.keys, tuple(batch.x.shape[1:]))(0)
    with stage("denoise"):
        t = torch.full((len(z),), LEVEL, dtype=torch.float64, device=z.device)
        # A sampler holds on to the state and the noise while the network runs.
        z_t = model.kernel.corrupt(z, t, noise)
        x0 = model.denoise(z_t, t, condition).x0
    with stage("decode"):
        model.decode(x0, (d, h, w))


def _guide(task: Classification, batch: Batch, stage: Stage) -> None:
    """What guidance asks of a classifier: a gradient in the state."""
    module = task.module
    with stage("encode"):
        z = module.space.encode(batch.x)
    posterior = ClassPosterior(
        module.log_probability, module.kernel.schedule, module.classifier.classes, ""
    )
    with stage("guide"):
        t = torch.full((len(z),), LEVEL, dtype=torch.float64, device=z.device)
        posterior.gradient(z, t, label=HEALTHY)


def _compare(task: Comparison, batch: Batch, stage: Stage) -> None:
    """What a map asks of a comparer, on a one-step estimate."""
    x, module = batch.images[-1], task.module
    with stage("reconstruct"):
        healthy = module.reconstruct(x, batch.keys, batch.condition, batch.images[:-1])
    with stage("compare"):
        module.probability(x, healthy)
