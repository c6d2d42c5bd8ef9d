r"""Artefacts of the scanner that are no lesions, and on which a detector must not fire.

TorchIO's deterministic transforms, with parameters drawn from the key: the head moves during the
acquisition (k-space put together from several poses), a pulsation makes ghosts along one axis
(every n-th line of k-space is weaker), the receive coil shades the image (a multiplicative
polynomial). Everything that changes is an artefact: there is no mask.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness

__all__ = ["DISTRACTORS", "distract"]


def _between(low: float, high: float, *parts: int | str) -> float:
    return low + (high - low) * randomness.uniform(*parts)


def _motion(image: object, key: int) -> object:
    import torchio  # heavy import

    moves = 2
    times = np.sort([_between(0.2, 0.8, key, "time", i) for i in range(moves)])
    degrees = [[_between(-3.0, 3.0, key, "degrees", i, a) for a in range(3)] for i in range(moves)]
    shifts = [[_between(-3.0, 3.0, key, "shift", i, a) for a in range(3)] for i in range(moves)]
    return torchio.Motion(np.array(degrees), np.array(shifts), times, "linear")(image)


def _ghosting(image: object, key: int) -> object:
    import torchio  # heavy import

    axis = int(3 * randomness.uniform(key, "axis"))
    ghosts = 3 + int(5 * randomness.uniform(key, "ghosts"))
    return torchio.Ghosting(ghosts, axis, _between(0.3, 0.8, key, "intensity"), 0.02)(image)


def _bias(image: object, key: int) -> object:
    import torchio  # heavy import

    drawn = 0.15 * randomness.normal((20,), key, "bias")  # order 3 in three dimensions
    return torchio.BiasField(drawn.tolist(), 3)(image)


DISTRACTORS: dict[str, Callable[[object, int], object]] = {
    "motion": _motion,
    "ghosting": _ghosting,
    "bias": _bias,
}


def distract(
    x: Float[Tensor, "c d h w"],
    foreground: Bool[Tensor, "1 d h w"],
    *,
    kind: str,
    key: int,
    spacing_mm: tuple[float, float, float],
) -> Float[Tensor, "c d h w"]:
    """The volume with one artefact inside the foreground, intensities in [-1, 1].

    Arguments:
        x: volume with background -1, which is no signal
        foreground: nothing changes outside, as after skull-stripping
        kind: one of `DISTRACTORS`
        key: everything random is a function of it
        spacing_mm: voxel size along d, h, w; movements are in millimetres
    """
    if kind not in DISTRACTORS:
        raise ValueError(f"kind: expected one of {', '.join(DISTRACTORS)}, got {kind!r}.")
    import torchio  # heavy import

    image = torchio.ScalarImage(tensor=(x + 1).clone(), affine=np.diag([*spacing_mm, 1.0]))
    # Even TorchIO's deterministic transforms draw once, whether to apply themselves.
    with torch.random.fork_rng(devices=[]):
        changed = DISTRACTORS[kind](image, key).data.to(x) - 1
    return torch.where(foreground, changed.clamp(-1, 1), x)
