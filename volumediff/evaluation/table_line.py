"""A row of a table of an evaluation: one number of every method, with differences below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from volumediff.metrics.bootstrap import Interval
from volumediff.metrics.definition import Better, MetricDefinition

__all__ = ["Line", "paired", "plain"]

NAN = float("nan")
Pair = Interval | None


@dataclass(frozen=True)
class Line:
    """A row of a table: one number of every method.

    Arguments:
        heading: what it is
        metric: what its numbers are
        cells: of the methods, in order
        differences: reference -> that of each method to it, None for the reference itself
        pairs: at [i][j] method i minus method j, paired over patients; None where unknown
    """

    heading: str
    metric: MetricDefinition
    cells: Sequence[Interval]
    differences: Mapping[str, Sequence[Pair]] = field(default_factory=dict)
    pairs: Sequence[Sequence[Pair]] = ()

    def text(self, value: float, sign: str = "") -> str:
        """A number as this row writes it; empty where there is none."""
        return self.metric.notation.text(value, sign)

    @property
    def best(self) -> int | None:
        """Number of the method that is better than each of the others beyond doubt: the 95 %
        interval of every paired difference excludes zero. None where there is no such method,
        where numbers are not ranked, and where the difference is too small to be written."""
        known = [i for i, cell in enumerate(self.cells) if np.isfinite(cell.value)]
        if not self.metric.ranked or len(known) < 2 or not self.pairs:
            return None
        for i in known:
            if all(self._certain(i, j) for j in known if j != i):
                return i
        return None

    def _certain(self, i: int, j: int) -> bool:
        pair = self.pairs[i][j]
        if pair is None or self.text(self.cells[i].value) == self.text(self.cells[j].value):
            return False
        return pair.high < 0 if self.metric.better is Better.LOWER else pair.low > 0


def paired(
    methods: Sequence[str], differences: Sequence[Mapping[str, Pair]]
) -> Sequence[Sequence[Pair]]:
    """Differences of all pairs of methods, as `Line.pairs`.

    Arguments:
        methods: names, in order
        differences: of each method: other method -> this method minus the other
    """
    return [[mine.get(other) for other in methods] for mine in differences]


def plain(value: float) -> Interval:
    """A number without an interval."""
    return Interval(value, NAN, NAN, 0.95, 0)
