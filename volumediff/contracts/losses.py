"""The contract of loss terms: one finite number per sample, least for the true clean state."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from volumediff.compatibility.training import training_problem
from volumediff.condition import Condition
from volumediff.contracts.requirements import built, equal, require
from volumediff.kernels._base import Kernel, Prediction
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses._base import LossContext, LossTerm
from volumediff.networks.unet import UNet
from volumediff.noise import GaussianNoise
from volumediff.randomness import normal
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel

__all__ = ["check_loss"]

SHAPE = (8, 8, 8)
LABELS = 2
SCHEDULE = Cosine()


def check_loss(cls: type, **arguments: Any) -> None:
    """One loss per sample, of the sample alone; errors cost; others' weights stay untouched."""
    term: LossTerm = built(cls, arguments, {})
    found = 0
    for kernel in _kernels():
        recipe = LabelDiffusion(labels=tuple(range(1, LABELS + 1)))
        problem = training_problem(recipe, Voxel(), kernel, GaussianNoise(), [term])
        if problem is not None:
            require("\n" not in problem, "Its refusal is not one line.")
            continue
        _check(term, recipe, kernel)
        found += 1
    require(found, "It refuses every kernel.")


def _kernels() -> Iterator[Kernel]:
    for prediction in ("x0", "eps", "v"):
        yield Gaussian(SCHEDULE, prediction=prediction)
    yield Gaussian(SCHEDULE, prediction="v", variance="learned")
    yield Discrete(SCHEDULE)


def _check(term: LossTerm, recipe: LabelDiffusion, kernel: Kernel) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        side = term.side(LABELS, 1)
    right, wrong = (_context(recipe, kernel, side, wrong=share) for share in (0.0, 1.0))
    good, bad = term(right), term(wrong)
    require(good.shape == (3,), "There is not one loss per sample.")
    require(good.isfinite().all() and bad.isfinite().all(), "The loss is not finite.")
    require(good.dtype in (torch.float32, torch.float64), "Losses must be at least in float32.")
    require(
        side is not None or (bad > good).all(),
        "The true clean state costs as much as a wrong one.",
    )
    for i in range(3):
        alone = term(_part(wrong, slice(i, i + 1)))
        text = "A sample's loss depends on its batch."
        equal(alone.detach(), bad[i : i + 1].detach(), text, rtol=1e-4)
    output = wrong.output.clone().requires_grad_()
    again = replace(wrong, output=output, prediction=kernel.predict(output, wrong.z_t, wrong.t))
    if term.prepared:
        # The network's answer to the image alone, in place of that to the noisy state.
        output = wrong.condition.prepared[1].clone().requires_grad_()
        again = replace(again, condition=again.condition.replace(prepared=(output, output)))
    term(again).sum().backward()
    reached = output.grad is not None and bool(output.grad.abs().any())
    require(reached, "It says nothing to the network.")
    reached = side is None or any(p.grad is not None for p in side.parameters())
    require(reached, "Its own network learns nothing.")


def _context(
    recipe: LabelDiffusion, kernel: Kernel, side: nn.Module | None, *, wrong: float
) -> LossContext:
    label = torch.zeros((3, 1, *SHAPE), dtype=torch.uint8)
    label[:, :, 1:4, 1:5, 2:6], label[:, :, 5:, 4:7, 1:4] = 1, 2
    x = torch.cat([(label == v).float() for v in recipe.labels], dim=1) * 2 - 1
    noise = normal(tuple(x.shape), "contracts", "noise")
    t = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    image = normal((3, 1, *SHAPE), "contracts", "image")
    widths = {"widths": (4,), "blocks": 1, "groups": 2}
    network = UNet(LABELS, LABELS, image_channels=1, conditioner="anchor", **widths)
    z_t = kernel.corrupt(x, t, noise)
    other = (x + wrong * normal(tuple(x.shape), "contracts", "other")).clamp(-1, 1)
    output = _output(kernel, other, z_t, t)
    return LossContext(
        space=Voxel(),
        frame=Voxel(),
        kernel=kernel,
        network=network,
        recipe=recipe,
        x=x,
        images=(image,),
        distance_mm=normal(tuple(x.shape), "contracts", "distance").abs(),
        # The gate, and what the image branch says of the clean state.
        condition=Condition(image=image, prepared=(0 * x, other)),
        output=output,
        z_0=x,
        z_t=z_t,
        t=t,
        noise=noise,
        prediction=kernel.predict(output, z_t, t),
        side=side,
    )


def _output(kernel: Kernel, x0: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """A network's output that says so of the clean state."""
    if isinstance(kernel, Discrete):
        return 4 * x0
    assert isinstance(kernel, Gaussian), "_kernels"
    read = Prediction.from_x0(x0, z_t, *kernel.schedule(t))
    said = getattr(read, kernel.prediction)
    # a standard deviation in the middle of its range
    return torch.cat([said, 0 * said], dim=1) if kernel.variance == "learned" else said


def _part(context: LossContext, i: slice) -> LossContext:
    """The context of some of its samples."""
    kernel, z_t, t = context.kernel, context.z_t[i], context.t[i]
    distance = context.distance_mm
    return replace(
        context,
        x=context.x[i],
        images=tuple(image[i] for image in context.images),
        distance_mm=None if distance is None else distance[i],
        condition=context.condition.map(lambda c: c[i]),
        output=context.output[i],
        z_0=context.z_0[i],
        z_t=z_t,
        t=t,
        noise=context.noise[i],
        prediction=kernel.predict(context.output[i], z_t, t),
    )
