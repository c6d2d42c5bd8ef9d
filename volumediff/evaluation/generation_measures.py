"""Measures of generated volumes, each beside its value for real ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from volumediff.evaluation.generation_case import LEVELS, VolumeSummary
from volumediff.evaluation.table_line import plain
from volumediff.metrics.bootstrap import MIN_PATIENTS, Interval, bootstrap
from volumediff.metrics.frechet_distance import (
    centred_interval,
    extrapolated,
    frechet_distance,
    least,
)
from volumediff.metrics.mean_discrepancy import (
    bandwidth,
    discrepancy,
    gaussian,
    permutation_p,
    polynomial,
)
from volumediff.metrics.ms_ssim import WINDOW, scales_of
from volumediff.metrics.power_spectrum import frequencies
from volumediff.metrics.precision_recall import NEIGHBOURS, covered
from volumediff.randomness import key
from volumediff.shapes import Shape

__all__ = ["Comparison", "compared"]

Summaries = Sequence[VolumeSummary]
AXES = ("R", "A", "S")
NAN = float("nan")
FRECHET_REPLICATES = 50  # each is a distance of its own


@dataclass(frozen=True)
class Comparison:
    """One measure.

    Arguments:
        generated: of the generated volumes, or between them and the real ones
        real: of the real volumes, or between two random halves of them
        p: how often the difference would be as large if both were of one law; nan without a test
    """

    generated: Interval
    real: Interval
    p: float = NAN


def compared(
    mine: Summaries,
    theirs: Summaries,
    *,
    similarity: tuple[Sequence[float], Sequence[float]],
    shape: Shape,
    spacing_mm: tuple[float, float, float],
    seed: int,
    replicates: int,
) -> tuple[dict[str, Comparison], list[str]]:
    """All measures by name, and what a reader must know of them.

    Arguments:
        mine: of the generated volumes
        theirs: of the real ones
        similarity: MS-SSIM of pairs of generated, and of real volumes
        shape, spacing_mm: of all volumes
        seed: of everything that is drawn
        replicates: of the bootstrap, and number of permutations
    """
    work = _Measuring(mine, theirs, seed, replicates)
    found, notes = work.discrepancy()
    if theirs[0].vector is not None:
        more, remarks = work.of_features()
        found |= more
        notes += remarks
    scales = scales_of(shape)
    if scales:
        found["ms_ssim"] = work.both(*similarity)
        notes.append(f"MS-SSIM has {scales} {'scale' if scales == 1 else 'scales'}.")
    else:
        notes.append(f"There is no MS-SSIM: it takes {WINDOW} voxels along every axis.")
    found["intensity_distance"] = work.distance(_intensities)
    found["high_frequency"] = work.high_frequency(frequencies(shape, spacing_mm))
    for axis, name in enumerate(AXES):
        found[f"through_plane_{name.lower()}"] = work.per_volume(
            lambda s, a=axis: s.through_plane[a]
        )
    found["foreground_ml"] = work.per_volume(lambda s: s.foreground_ml)
    values = sorted(
        {v for s in mine for v in s.labels_ml} & {v for s in theirs for v in s.labels_ml}
    )
    for value in values:
        found[f"label_{value}_ml"] = work.per_volume(lambda s, v=value: s.labels_ml.get(v, 0.0))
    if min(len(mine), len(theirs)) < MIN_PATIENTS:
        notes.append(f"There are no intervals with fewer than {MIN_PATIENTS} volumes.")
    return found, notes


@dataclass(frozen=True, eq=False)
class _Measuring:
    mine: Summaries
    theirs: Summaries
    seed: int
    replicates: int

    def discrepancy(self) -> tuple[dict[str, Comparison], list[str]]:
        """MMD of the volumes as thumbnails."""
        mine, theirs = (
            np.stack([s.thumbnails[0].ravel() for s in side]) for side in (self.mine, self.theirs)
        )
        both = np.concatenate([mine, theirs])
        kernel = gaussian(both)
        size = " x ".join(map(str, self.mine[0].thumbnails.shape[2:]))
        found = self._kernel_distance(kernel, len(mine))
        note = (
            f"MMD is of volumes averaged to {size} blocks, with a Gaussian kernel whose bandwidth "
            f"is the median distance, {bandwidth(both):.3g}; its p is of {self.replicates} "
            "permutations."
        )
        return {"mmd": found}, [note]

    def of_features(self) -> tuple[dict[str, Comparison], list[str]]:
        """KID, Fréchet distance, precision and recall of the vectors."""
        mine, theirs = (np.stack([s.vector for s in side]) for side in (self.mine, self.theirs))
        found = {
            "kid": self._kernel_distance(polynomial(np.concatenate([mine, theirs])), len(mine))
        }
        notes = []
        first, second = (theirs[half] for half in self._halves())
        need, got = least(mine.shape[1]), min(len(mine), len(theirs))
        if got >= need:
            for name, statistic in (
                ("fid", frechet_distance),
                ("fid_extrapolated", self._extrapolated),
            ):
                real = plain(NAN)
                if min(len(first), len(second)) >= need:
                    real = plain(statistic(first, second))
                interval = centred_interval(
                    statistic, mine, theirs, seed=self.seed, replicates=self._few
                )
                found[name] = Comparison(interval, real)
        else:
            notes.append(
                f"There is no Fréchet distance: features of length {mine.shape[1]} take at least "
                f"{need} generated and {need} real volumes, and with {got} it would say nothing; "
                "KID has no bias."
            )
        if min(len(mine), len(first), len(second)) > NEIGHBOURS:
            pairs = {
                "precision": ((mine, theirs), (first, second)),
                "recall": ((theirs, mine), (second, first)),
            }
            for name, (generated, real) in pairs.items():
                inside = (covered(*sets).astype(float).tolist() for sets in (generated, real))
                found[name] = self.both(*inside)
        return found, notes

    def both(self, mine: Sequence[float], theirs: Sequence[float]) -> Comparison:
        """Means of numbers of each side."""
        return Comparison(self._mean(mine), self._mean(theirs))

    def per_volume(self, of: Callable[[VolumeSummary], float]) -> Comparison:
        """Means over volumes, and the Kolmogorov-Smirnov test of their distributions."""
        from scipy.stats import ks_2samp

        mine, theirs = (
            [v for s in side if np.isfinite(v := of(s))] for side in (self.mine, self.theirs)
        )
        p = float(ks_2samp(mine, theirs).pvalue) if mine and theirs else NAN
        return Comparison(self._mean(mine), self._mean(theirs), p)

    def distance(self, between: Callable[[Summaries, Summaries], float]) -> Comparison:
        """A distance of the generated volumes from the real ones, and of two halves of these."""
        first, second = ([self.theirs[i] for i in half] for half in self._halves())
        value = bootstrap(self.mine, lambda some: between(some, self.theirs), **self._bootstrap)
        return Comparison(value, plain(between(first, second)))

    def high_frequency(self, at: Sequence[float]) -> Comparison:
        """Power in the upper half of the frequencies relative to that of the real volumes."""
        upper = np.asarray(at) >= max(at) / 2

        def levels(side: Summaries) -> list[float]:
            return [float(np.nanmean(np.log(np.maximum(s.power[upper], 1e-30)))) for s in side]

        mine, theirs = levels(self.mine), levels(self.theirs)
        middle = float(np.mean(theirs))

        def ratio(some: Sequence[float]) -> float:
            return float(np.exp(np.mean(some) - middle))

        from scipy.stats import ks_2samp

        return Comparison(
            bootstrap(mine, ratio, **self._bootstrap),
            bootstrap(theirs, ratio, **self._bootstrap),
            float(ks_2samp(mine, theirs).pvalue),
        )

    def _kernel_distance(self, kernel: np.ndarray, first: int) -> Comparison:
        drawn = {"seed": self.seed, "replicates": self.replicates}
        halves = [first + half for half in self._halves()]
        real = plain(NAN)
        if min(map(len, halves)) > 1:
            order = np.concatenate(halves)
            inner = kernel[np.ix_(order, order)]
            real = discrepancy(inner, len(halves[0]), **drawn).interval()
        return Comparison(
            discrepancy(kernel, first, **drawn).interval(),
            real,
            permutation_p(kernel, first, seed=self.seed, permutations=self.replicates),
        )

    def _extrapolated(self, x: np.ndarray, y: np.ndarray) -> float:
        return extrapolated(x, y, seed=self.seed)

    def _mean(self, values: Sequence[float]) -> Interval:
        return bootstrap(list(values), lambda some: float(np.mean(some)), **self._bootstrap)

    @property
    def _few(self) -> int:
        return min(self.replicates, FRECHET_REPLICATES)

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"seed": self.seed, "replicates": self.replicates}

    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.theirs)
        order = np.random.default_rng(key(self.seed, "halves")).permutation(count)
        return order[: count // 2], order[count // 2 :]


def _intensities(a: Summaries, b: Summaries) -> float:
    """First Wasserstein distance between mean quantile functions, mean over the channels."""
    gap = np.mean([s.quantiles for s in a], axis=0) - np.mean([s.quantiles for s in b], axis=0)
    return float(np.trapezoid(np.abs(gap), LEVELS, axis=1).mean())
