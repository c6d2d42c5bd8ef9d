"""A row of a table of an evaluation: one number of every method, with differences below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from volumediff.metrics.bootstrap import Interval

__all__ = ["Line", "plain"]

NAN = float("nan")


@dataclass(frozen=True)
class Line:
    """A row of a table: one number of every method.

    Arguments:
        heading: what it is
        cells: of the methods, in order
        differences: reference -> that of each method to it, None for the reference itself
        count: whether it is a number per volume instead of a share
        significant: whether it has three significant digits, as what has a unit
        lowest: whether the smallest is the best; None where no end is
    """

    heading: str
    cells: Sequence[Interval]
    differences: Mapping[str, Sequence[Interval | None]] = field(default_factory=dict)
    count: bool = False
    lowest: bool | None = False
    significant: bool = False

    def text(self, value: float, sign: str = "") -> str:
        """A number as this row writes it; empty where there is none."""
        if not np.isfinite(value):
            return ""
        if self.significant:
            return f"{value:{sign}.3g}"
        if not self.count:
            return f"{value:{sign}.3f}"
        return f"{value:{sign}.1f}" if abs(value) < 100 else f"{value:{sign}.0f}"

    @property
    def best(self) -> int | None:
        """Number of the best method; None with a tie as written, or with nothing to compare."""
        values = [(c.value, i) for i, c in enumerate(self.cells) if np.isfinite(c.value)]
        if self.lowest is None or len(values) < 2:
            return None
        top = min(values) if self.lowest else max(values)
        written = [self.text(value) for value, _ in values]
        return top[1] if written.count(self.text(top[0])) == 1 else None


def plain(value: float) -> Interval:
    """A number without an interval."""
    return Interval(value, NAN, NAN, 0.95, 0)
