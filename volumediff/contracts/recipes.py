"""The contract of recipes: keyed targets with the promised channels, and a finite loss."""

from typing import Any

import torch
from torch import Tensor

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.contracts.requirements import built, equal, require, untouched
from volumediff.kernels.cold import Cold
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.randomness import normal
from volumediff.recipes._base import Recipe, Subject, Target
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel

__all__ = ["check_recipe"]

SHAPE = (8, 8, 8)
CHANNELS = 2
USUAL = {"attribute": "group", "values": ["control", "patient"], "labels": [1, 2]}


def check_recipe(cls: type, **arguments: Any) -> None:
    """Targets are functions of volume and key; what they hold is what the recipe declares."""
    recipe: Recipe = built(cls, arguments, USUAL)
    require(recipe.problem(CHANNELS) is None, f"It refuses volumes: {recipe.problem(CHANNELS)}")
    subjects = [_subject(i) for i in range(2)]

    def drawn(subject: Subject, key: int) -> Target:
        return recipe.target(subject, atlas=_atlas(recipe), key=key)

    for subject in subjects:
        first = untouched(
            {"the volume": subject.x},
            lambda s=subject: recipe.target(s, atlas=_atlas(recipe), key=3),
        )
        _declared(recipe, subject, first)
        again = drawn(subject, 3)
        _same(first, again, "The same key gives another target.")
        others = [drawn(subject, k) for k in range(4, 8)]
        if recipe.fixed:
            for other in others:
                _same(first, other, "It says that targets are fixed, and they depend on the key.")
    _loss(recipe, [drawn(s, 3) for s in subjects])


def _subject(i: int) -> Subject:
    x = normal((CHANNELS, *SHAPE), "contracts", "x", i).tanh() * 0.9
    foreground = torch.zeros((1, *SHAPE), dtype=torch.bool)
    foreground[:, 1:-1, 1:-1, 1:-1] = True
    label = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    label[:, 2:4, 2:4, 2:4], label[:, 5:, 5:, 5:] = 1, 2
    attributes = {"group": ("control", "patient")[i], "age": 50.0}

    def donor(key: int) -> Tensor:
        return normal((CHANNELS, *SHAPE), "contracts", "donor", key).tanh() * 0.9

    return Subject(x, label, foreground, attributes, (2.0, 2.0, 2.0), donor)


def _atlas(recipe: Recipe) -> Tensor | None:
    return torch.zeros((CHANNELS, *SHAPE)) if recipe.atlas else None


def _parts(target: Target) -> dict[str, Tensor]:
    named = {f"image {i}": image for i, image in enumerate(target.images)}
    for name in ("x", "mask", "region", "end"):
        value = getattr(target, name)
        named |= {} if value is None else {name: value}
    return named


def _declared(recipe: Recipe, subject: Subject, target: Target) -> None:
    require(
        tuple(target.x.shape) == (recipe.channels(CHANNELS), *SHAPE),
        f"channels says {recipe.channels(CHANNELS)}, and the target has shape "
        f"{tuple(target.x.shape)}.",
    )
    images = tuple(len(image) for image in target.images)
    require(
        images == recipe.image_channels(CHANNELS),
        f"image_channels says {recipe.image_channels(CHANNELS)}, and the images have {images}.",
    )
    for name, value in _parts(target).items():
        require(tuple(value.shape[1:]) == SHAPE, f"{name} is not on the grid of the volume.")
        require(value.isfinite().all(), f"{name} is not finite.")
        bounded = not name.startswith("image")
        require(not bounded or value.abs().max() <= 1 + 1e-6, f"{name} leaves [-1, 1].")
    require((target.label is not None) == bool(recipe.classes), "classes and the label disagree.")
    if target.label is not None:
        require(0 <= target.label <= recipe.classes, f"The label {target.label} is no class.")
    require((target.scalar is not None) == recipe.tells, "tells and the scalar disagree.")
    require((target.mask is not None) == recipe.shows_mask, "shows_mask and the mask disagree.")
    require((target.region is not None) == recipe.local, "local and the region disagree.")
    for mask in (target.mask, target.region):
        values = set() if mask is None else set(mask.unique().tolist())
        require(values <= {0.0, 1.0}, "A mask or region has other values than 0 and 1.")
    require(isinstance(recipe.healthy(subject.attributes), bool), "healthy must say yes or no.")


def _same(a: Target, b: Target, sentence: str) -> None:
    left, right = _parts(a), _parts(b)
    require(left.keys() == right.keys() and (a.label, a.scalar) == (b.label, b.scalar), sentence)
    for name, value in left.items():
        equal(value, right[name], sentence)


def _loss(recipe: Recipe, targets: list[Target]) -> None:
    cold = targets[0].end is not None
    schedule = Cosine()
    images = sum(recipe.image_channels(CHANNELS)) + recipe.shows_mask
    c = recipe.channels(CHANNELS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(
            c,
            c + bool(recipe.mask_loss),
            image_channels=images,
            classes=recipe.classes,
            reference_channels=c if recipe.reference else 0,
            scalars=int(recipe.tells),
            widths=(4,),
            blocks=1,
            groups=2,
        )
    kernel = Cold(schedule) if cold else Gaussian(schedule)
    model = Model(Voxel(), kernel, network, recipe=recipe)
    both = model.loss(_batch(targets, (1, 2)))
    require(both.shape == (2,), "There is not one loss per sample.")
    require(both.isfinite().all() and (both > 0).all(), "The loss is not finite or not positive.")
    for i in range(2):
        alone = model.loss(_batch(targets[i : i + 1], (i + 1,)))
        text = "A sample's loss depends on its batch."
        equal(alone.detach(), both[i : i + 1].detach(), text, rtol=1e-4)
    both.mean().backward()
    require(any(p.grad is not None for p in network.parameters()), "The loss has no gradient.")


def _batch(targets: list[Target], keys: tuple[int, ...]) -> Batch:
    def stacked(name: str) -> Tensor | None:
        values = [getattr(t, name) for t in targets]
        return None if values[0] is None else torch.stack(values)

    label = None if targets[0].label is None else torch.tensor([t.label for t in targets])
    scalars = torch.tensor([[t.scalar] for t in targets]) if targets[0].scalar else None
    return Batch(
        torch.stack([t.x for t in targets]),
        keys,
        Condition(label=label, scalars=scalars),
        images=tuple(torch.stack(i) for i in zip(*(t.images for t in targets), strict=True)),
        **{name: stacked(name) for name in ("mask", "region", "end")},
    )
