r"""Combinations: one map from the surprises of several methods.

With the surprise f_m = -log p_m of method m of k (see `tails`), the combinations of tests give
-log of one tail probability that holds for independent p. Methods that look at one volume depend
on each other, so that it is a score and no probability; its threshold comes from healthy volumes.
Learned combinations weigh the methods by what they say inside and outside of lesions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from volumediff.component import Component
from volumediff.metrics.calibration_error import fit as fit_probability
from volumediff.metrics.detection import Histogram, histogram

__all__ = ["Combination", "Fisher", "Isotonic", "Logistic", "MinimumP", "Stouffer"]

Statistics = Mapping[str, Tensor]
Samples = Iterable[tuple[Float[Tensor, "k _"], Bool[Tensor, "_"]]]
"""Surprises and truth of the foreground voxels of one volume after the other."""

MOST = 20_000  # voxels of a class that one volume gives to a fit


@dataclass(frozen=True)
class Combination(Component, ABC):
    """From surprises to one map; it rises with each of them.

    `learned` says whether it is fitted on volumes with lesions.
    """

    learned: ClassVar[bool] = False

    def fit(self, samples: Samples) -> dict[str, Tensor]:
        """What is learnt of volumes with lesions, gone through once; nothing for tests.

        Raises:
            ValueError: no lesion voxels, or no others
        """
        return {}

    @abstractmethod
    def __call__(self, f: Float[Tensor, "k n"], statistics: Statistics) -> Float[Tensor, "n"]:
        """The combined map, float64, from 0 on."""

    def contributions(
        self, f: Float[Tensor, "k n"], statistics: Statistics
    ) -> Float[Tensor, "k n"]:
        """What each method adds, from 0 on: its surprise, in nats."""
        return f


@dataclass(frozen=True)
class Fisher(Combination):
    r"""Fisher's sum: abnormal where several methods say so, or one says so strongly,

    .. math:: a = -\log P\left(χ^2_{2k} \ge 2 y\right) = y - \log \sum_{j<k} \frac{y^j}{j!},
              \qquad y = \sum_m f_m.

    References:
        Fisher (1932), Statistical Methods for Research Workers, section 21.1
    """

    def __call__(self, f: Float[Tensor, "k n"], statistics: Statistics) -> Float[Tensor, "n"]:
        """-log of the combined tail probability."""
        y = f.double().sum(0)
        term, total = torch.ones_like(y), torch.ones_like(y)
        for j in range(1, len(f)):
            term = term * y / j
            total = total + term
        return (y - total.log()).clamp(min=0)


@dataclass(frozen=True)
class Stouffer(Combination):
    r"""Stouffer's sum of normal deviates: abnormal where the methods agree,

    .. math:: a = -\log Φ(-z), \qquad z = \frac{\sum_m w_m z_m}{\sqrt{\sum_m w_m^2}}, \qquad
              z_m = -Φ^{-1}(p_m),

    with p bounded by 10⁻¹² and 1 - 10⁻⁶: a method that finds a voxel perfectly usual is no veto.

    Arguments:
        weights: w_m in the order of the methods, above 0; () for equal ones

    References:
        Stouffer et al. (1949), The American Soldier, vol. 1; Liptak (1958) for the weights
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(w > 0 for w in self.weights):
            raise ValueError(f"weights: expected numbers above 0, got {self.weights}.")

    def __call__(self, f: Float[Tensor, "k n"], statistics: Statistics) -> Float[Tensor, "n"]:
        """-log of the combined tail probability."""
        w = self._weights(f)
        z = (w[:, None] * _deviates(f)).sum(0) / w.square().sum().sqrt()
        return -torch.special.log_ndtr(-z)

    def contributions(
        self, f: Float[Tensor, "k n"], statistics: Statistics
    ) -> Float[Tensor, "k n"]:
        """The weighted deviates above 0."""
        return (self._weights(f)[:, None] * _deviates(f)).clamp(min=0)

    def _weights(self, f: Tensor) -> Tensor:
        if self.weights and len(self.weights) != len(f):
            raise ValueError(
                f"combination stouffer: expected {len(f)} weights, one for each member, got "
                f"{len(self.weights)}."
            )
        return torch.tensor(self.weights or [1.0] * len(f), dtype=torch.float64, device=f.device)


def _deviates(f: Tensor) -> Tensor:
    # -Φ⁻¹(p) is exact for small p; above one half Φ⁻¹(1 - p) would lose digits of the small one
    return -torch.special.ndtri(torch.exp(-f.double()).clamp(1e-12, 1 - 1e-6))


@dataclass(frozen=True)
class MinimumP(Combination):
    r"""The largest surprise, as the smallest p with Šidák's correction,

    .. math:: a = -\log\left(1 - (1 - \min_m p_m)^k\right):

    abnormal where any method says so.

    References:
        Tippett (1931), The Methods of Statistics; Šidák (1967), JASA 62:626
    """

    def __call__(self, f: Float[Tensor, "k n"], statistics: Statistics) -> Float[Tensor, "n"]:
        """-log of the combined tail probability."""
        top = f.double().max(0).values
        none = len(f) * torch.log1p(-torch.exp(-top).clamp(min=1e-300))  # log (1 - p)^k
        return -torch.log(-torch.expm1(none))

    def contributions(
        self, f: Float[Tensor, "k n"], statistics: Statistics
    ) -> Float[Tensor, "k n"]:
        """The surprise of the one that decided, 0 of the others."""
        decided = torch.arange(len(f), device=f.device)[:, None] == f.argmax(0)
        return f * decided


