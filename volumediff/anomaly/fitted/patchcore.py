r"""PatchCore: distance of a feature to the nearest of a memory bank of healthy ones,

.. math:: a_p = \min_{m \in M} |f_p - m|,

M a greedy k-center subset of the locally averaged features of healthy volumes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.fitted._source import FeatureSource
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Requirement
from volumediff.randomness import generator, normal, uniform
from volumediff.randomness import key as key_of

__all__ = ["PatchCore", "k_centers", "nearest"]


@dataclass(frozen=True, kw_only=True)
class PatchCore(Fitted):
    r"""Nearest healthy feature anywhere in the foreground; no alignment needed.

    The re-weighted score of the volume goes to the score `reported`,

    .. math:: s = \Big(1 - \frac{e^{|f^* - m^*|}}{\sum_{m \in N_b(m^*)} e^{|f^* - m|}}\Big)
              |f^* - m^*|,

    f* the feature that is farthest from the bank, m* its nearest neighbour there, N_b(m*) the b
    nearest neighbours of m* in the bank, m* among them.

    Fitting keeps `candidates` features of 4 F bytes, one draw over all volumes; the search keeps
    `chunk` times `size` distances.

    Arguments:
        features: of the model
        average: positions per axis that are averaged to one feature; odd
        candidates: features that the subset is chosen from
        size: features of the bank
        projection: dimensions of the random projection that the subset is chosen in
        neighbours: b
        chunk: features searched at a time; no result depends on it

    References:
        Roth et al. (2021), Towards Total Recall in Industrial Anomaly Detection, arXiv:2106.08265
    """

    features: FeatureSource = field(default_factory=FeatureSource)
    average: int = 3
    candidates: int = 20_000
    size: int = 2_000
    projection: int = 128
    neighbours: int = 9
    chunk: int = 4_096

    def __post_init__(self) -> None:
        if self.average % 2 == 0:
            raise ValueError(f"average: expected an odd number of positions, got {self.average}.")
        least = min(self.candidates, self.size, self.projection, self.neighbours, self.chunk)
        if least < 1:
            raise ValueError(f"expected sizes of at least 1, got {least}.")

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What shapes the bank."""
        return self.features, self.average, self.candidates, self.size, self.projection

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Such features."""
        return (self.features.needed("fitted patchcore"),)

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """The memory bank.

        Raises:
            ValueError: no volumes
        """
        assert model is not None, "checked"
        volumes = 0
        pool, ranks = torch.empty(0), torch.empty(0)
        for example in examples:
            rows = self._averaged(model, example)[:, self.features.inside(example)].T.cpu()
            drawn = torch.rand(len(rows), generator=generator(key, "candidates", volumes))
            pool = torch.cat([pool, rows]) if volumes else rows
            # the lowest ranks of all volumes are a uniform draw without replacement
            ranks = torch.cat([ranks, drawn])
            order = ranks.argsort(stable=True)[: self.candidates]
            pool, ranks, volumes = pool[order], ranks[order], volumes + 1
        if volumes == 0:
            raise ValueError("patchcore: expected healthy volumes, got none.")
        low = pool
        if pool.shape[1] > self.projection:
            shape = (pool.shape[1], self.projection)
            low = pool @ normal(shape, key, "projection") / math.sqrt(self.projection)
        chosen = k_centers(low, self.size, key=key_of(key, "centers"))
        return Fit({"bank": pool[chosen].contiguous()}, volumes)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The distances, interpolated to the voxels, and the score as the only error."""
        assert model is not None, "checked"
        bank = self.learnt.to(example.x)["bank"]
        f, inside = self._averaged(model, example), self.features.inside(example)
        rows = f[:, inside].T
        distances, index = nearest(rows, bank, chunk=self.chunk)
        a = torch.zeros(f.shape[1:], device=f.device)
        a[inside] = distances
        errors = _reweighted(rows, bank, distances, index, self.neighbours)
        return RawLocalization(self.features.voxels(a, example), None, errors=errors)

    def _averaged(self, model: Learned, example: Example) -> Tensor:
        f = self.features(model, example)[None]
        reach = self.average // 2
        return F.avg_pool3d(f, self.average, 1, reach, count_include_pad=False)[0]


def k_centers(rows: Float[Tensor, "n f"], size: int, *, key: int) -> Int[Tensor, "m"]:
    """Indices of a greedy k-center subset: each next row is the farthest from those before.

    The first is drawn; all rows where there are no more than `size`. It keeps n distances.

    References:
        Sener, Savarese (2018), Active Learning for Convolutional Neural Networks,
        arXiv:1708.00489, algorithm 1
    """
    if len(rows) <= size:
        return torch.arange(len(rows))
    chosen = [int(uniform(key) * len(rows))]
    distances = (rows - rows[chosen[0]]).square().sum(1)
    while len(chosen) < size:
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


def nearest(
    rows: Float[Tensor, "n f"], bank: Float[Tensor, "m f"], *, chunk: int
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Distance to the nearest row of the bank, and its index; `chunk` rows at a time."""
    found = [_distances(part, bank).min(dim=1) for part in rows.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _distances(rows: Tensor, bank: Tensor) -> Tensor:
    # differences, not products: a matrix product would round differently for another chunk
    return torch.cdist(rows, bank, compute_mode="donot_use_mm_for_euclid_dist")


def _reweighted(
    rows: Tensor, bank: Tensor, distances: Tensor, index: Tensor, neighbours: int
) -> Float[Tensor, "1"]:
    """Equation 7: an anomaly far from a healthy feature that is itself rare counts less."""
    worst = int(distances.argmax())
    near = _distances(bank[index[worst]][None], bank)[0].argsort(stable=True)[:neighbours]
    to_near = _distances(rows[worst][None], bank[near])[0]
    # m* is the first of its own neighbours; with it alone nothing can be weighed
    weight = 1 - to_near.softmax(0)[0] if len(near) > 1 else torch.ones_like(to_near[0])
    return (weight * distances[worst])[None]
