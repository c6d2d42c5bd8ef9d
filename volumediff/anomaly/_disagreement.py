"""Uncertainty: the standard deviation of the map over the seeds of an ensemble."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Spread"]


@dataclass(eq=False)
class Spread:
    r"""Deviation of the maps of one volume between seeds, without keeping them (Welford, 1962).

    .. math:: u = \sqrt{\mathrm{mean}_l \, \mathrm{var}_s \, a_{ls}}

    with levels l and seeds s: what a level changes is no uncertainty.

    Arguments:
        seeds: runs per level, at least 2; they come level by level
    """

    seeds: int
    _runs: int = 0
    _mean: Tensor | float = 0.0
    _squares: Tensor | float = 0.0
    _total: Tensor | float = 0.0

    def add(self, a: Float[Tensor, "b 1 d h w"]) -> None:
        """The map of the next run."""
        number = self._runs % self.seeds + 1
        if number == 1:
            self._mean, self._squares = 0.0, 0.0
        delta = a - self._mean
        self._mean = self._mean + delta / number
        self._squares = self._squares + delta * (a - self._mean)
        if number == self.seeds:
            self._total = self._total + self._squares / (self.seeds - 1)
        self._runs += 1

    def value(self) -> Float[Tensor, "b 1 d h w"]:
        """The deviation u, after the last run."""
        return (self._total / (self._runs // self.seeds)).sqrt()