def _both(lesion: float | int, healthy: float | int, name: str) -> None:
    if not lesion or not healthy:
        raise ValueError(
            f"combination {name}: expected validation voxels inside and outside of lesions, got "
            "only one of the two."
        )


@dataclass(frozen=True)
class Logistic(Combination):
    r"""Logistic regression of the truth on the surprises, with weights that are not negative,

    .. math:: a = -\log(1 - P), \qquad \operatorname{logit} P = b + \sum_m w_m f_m, \quad
              w_m \ge 0,

    fitted on validation volumes with lesions, of each at most 20 000 voxels of a class, weighed so
    that their shares stay. A method that adds nothing has w = 0.

    Arguments:
        ridge: of the squared weights, per voxel
    """

    learned: ClassVar[bool] = True
    ridge: float = 1e-6

    def fit(self, samples: Samples) -> dict[str, Tensor]:
        """Weights and offset, by maximum likelihood.

        Raises:
            ValueError: no lesion voxels, or no others
        """
        from scipy.optimize import minimize  # heavy import

        rows, truths, counts = [], [], []
        for f, truth in samples:
            for kind in (True, False):
                there = f[:, truth == kind].double().cpu()
                kept = there[:, :: max(math.ceil(there.shape[1] / MOST), 1)]
                rows.append(kept)
                truths.append(torch.full((kept.shape[1],), float(kind), dtype=torch.float64))
                share = there.shape[1] / max(kept.shape[1], 1)
                counts.append(torch.full((kept.shape[1],), share, dtype=torch.float64))
        if not rows:
            _both(0, 0, "logistic")
        x, y, c = (torch.cat(v, dim=-1).numpy() for v in (rows, truths, counts))
        _both(float(c @ y), float(c @ (1 - y)), "logistic")
        c = c / c.sum()

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            w, b = theta[:-1], theta[-1]
            s = w @ x + b
            value = c @ (np.logaddexp(0, s) - y * s) + self.ridge * w @ w
            rest = c * (1 / (1 + np.exp(-np.clip(s, -500, 500))) - y)
            return float(value), np.append(x @ rest + 2 * self.ridge * w, rest.sum())

        prior = math.log(float(c @ y) / float(c @ (1 - y)))
        start = np.append(np.zeros(len(x)), prior)
        bounds = [(0.0, None)] * len(x) + [(None, None)]
        options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        return {"weights": torch.from_numpy(found[:-1]), "offset": torch.tensor(found[-1])}

    def __call__(self, f: Float[Tensor, "k n"], statistics: Statistics) -> Float[Tensor, "n"]:
        """-log of the probability that the voxel is healthy."""
        offset = statistics["offset"].to(f.device)
        return softplus(self.contributions(f, statistics).sum(0) + offset)

    def contributions(
        self, f: Float[Tensor, "k n"], statistics: Statistics
    ) -> Float[Tensor, "k n"]:
        """The weighted surprises."""
        return statistics["weights"].to(f.device)[:, None] * f.double()


@dataclass(frozen=True)
class Isotonic(Combination):
    r"""Sum of log-likelihood ratios, each a rising step function of one method's surprise,

    .. math:: a = -\log(1 - P), \qquad \operatorname{logit} P = \operatorname{logit} π +
              \sum_m \left(\operatorname{logit} P_m(f_m) - \operatorname{logit} π\right),

    with P_m the isotonic regression of the truth on f_m and π the share of lesion voxels of the
    validation volumes: the Bayes classifier of methods that are independent in lesions and outside
    of them. P_m is bounded by half a voxel in all of them.
    """

    learned: ClassVar[bool] = True

    def fit(self, samples: Samples) -> dict[str, Tensor]:
        """Edges and log-likelihood ratios of each method's steps, and logit π.

        Raises:
            ValueError: no lesion voxels, or no others
        """
        pooled: list[Histogram] = []
        for f, truth in samples:
            own = [histogram(row.float(), truth) for row in f]
            pooled = [a + b for a, b in zip(pooled, own, strict=True)] if pooled else own
        lesion, healthy = (
            (int(pooled[0].abnormal.sum()), int(pooled[0].healthy.sum())) if pooled else (0, 0)
        )
        _both(lesion, healthy, "isotonic")
        prior, bound = math.log(lesion / healthy), 0.5 / (lesion + healthy)
        found = {"prior": torch.tensor(prior, dtype=torch.float64)}
        for m, h in enumerate(pooled):
            steps = fit_probability(h)
            p = np.clip(np.asarray(steps.values), bound, 1 - bound)
            ratio = np.log(p / (1 - p)) - prior
            found[f"edges-{m}"] = torch.tensor(steps.edges, dtype=torch.float32)
            found[f"ratios-{m}"] = torch.from_numpy(ratio)
        return found

    def __call__(self, f: Float[Tensor, "k n"], statistics: Statistics) -> Float[Tensor, "n"]:
        """-log of the probability that the voxel is healthy."""
        return softplus(self._ratios(f, statistics).sum(0) + statistics["prior"].to(f.device))

    def contributions(
        self, f: Float[Tensor, "k n"], statistics: Statistics
    ) -> Float[Tensor, "k n"]:
        """The log-likelihood ratios above 0."""
        return self._ratios(f, statistics).clamp(min=0)

    def _ratios(self, f: Tensor, statistics: Statistics) -> Tensor:
        rows = []
        for m, row in enumerate(f):
            edges, ratios = (statistics[f"{n}-{m}"].to(f.device) for n in ("edges", "ratios"))
            index = torch.bucketize(row.float().contiguous(), edges, right=True) - 1
            rows.append(ratios[index.clamp(min=0)])
        return torch.stack(rows)
