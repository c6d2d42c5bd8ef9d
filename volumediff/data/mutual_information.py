r"""How much one volume tells about another that an affine map puts onto it, and in which direction
the map should change.

With the reference's value in bin a of each sampled voxel y, and the other's value at M y spread
over bins b by cubic B-splines (Parzen windows),

.. math:: I(M) = \sum_{a, b} p(a, b) \log \frac{p(a, b)}{p(a)\,p(b)}, \qquad
          \frac{\partial I}{\partial x_i} = \frac{1}{n} \sum_b \beta'(x_i - b)
          \log \frac{p(a_i, b)}{p(b)}.

Sums run in a fixed order in one thread, so equal inputs give equal bytes.

References:
    Mattes et al. (2003), PET-CT image registration in the chest using free-form deformations
    Thévenaz and Unser (2000), Optimization of mutual information for multiresolution image
        registration (the derivative)
    Studholme et al. (1999), An overlap invariant entropy measure of 3D medical image alignment
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from volumediff.data.grid import Grid

__all__ = ["BINS", "CLIP", "Information", "mutual_information"]

BINS = 32
# Bright fat, vessels and metal would take most of the bins.
CLIP = (0.5, 99.5)
BORDER = 2  # bins at each end that a cubic B-spline may reach into


@dataclass(frozen=True, eq=False)
class Information:
    """Mutual information of two volumes as a function of the map between them.

    Arguments:
        points_mm: sampled voxels of the reference
        codes: their bins
        x: the other volume
        grid: of `x`
        low, high: values of `x` that the bins span; the rest counts as one of them
    """

    points_mm: Float[np.ndarray, "n 3"]
    codes: Int[np.ndarray, " n"]
    x: Float[np.ndarray, "d h w"]
    grid: Grid
    low: float
    high: float

    def seen(self, matrix: Float[np.ndarray, "4 4"]) -> float:
        """The share of the sampled voxels that the map takes into the other volume."""
        at = _mapped(self.points_mm, np.linalg.inv(self.grid.affine) @ matrix)
        return float(_inside(at, self.grid.shape).mean())

    def at(self, matrix: Float[np.ndarray, "4 4"]) -> tuple[float, Float[np.ndarray, "3 4"]]:
        """I in nats, and its derivative by the upper rows of the matrix.

        Voxels that the map takes out of the other volume say nothing; if fewer than a tenth are
        left, I is 0.

        Arguments:
            matrix: M, from the reference's millimetres to the other's
        """
        to_voxel = np.linalg.inv(self.grid.affine)
        at = _mapped(self.points_mm, to_voxel @ matrix)
        kept = _inside(at, self.grid.shape)
        n = int(kept.sum())
        if n < max(len(kept) // 10, 1):
            return 0.0, np.zeros((3, 4))
        values, slope = _interpolated(self.x, at[kept])
        width = (self.high - self.low) / (BINS - 2 * BORDER)
        place = np.clip((values - self.low) / width, 0, BINS - 2 * BORDER - 1e-9) + BORDER
        flat = (values <= self.low) | (values >= self.high)
        codes, first = self.codes[kept], place.astype(np.int64) - 1
        weights, slopes = _spline(place - np.floor(place))
        cells = (codes * BINS + first)[:, None] + np.arange(4)
        joint = np.bincount(cells.ravel(), weights.ravel(), BINS**2).reshape(BINS, BINS) / n
        a, b = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
        positive = joint > 0
        ratio = np.where(positive, joint / np.where(a * b > 0, a * b, 1), 1)
        value = float((joint * np.log(ratio)).sum())
        told = np.where(positive, np.log(np.where(positive, joint, 1) / np.maximum(b, 1e-300)), 0)
        change = (slopes * told.ravel()[cells]).sum(1) / (n * width)
        change[flat] = 0
        by_mm = np.einsum("ni,ij->nj", slope, to_voxel[:3, :3]) * change[:, None]
        y = self.points_mm[kept]
        linear = np.einsum("ni,nj->ij", by_mm, y)
        return value, np.concatenate([linear, by_mm.sum(0)[:, None]], axis=1)


def _mapped(
    points: Float[np.ndarray, "n 3"], matrix: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "n 3"]:
    # einsum, for the sums of BLAS depend on its threads
    return np.einsum("ni,ji->nj", points, matrix[:3, :3]) + matrix[:3, 3]


def _inside(at: Float[np.ndarray, "n 3"], shape: tuple[int, int, int]) -> np.ndarray:
    return ((at >= 0) & (at <= np.array(shape) - 1)).all(1)


def _interpolated(
    x: Float[np.ndarray, "d h w"], at: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """Trilinear values and their derivatives by the index."""
    shape = np.array(x.shape)
    low = np.clip(np.floor(at).astype(np.int64), 0, np.maximum(shape - 2, 0))
    f = at - low
    step = np.minimum(shape - 1, 1)  # an axis of one voxel has no neighbour
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    base, flat = low @ strides, x.ravel()
    values, slope = np.zeros(len(at)), np.zeros_like(at)
    for corner in np.ndindex(2, 2, 2):
        c = np.array(corner)
        seen = flat[base + int((c * step) @ strides)]
        w = np.where(c == 1, f, 1 - f)
        sign = 2.0 * c - 1
        values += seen * w[:, 0] * w[:, 1] * w[:, 2]
        slope[:, 0] += seen * sign[0] * w[:, 1] * w[:, 2]
        slope[:, 1] += seen * sign[1] * w[:, 0] * w[:, 2]
        slope[:, 2] += seen * sign[2] * w[:, 0] * w[:, 1]
    return values, slope


def _spline(f: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, "n 4"], ...]:
    """Cubic B-spline at a place between two bins, of the four bins around it; its derivative."""
    g = 1 - f
    weights = np.stack(
        [g**3 / 6, 2 / 3 - f**2 + f**3 / 2, 2 / 3 - g**2 + g**3 / 2, f**3 / 6], axis=1
    )
    slopes = np.stack([-(g**2) / 2, -2 * f + 1.5 * f**2, 2 * g - 1.5 * g**2, f**2 / 2], axis=1)
    return weights, slopes


def mutual_information(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    r"""Normalised mutual information of paired values, from 0 (independent) to 1 (a bijection),

    .. math:: 2\,\frac{H(a) + H(b) - H(a, b)}{H(a) + H(b)},

    over a histogram of 32 x 32 bins between the 0.5th and 99.5th percentiles. The measure of
    Studholme et al. is 1 / (1 - value / 2).
    """
    if a.size == 0:
        return 0.0
    codes = []
    for values in (a, b):
        low, high = np.percentile(values, CLIP)
        unit = (values - low) / max(float(high - low), 1e-12)
        codes.append(np.clip((unit * BINS).astype(np.int64), 0, BINS - 1))
    joint = np.bincount(codes[0] * BINS + codes[1], minlength=BINS**2).reshape(BINS, BINS)
    joint = joint / joint.sum()
    single = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
    return 2 * (single - _entropy(joint)) / single if single > 0 else 0.0


def _entropy(p: np.ndarray) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
