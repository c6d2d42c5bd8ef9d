"""The contract of translators: a known law of the targets, and nothing else decides."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from volumediff.condition import Condition
from volumediff.contracts.closed_form import KnownDenoiser
from volumediff.contracts.requirements import built, equal, require, untouched
from volumediff.contracts.scenes import INSIDE, SHAPE
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.randomness import normal
from volumediff.recipes.translation import Translation
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.translation.translators._base import TranslationPair, Translator

__all__ = ["check_translator"]

SCHEDULE = Cosine(zero_terminal_snr=True)
MEAN, STD = 0.3, 0.05  # of every target voxel, whatever the source


def check_translator(cls: type, **arguments: Any) -> None:
    """Draws have the shape and the law of the targets; they depend on volume and key alone."""
    made: Translator = built(cls, arguments)
    model = Model(
        Voxel(),
        Gaussian(SCHEDULE, prediction="x0"),
        KnownDenoiser(SCHEDULE, means=(MEAN,), std=STD, image_channels=1),
        recipe=Translation(),
    )
    made.check(model)
    if made.learns:
        made = untouched_fit(made)
    source = normal((1, 1, *SHAPE), "contracts", "source").tanh() * 0.9

    def drawn(x: Tensor, key: int) -> list[Tensor]:
        call = made.draws(model, x, foreground=INSIDE, key=key, condition=Condition())
        return list(call)

    first = untouched({"the source": source}, lambda: drawn(source, 1))
    require(first, "It draws nothing.")
    for x in first:
        require(tuple(x.shape) == (1, 1, *SHAPE), f"A draw has shape {tuple(x.shape)}.")
        require(x.isfinite().all(), "A draw is not finite.")
        values = x[INSIDE]
        require(
            abs(float(values.mean()) - MEAN) < 4 * STD / len(values) ** 0.5 + STD / 2,
            f"The targets have the mean {MEAN}, and draws have {float(values.mean()):.3g}.",
        )
    for a, b in zip(first, drawn(source, 1), strict=True):
        equal(a, b, "The same key gives another draw.")
    require(
        len(first) < 2 or not torch.equal(first[0], first[1]),
        "Two draws of one volume are the same.",
    )


def untouched_fit(made: Translator) -> Translator:
    """The translator, fitted on volumes that it must leave as they are, each read once."""
    pairs = [_pair(i) for i in range(3)]
    asked = []

    def once() -> Iterator[TranslationPair]:
        for i, pair in enumerate(pairs):
            asked.append(i)
            yield pair

    tensors = {f"source {i}": p.sources for i, p in enumerate(pairs)}
    found = untouched(tensors, lambda: made.fit(once()))
    require(asked == [0, 1, 2], "It does not look at every training volume once.")
    require(found is not made, "A translator that learns must be another one afterwards.")
    return found


def _pair(i: int) -> TranslationPair:
    source = normal((1, *SHAPE), "contracts", "source", i).tanh() * 0.9
    target = MEAN + STD * normal((1, *SHAPE), "contracts", "target", i)
    return TranslationPair(source, target, INSIDE[0])
