r"""Normative metrics: did a method learn what healthy looks like, and does it restore it?

This project's 3D definitions of the three ideas of Bercea et al. (2025); the authors' code gives
their ingredients, not their formulas, and works on slices, so that values are comparable among
methods here and not with the published ones. With x a volume, x̂ its pseudo-healthy volume, SSIM
the Gaussian-window map in 3D, averaged over a region, and F the Fréchet distance between normal
distributions of local features,

    RQI  = (SSIM(x, x̂ | foreground) + 1 - E) / 2           healthy volumes: is anatomy restored?
    AHI  = max(0, (F(P, N) - F(R, N)) / (F(P, N) - F(U, N)))  are pseudo-healthy volumes healthy?
    CACI = HM(SSIM(x, x̂ | healthy voxels), 1 - SSIM(x, x̂ | lesion))  changed there, only there?
    combined = (HM(RQI, CACI) + AHI) / 2

with HM the harmonic mean and E = min(1, Σ|x - x̂| / Σ|x - mean x|), the error in units of that of a
constant volume, where the 2D definition has a perceptual distance that needs trained weights.
P are pathological volumes, R the pseudo-healthy volumes made of them, and N, U healthy volumes of
two disjoint sets of patients. A method that returns its input has RQI 1, CACI 0 and AHI 0: RQI
alone says nothing about finding lesions.

Features are those of cubes of the foreground: mean, deviation and mean |∂| along each axis, so
that no network has to be downloaded, and a lesion, small in a brain, fills a cube.

References:
    Bercea et al. (2025), Evaluating normative representation learning in generative AI for robust
    anomaly detection in brain imaging, Nature Communications 16, doi:10.1038/s41467-025-56321-y
    Wang et al. (2004), Image quality assessment: from error visibility to structural similarity
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float

__all__ = [
    "FeatureMoments",
    "ahi",
    "caci",
    "combined",
    "frechet",
    "moments",
    "rqi",
    "scale",
    "ssim",
]

Volume = Float[np.ndarray, "d h w"]
Mask = Bool[np.ndarray, "d h w"]

# Window and constants of Wang et al. (2004): 11 taps, σ of 1.5 voxels, k1 and k2.
SIGMA, RADIUS = 1.5, 5
C1, C2 = 0.01**2, 0.03**2
# Side of the feature cubes: about the diameter of a lesion of 0.3 ml.
CUBE_MM = 8.0
# Fewest cubes per feature for a covariance to mean something.
CUBES_PER_FEATURE = 4


def scale(x: Volume, foreground: Mask) -> tuple[float, float]:
    """The intensities that become 0 and 1: percentiles 1 and 99 of the foreground."""
    low, high = np.percentile(x[foreground], [1, 99])
    return float(low), float(max(high - low, 1e-6 * max(abs(low), abs(high), 1.0)))


def ssim(x: Volume, y: Volume) -> Volume:
    """Structural similarity at every voxel, for intensities whose range is about 1.

    Separable filters of scipy, as those of MONAI are dense in 3D and crop the border.
    """
    from scipy.ndimage import gaussian_filter  # heavy import

    def blur(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, SIGMA, radius=RADIUS, mode="nearest")

    # in double precision: variances are small differences of large squares
    p, q = x.astype(np.float64), y.astype(np.float64)
    mean_p, mean_q = blur(p), blur(q)
    both = blur(p * q) - mean_p * mean_q
    var_p, var_q = blur(p * p) - mean_p**2, blur(q * q) - mean_q**2
    top = (2 * mean_p * mean_q + C1) * (2 * both + C2)
    return (top / ((mean_p**2 + mean_q**2 + C1) * (var_p + var_q + C2))).astype(x.dtype)


def rqi(x: Volume, healthy: Volume, *, foreground: Mask, similarity: Volume) -> float:
    """Restoration quality of a healthy volume, in [0, 1]; 1 for a perfect copy.

    Arguments:
        x: the volume
        healthy: its pseudo-healthy volume
        foreground: voxels that count
        similarity: `ssim` of the two
    """
    values = x[foreground].astype(np.float64)
    error = np.abs(values - healthy[foreground]).sum()
    constant = np.abs(values - values.mean()).sum()
    relative = min(1.0, error / constant) if constant > 0 else float(error > 0)
    return float((np.clip(similarity[foreground].mean(), 0, 1) + 1 - relative) / 2)


def caci(*, foreground: Mask, lesion: Mask, similarity: Volume) -> float:
    """Changed in the lesion and nowhere else, in [0, 1]; nan without lesion or healthy voxels.

    Arguments:
        foreground: voxels that count
        lesion: those of the lesion
        similarity: `ssim` of the volume and its pseudo-healthy volume
    """
    inside, outside = lesion & foreground, foreground & ~lesion
    if not inside.any() or not outside.any():
        return float("nan")
    kept = float(np.clip(similarity[outside].mean(), 0, 1))
    changed = 1 - float(np.clip(similarity[inside].mean(), 0, 1))
    return _harmonic(kept, changed)


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b != 0 else 0.0  # nan stays nan


def combined(rqi: float, ahi: float, caci: float) -> float:
    """(HM(RQI, CACI) + AHI) / 2."""
    return (_harmonic(rqi, caci) + ahi) / 2


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Sums over feature vectors, from which mean and covariance of any union follow.

    Arguments:
        count: number n of vectors
        total: their sum
        products: sum of their outer products
    """

    count: int
    total: Float[np.ndarray, "k"]
    products: Float[np.ndarray, "k k"]

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        return FeatureMoments(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    @staticmethod
    def of(features: Float[np.ndarray, "n k"]) -> "FeatureMoments":
        """The sums of some vectors."""
        f = features.astype(np.float64)
        return FeatureMoments(len(f), f.sum(axis=0), f.T @ f)

    @property
    def mean(self) -> Float[np.ndarray, "k"]:
        """The mean vector."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[np.ndarray, "k k"]:
        """With n - 1."""
        outer = np.outer(self.total, self.total) / self.count
        return (self.products - outer) / max(self.count - 1, 1)


def moments(
    x: Volume,
    *,
    foreground: Mask,
    spacing_mm: tuple[float, float, float],
    cube_mm: float = CUBE_MM,
) -> FeatureMoments:
    """Features of the cubes of which the foreground fills at least half.

    Arguments:
        x: intensities, about 0 to 1 as by `scale`
        foreground: voxels that count
        spacing_mm: voxel size along d, h, w
        cube_mm: side of the cubes
    """
    steps = [max(round(cube_mm / s), 1) for s in spacing_mm]
    x = np.where(foreground, x, 0).astype(np.float64)

    def summed(a: np.ndarray) -> np.ndarray:
        short = [(0, -n % k) for n, k in zip(a.shape, steps, strict=True)]
        d, h, w = (np.pad(a, short).shape[i] // steps[i] for i in range(3))
        cut = np.pad(a, short).reshape(d, steps[0], h, steps[1], w, steps[2])
        return cut.sum(axis=(1, 3, 5)).ravel()

    n = summed(foreground.astype(np.float64))
    full = n >= max(np.prod(steps) / 2, 1)
    mean = summed(x)[full] / n[full]
    variance = np.clip(summed(x * x)[full] / n[full] - mean**2, 0, None)
    columns = [mean, np.sqrt(variance)]
    for axis in range(3):
        change, pairs = np.zeros_like(x), np.zeros_like(x)
        low = tuple(slice(0, -1) if i == axis else slice(None) for i in range(3))
        high = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
        both = foreground[low] & foreground[high]
        change[low], pairs[low] = np.abs(x[high] - x[low]) * both, both
        columns.append(summed(change)[full] / np.maximum(summed(pairs)[full], 1))
    return FeatureMoments.of(np.stack(columns, axis=1))


def frechet(a: FeatureMoments, b: FeatureMoments) -> float:
    r"""Fréchet distance |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) of normal distributions.

    The trace of the root is the sum of the roots of the eigenvalues of Σ_a^½ Σ_b Σ_a^½, which is
    symmetric, so that no root of a nearly singular product has to be taken.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.clip(inner, 0, None)).sum()
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.sum((a.mean - b.mean) ** 2) + trace - 2 * cross)


def ahi(
    *,
    pathological: Iterable[FeatureMoments],
    restored: Iterable[FeatureMoments],
    unseen: Iterable[FeatureMoments],
    normal: Iterable[FeatureMoments],
) -> float:
    """Share of the way from pathological to healthy, at least 0; above 1 is overshooting.

    nan where a set has too few cubes, or where pathological volumes are no farther from the
    healthy reference than other healthy volumes are.
    """
    sets = [list(s) for s in (pathological, restored, unseen, normal)]
    if not all(sets):
        return float("nan")
    p, r, u, n = (reduce(FeatureMoments.__add__, s) for s in sets)
    if min(m.count for m in (p, r, u, n)) < CUBES_PER_FEATURE * len(p.total):
        return float("nan")
    distance = frechet(p, n)
    way = distance - frechet(u, n)
    return max(0.0, (distance - frechet(r, n)) / way) if way > 0 else float("nan")
