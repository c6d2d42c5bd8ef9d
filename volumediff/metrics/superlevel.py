r"""Superlevel sets of a map, {a > t}: their components as a function of the threshold t.

The upper part of a map is kept as it is: the voxels of the foreground above a floor, a few bytes
each. From it follows, exactly and for every threshold from the floor on, what components the mask
has: how many of at least m voxels,

.. math:: N_m(t) = |\{C \text{ a component of } \{a > t\} : |C| \ge m\}|,

and their peak, volume and mass. N is a step function of t that rises and falls: components appear
at their peak, and join where their paths meet. It changes at the values of the map alone, and is
found in one pass from the highest value down: the minimum spanning tree of the voxels' graph,
whose edges weigh the lower of their two ends, has the same components at every threshold
(Kruskal), and a union-find with sizes counts them.

References:
    Najman and Couprie (2006), Building the Component Tree in Quasi-Linear Time, IEEE TIP 15:3531
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.metrics.components import labelled, least_voxels

__all__ = ["STORED_SHARE", "Clusters", "Steps", "UpperPart", "upper_part"]

# Share of a foreground that is kept. Masks of thresholds that mark more than a twentieth of a
# healthy volume are of no use.
STORED_SHARE = 0.05
# One of each pair of opposite neighbours of the 26.
HALF = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]


@dataclass(frozen=True, eq=False)
class Steps:
    """A count by threshold: `counts[k]` for thresholds in [levels[k + 1], levels[k]).

    Arguments:
        levels: values of the map at which the count changes, falling; above the first it is 0
        counts: one per level
        floor: lowest threshold for which it is known
    """

    levels: Float[np.ndarray, "n"]
    counts: np.ndarray
    floor: float

    def at(self, threshold: float) -> int | None:
        """The count at a threshold; None below the floor."""
        if threshold < self.floor:
            return None
        above = int(np.searchsorted(-self.levels, -threshold, side="left"))  # levels > threshold
        return int(self.counts[above - 1]) if above else 0

    @property
    def most_above(self) -> np.ndarray:
        """The largest count at each level or any threshold above it; never falls."""
        return np.maximum.accumulate(self.counts)


@dataclass(frozen=True, eq=False)
class Clusters:
    """The components of one mask, largest first.

    Arguments:
        peak: highest value of the map in each
        extent_ml: volume in millilitres
        mass: integral over the component of the map's height above the threshold, in units of
            the map times millilitres
    """

    peak: Float[np.ndarray, "k"]
    extent_ml: Float[np.ndarray, "k"]
    mass: Float[np.ndarray, "k"]


@dataclass(frozen=True, eq=False)
class UpperPart:
    """The voxels of a foreground whose map value lies above a floor.

    Arguments:
        shape: of the volume
        voxel_ml: volume of a voxel, in millilitres
        index: places of the voxels, flat, rising
        values: of the map there, float32
        floor: all other voxels of the foreground have at most this value
    """

    shape: tuple[int, int, int]
    voxel_ml: float
    index: np.ndarray
    values: Float[np.ndarray, "n"]
    floor: float

    def steps(self, volume_ml: float) -> Steps:
        """How many components of at least a volume there are, by threshold.

        Arguments:
            volume_ml: smallest volume that counts, in millilitres
        """
        least = least_voxels(volume_ml, self.voxel_ml)
        order = np.argsort(-self.values, kind="stable")
        rank = np.empty(len(order), dtype=np.int64)  # of each voxel, the highest first
        rank[order] = np.arange(len(order))
        edges = _spanning_tree(self, rank)
        # a voxel comes with its rank, an edge with its lower end, after it
        parent, size = np.arange(len(order)).tolist(), [1] * len(order)

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        count, counts, e = 0, [], 0
        first, second = (end.tolist() for end in edges)
        for k in range(len(order)):
            count += least <= 1
            while e < len(second) and second[e] == k:
                a, b = root(first[e]), root(k)
                together = size[a] + size[b]
                count += (together >= least) - (size[a] >= least) - (size[b] >= least)
                parent[b], size[a] = a, together
                e += 1
            counts.append(count)
        levels = self.values[order].astype(np.float64)
        found = np.asarray(counts, dtype=np.int64)
        last = np.append(levels[1:] != levels[:-1], True)[: len(levels)]  # of equal values
        levels, found = levels[last], found[last]
        changed = np.diff(found, prepend=0) != 0
        return Steps(levels[changed], found[changed], self.floor)

    def clusters(self, threshold: float, *, volume_ml: float) -> Clusters | None:
        """The components of the mask at a threshold; None below the floor.

        Arguments:
            threshold: the mask is where the map is higher
            volume_ml: smallest volume that counts, in millilitres
        """
        if threshold < self.floor:
            return None
        inside = self.values > threshold
        mask = np.zeros(self.shape, dtype=bool)
        mask.flat[self.index[inside]] = True
        labels, count = labelled(mask)
        number = labels.flat[self.index[inside]]
        values = self.values[inside].astype(np.float64)
        size = np.bincount(number, minlength=count + 1)[1:]
        height = np.bincount(number, weights=values - threshold, minlength=count + 1)[1:]
        peak = np.full(count, -np.inf)
        np.maximum.at(peak, number - 1, values)
        kept = np.flatnonzero(size >= least_voxels(volume_ml, self.voxel_ml))
        kept = kept[np.argsort(-size[kept], kind="stable")]
        return Clusters(peak[kept], size[kept] * self.voxel_ml, height[kept] * self.voxel_ml)


def upper_part(
    a: Float[Tensor, "1 1 d h w"],
    *,
    foreground: Bool[Tensor, "1 1 d h w"],
    spacing_mm: tuple[float, float, float],
    share: float = STORED_SHARE,
) -> UpperPart:
    """The upper part of a finished map.

    Arguments:
        a: the map
        foreground: voxels that count
        spacing_mm: voxel size along d, h, w
        share: of the foreground that is kept, in (0, 1]; of equal values all or none

    Raises:
        ValueError: no foreground
    """
    values = a[0, 0].detach().float().cpu().numpy().ravel()
    places = np.flatnonzero(foreground[0, 0].cpu().numpy().ravel())
    if not len(places):
        raise ValueError("expected a foreground with voxels, got an empty one.")
    inside = values[places]
    k = int(share * len(inside))  # kept at most
    if k >= len(inside):
        floor = float(np.nextafter(inside.min(), np.float32(-np.inf)))
    else:
        floor = float(np.partition(inside, len(inside) - 1 - k)[len(inside) - 1 - k])
    kept = inside > floor
    d, h, w = a.shape[2:]
    voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    return UpperPart((d, h, w), voxel_ml, places[kept].astype(np.int32), inside[kept], floor)


def _spanning_tree(part: UpperPart, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of a minimum spanning forest, as ranks of the higher and the lower end, by the latter.

    An edge weighs the rank of its lower end plus 1, so that no weight is zero.
    """
    from scipy.sparse import coo_matrix  # heavy import
    from scipy.sparse.csgraph import minimum_spanning_tree

    n = len(rank)
    place = np.full(np.add(part.shape, 2), -1, dtype=np.int64)
    at = np.stack(np.unravel_index(part.index.astype(np.int64), part.shape)) + 1
    place[tuple(at)] = rank
    pairs = []
    for step in HALF:
        other = place[tuple(at + np.asarray(step)[:, None])]
        there = other >= 0
        pairs.append(np.stack([rank[there], other[there]]))
    ends = np.sort(np.concatenate(pairs, axis=1), axis=0)
    graph = coo_matrix((ends[1] + 1.0, (ends[0], ends[1])), shape=(n, n)).tocsr()
    tree = minimum_spanning_tree(graph).tocoo()
    high, low = np.minimum(tree.row, tree.col), np.maximum(tree.row, tree.col)
    order = np.argsort(low, kind="stable")
    return high[order], low[order]
