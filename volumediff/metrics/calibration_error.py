r"""Calibration: does a map say how probable a lesion is, and where it is unsure?

A map has arbitrary units. The share of lesion voxels among validation voxels of about its value,
made monotone, turns it into a probability p (isotonic regression, Zadrozny and Elkan 2002); it is
fitted on validation alone and then frozen. On test voxels with truth y, in bins k of p,

    ECE = Σ_k (n_k / n) |mean p - mean y|,   MCE = max_k |mean p - mean y|,
    ACE = mean_k |mean p - mean y| over the bins that have voxels,
    Brier = mean (p - y)²,   skill = 1 - Brier / (π (1 - π)),

with π the share of lesion voxels: a map that says π everywhere has skill 0. Lesions are rare, so
that ECE is small for every map that says "nearly never"; the skill is not, nor is the ACE, the
average calibration error of MONAI ("adaptive" is another error of the same initials). A class of
a segmentation has its own table, of its probability against the voxels of its label.

With an uncertainty u per voxel and losses ℓ (errors of the mask), risk-coverage asks what remains
when the least certain voxels go to a reader: risk(c) is the mean loss of the share c with the
lowest u, AURC its mean over c. Voxels of equal u are in random order; their mean is exact,

    Σ_{j=1..m} (L + j ℓ) / (N + j) = m ℓ + (L - N ℓ) (ψ(N + m + 1) - ψ(N + 1)),

with N voxels of loss L before them and ψ the digamma function.

References:
    Geifman and El-Yaniv (2017), Selective Classification for Deep Neural Networks,
    arXiv:1705.08500
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float, Int

from volumediff.metrics.detection import Histogram, coarse

__all__ = [
    "BINS",
    "Probability",
    "Reliability",
    "RiskCoverage",
    "aurc",
    "fit",
    "reliability",
    "reliability_of",
    "risk_coverage",
    "total",
]

ROUNDING = 1e-3  # probabilities may have been interpolated and stored in half precision
BINS = 15  # of probabilities (Guo et al. 2017)
STEPS = (
    256  # of scores before the fit: fewer than a map has values, so that it can be written down
)


@dataclass(frozen=True)
class Probability:
    """A step function from map values to probabilities of a lesion.

    Arguments:
        edges: lowest map value of each step, ascending; lower ones belong to the first step
        values: probability of each step, never falling
    """

    edges: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of map values."""
        step = np.searchsorted(np.asarray(self.edges), scores, side="right") - 1
        return np.asarray(self.values)[np.clip(step, 0, None)]


def fit(h: Histogram) -> Probability:
    """Isotonic regression of the truth on the map values of validation volumes.

    Raises:
        ValueError: no lesion voxels, or no others
    """
    from scipy.optimize import isotonic_regression  # heavy import

    if h.abnormal.sum() == 0 or h.healthy.sum() == 0:
        raise ValueError(
            "expected validation voxels inside and outside of lesions, got only one of the two."
        )
    (few,) = coarse([h], bins=STEPS)
    voxels = few.healthy + few.abnormal
    p = isotonic_regression(few.abnormal / voxels, weights=voxels).x
    first = np.flatnonzero(np.diff(p, prepend=-1.0) > 0)
    return Probability(tuple(few.edges[first].tolist()), tuple(p[first].tolist()))


