r"""Memorization: does a model draw volumes that it was trained on?

Of every vector the distance to its nearest training volume is compared with that to its nearest
held-out volume,

.. math:: r = \log \frac{\min_t d(q, t)}{\min_h d(q, h)}.

Held-out volumes, each without itself, say what r is for volumes that nobody copied. Their r are
taken to be normal: a sample is flagged where it lies below what one more held-out volume would
with the probability `rate`,

.. math:: r < \bar r + t_{\text{rate}, n-1}\, s \sqrt{1 + 1/n},

and where its nearest training volume is at least a quarter nearer than its nearest held-out one:
a difference that is none but by the number of volumes is no copy.

`Thumbnails` measures distances of volumes such that copies stay near when they are a bit changed:
means over blocks (noise) in which training volumes differ (not the air around them), standardised
(intensity scale and offset), without the mean of the training volumes (what all have in common),
by the angle between them; the nearest of the eight mirror images and of the 27 shifts by up to one
voxel along each axis, to the training volume as it is or blurred.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "MIN_HELD_OUT",
    "MemorizationTest",
    "NearestTraining",
    "Thumbnails",
    "memorization",
    "thumbnails",
]

MIN_HELD_OUT = 5
SIDE = 12  # blocks along the longest axis
SPREAD = 0.1  # of the largest deviation over the training volumes: blocks with less are air
TINY = 1e-6
NEARER = 0.75  # distance to a copied volume over that to the nearest held-out one, at most


@dataclass(frozen=True)
class NearestTraining:
    """A volume and its nearest training volume.

    Arguments:
        training: index of the nearest training volume
        distance: to it
        ratio: r, the log of the distance to it over that to the nearest held-out volume
        p: how often a volume that nobody copied has a smaller r
    """

    training: int
    distance: float
    ratio: float
    p: float


@dataclass(frozen=True)
class MemorizationTest:
    """NearestTraining neighbours of samples, and of held-out volumes.

    Arguments:
        samples: in their order
        held_out: r of the held-out volumes
        rate: share of volumes that nobody copied that are flagged by chance, at most
    """

    samples: Sequence[NearestTraining]
    held_out: Sequence[float]
    rate: float

    @property
    def flagged(self) -> list[int]:
        """Samples that are nearer to a training volume than chance allows."""
        limit = math.log(NEARER)
        return [
            i for i, each in enumerate(self.samples) if each.p < self.rate and each.ratio <= limit
        ]


def memorization(
    to_training: Float[np.ndarray, "n t"],
    to_held_out: Float[np.ndarray, "n h"],
    *,
    held_to_training: Float[np.ndarray, "h t"],
    between_held_out: Float[np.ndarray, "h h"],
    rate: float,
) -> MemorizationTest:
    """The test of samples, from distances.

    Arguments:
        to_training, to_held_out: of the samples
        held_to_training: of the held-out volumes
        between_held_out: of the held-out volumes; infinite where two must not be compared, such as
            a volume with itself
        rate: in (0, 1/2)

    Raises:
        ValueError: fewer than `MIN_HELD_OUT` held-out volumes
    """
    from scipy.stats import t

    n = len(held_to_training)
    if n < MIN_HELD_OUT:
        raise ValueError(f"expected at least {MIN_HELD_OUT} held-out volumes, got {n}")
    known = _ratios(held_to_training, between_held_out)
    spread = max(float(known.std(ddof=1)), TINY) * math.sqrt(1 + 1 / n)
    found = _ratios(to_training, to_held_out)
    p = t.cdf((found - known.mean()) / spread, n - 1)
    samples = [
        NearestTraining(int(row.argmin()), float(row.min()), float(r), float(q))
        for row, r, q in zip(to_training, found, p, strict=True)
    ]
    return MemorizationTest(samples, known.tolist(), rate)


def _ratios(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(near.min(1), TINY)) - np.log(np.maximum(far.min(1), TINY))


def thumbnails(x: Float[Tensor, "c d h w"]) -> Float[np.ndarray, "28 c a b e"]:
    """Means over blocks: of the volume, of its shifts by a voxel, and last of the volume blurred.

    There are about `SIDE` blocks along the longest axis. Planes at the border are repeated, and
    the blur is a mean over 3 x 3 x 3 voxels.
    """
    longest = max(x.shape[1:])
    size = [min(n, max(1, round(SIDE * n / longest))) for n in x.shape[1:]]
    d, h, w = x.shape[1:]
    padded = F.pad(x.float()[None], (1,) * 6, mode="replicate")
    steps = sorted(itertools.product(range(3), repeat=3), key=lambda s: s != (1, 1, 1))
    volumes = [padded[:, :, i : i + d, j : j + h, k : k + w] for i, j, k in steps]
    volumes.append(F.avg_pool3d(padded, 3, 1))
    return torch.cat([F.adaptive_avg_pool3d(v, size) for v in volumes]).cpu().numpy()


class Thumbnails:
    """Distances between volumes by their thumbnails, in [0, 2].

    Arguments:
        training: thumbnails of the training volumes, whose mean all have in common
    """

    def __init__(self, training: Sequence[Float[np.ndarray, "k c a b e"]]) -> None:
        views = np.stack([_views(each) for each in training], axis=1)
        spread = _standardised(views[0].reshape(*views[0].shape[:2], -1)).std(0).max(0)
        self._inside = (spread >= SPREAD * spread.max()).reshape(views[0].shape[2:])
        self._means = [self._standard(view).mean(0) for view in views]
        self._training = self._views_of(training)

    def to_training(self, query: Float[np.ndarray, "28 c a b e"]) -> Float[np.ndarray, "t"]:
        """Distances of a volume to the training volumes."""
        return self._least(query, self._training)

    def between(
        self,
        query: Float[np.ndarray, "28 c a b e"],
        others: Sequence[Float[np.ndarray, "k c a b e"]],
    ) -> Float[np.ndarray, "m"]:
        """Distances of a volume to others."""
        return self._least(query, self._views_of(others))

    def _views_of(self, volumes: Sequence[np.ndarray]) -> list[np.ndarray]:
        views = np.stack([_views(each) for each in volumes], axis=1)
        return [self._directions(v, mean) for v, mean in zip(views, self._means, strict=True)]

    def _least(self, query: np.ndarray, views: Sequence[np.ndarray]) -> np.ndarray:
        found = [
            (1 - self._directions(np.flip(query[:-1], axes), mean) @ directions.T).min(0)
            for mean, directions in zip(self._means, views, strict=True)
            for count in range(4)
            for axes in itertools.combinations((2, 3, 4), count)
        ]
        return np.min(found, axis=0)

    def _directions(self, of: np.ndarray, mean: np.ndarray) -> np.ndarray:
        flat = (self._standard(of) - mean).reshape(len(of), -1)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), TINY)

    def _standard(self, of: np.ndarray) -> np.ndarray:
        return _standardised(of[:, :, self._inside])


def _views(thumbnails: Float[np.ndarray, "k c a b e"]) -> Float[np.ndarray, "2 c a b e"]:
    """Those of the volume as it is and blurred."""
    return thumbnails[[0, -1]]


def _standardised(of: Float[np.ndarray, "n c p"]) -> Float[np.ndarray, "n c p"]:
    x = of.astype(np.float64)
    deviation = x.std(2, keepdims=True)
    return (x - x.mean(2, keepdims=True)) / np.maximum(deviation, TINY)