@dataclass(frozen=True, eq=False)
class Reliability:
    """Sums per bin of probability; those of volumes add up.

    Arguments:
        voxels: n_k
        predicted: sum of p in each bin
        lesions: lesion voxels in each bin
        squares: sum of (p - y)² over all voxels
    """

    voxels: Int[np.ndarray, "k"]
    predicted: Float[np.ndarray, "k"]
    lesions: Int[np.ndarray, "k"]
    squares: float

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.voxels + other.voxels,
            self.predicted + other.predicted,
            self.lesions + other.lesions,
            self.squares + other.squares,
        )

    def _gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels and |mean p - mean y| of the bins that have voxels."""
        n = self.voxels[self.voxels > 0]
        return n, np.abs(self.predicted - self.lesions)[self.voxels > 0] / n

    @property
    def ece(self) -> float:
        """Expected calibration error; nan without voxels."""
        n, gaps = self._gaps()
        return float(np.sum(n * gaps) / n.sum()) if len(n) else float("nan")

    @property
    def mce(self) -> float:
        """The largest error of a bin; nan without voxels."""
        _, gaps = self._gaps()
        return float(gaps.max()) if len(gaps) else float("nan")

    @property
    def ace(self) -> float:
        """Average calibration error: every bin that has voxels weighs the same; nan without."""
        _, gaps = self._gaps()
        return float(gaps.mean()) if len(gaps) else float("nan")

    @property
    def brier(self) -> float:
        """Mean squared error; nan without voxels."""
        n = int(self.voxels.sum())
        return self.squares / n if n else float("nan")

    @property
    def skill(self) -> float:
        """Brier skill against the share of lesion voxels; nan without both kinds of voxels."""
        n, abnormal = int(self.voxels.sum()), int(self.lesions.sum())
        if not 0 < abnormal < n:
            return float("nan")
        return 1 - self.brier / (abnormal / n * (1 - abnormal / n))


def reliability(h: Histogram, probability: Probability, *, bins: int = BINS) -> Reliability:
    """Reliability of a map, from its counts alone, to the resolution of their bins."""
    p = probability(h.edges)
    k = np.clip((p * bins).astype(int), 0, bins - 1)
    voxels = h.healthy + h.abnormal
    squares = np.sum(h.healthy * p**2 + h.abnormal * (1 - p) ** 2)

    def binned(weights: np.ndarray) -> np.ndarray:
        return np.bincount(k, weights=weights, minlength=bins).astype(float)

    return Reliability(
        voxels=binned(voxels).astype(np.int64),
        predicted=binned(voxels * p),
        lesions=binned(h.abnormal).astype(np.int64),
        squares=float(squares),
    )


def reliability_of(
    probability: Float[np.ndarray, "*shape"],
    truth: Bool[np.ndarray, "*shape"],
    *,
    bins: int = BINS,
) -> Reliability:
    """Reliability of one class of a segmentation, voxel by voxel.

    Arguments:
        probability: of the class, in [0, 1]
        truth: voxels of the class
        bins: of equal width

    Raises:
        ValueError: a probability outside of [0, 1]
    """
    p, y = probability.ravel().astype(np.float64), truth.ravel()
    if p.size and not (p.min() >= -ROUNDING and p.max() <= 1 + ROUNDING):
        raise ValueError(
            f"expected probabilities in [0, 1], got values from {p.min():.4g} to {p.max():.4g}."
        )
    p = p.clip(0, 1)
    k = np.minimum((p * bins).astype(int), bins - 1)
    return Reliability(
        voxels=np.bincount(k, minlength=bins),
        predicted=np.bincount(k, weights=p, minlength=bins),
        lesions=np.bincount(k[y], minlength=bins),
        squares=float(np.sum((p - y) ** 2)),
    )


def total(parts: Iterable[Reliability]) -> Reliability | None:
    """Sum over volumes; None without volumes."""
    found = list(parts)
    return reduce(Reliability.__add__, found) if found else None


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Risk of the voxels that are kept, the most certain ones first.

    Arguments:
        coverage: share that is kept, ascending
        risk: their mean loss
    """

    coverage: Float[np.ndarray, "k"]
    risk: Float[np.ndarray, "k"]


def risk_coverage(h: Histogram) -> RiskCoverage | None:
    """The curve for a histogram of uncertainties; None without voxels.

    Arguments:
        h: of uncertainties, with the wrong voxels in place of the abnormal ones:
            `histogram(uncertainty, mask != truth, foreground=foreground)`
    """
    kept, wrong = np.cumsum(h.healthy + h.abnormal), np.cumsum(h.abnormal)
    if len(kept) == 0 or kept[-1] == 0:
        return None
    return RiskCoverage(kept / kept[-1], wrong / np.maximum(kept, 1))


def aurc(h: Histogram) -> float:
    """Mean risk over all coverages, for a histogram as in `risk_coverage`; nan without voxels."""
    from scipy.special import digamma  # heavy import

    m = (h.healthy + h.abnormal).astype(float)
    n = np.cumsum(m) - m
    if m.sum() == 0:
        return float("nan")
    loss = np.divide(h.abnormal, m, out=np.zeros_like(m), where=m > 0)
    before = np.cumsum(h.abnormal) - h.abnormal
    terms = m * loss + (before - n * loss) * (digamma(n + m + 1) - digamma(n + 1))
    return float(terms.sum() / m.sum())
