"""What a metric is, in the words of tables, tooltips, legends and the reference.

Every metric of an evaluation has one definition; the tables of the four kinds of evaluation are in
`evaluation.metric_definitions`.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

__all__ = ["Better", "MetricDefinition", "Notation"]


class Better(Enum):
    """Which end of its range is the better one; the value says it in words."""

    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEITHER = "not ranked"


class Notation(Enum):
    """How values are written.

    SHARE has three decimals. COUNT is a number of things, or the mean of such numbers: whole from
    10 on, and wherever it is whole. AMOUNT has a unit and three significant digits.
    """

    SHARE = "share"
    COUNT = "count"
    AMOUNT = "amount"

    def text(self, value: float, sign: str = "") -> str:
        """The value in words; empty where there is none.

        Arguments:
            value: nan and infinity are no values
            sign: `+` writes the sign of positive values, too
        """
        if not np.isfinite(value):
            return ""
        if self is Notation.SHARE:
            return f"{value:{sign}.3f}"
        if self is Notation.AMOUNT:
            return f"{value:{sign}.3g}" if abs(value) < 1000 else f"{value:{sign}.0f}"
        if value == round(value) or abs(value) >= 9.95:
            return f"{value:{sign}.0f}"
        return f"{value:{sign}.1f}" if abs(value) >= 1 else f"{value:{sign}.2g}"


@dataclass(frozen=True)
class MetricDefinition:
    """A metric as its readers meet it.

    Arguments:
        heading: short name in tables, without the unit
        definition: what it is, one or two full sentences
        range: values that it can have, such as `0 to 1`
        better: which end is the better one
        notation: how its values are written
        unit: of its values; empty for shares and numbers of things
    """

    heading: str
    definition: str
    range: str
    better: Better = Better.HIGHER
    notation: Notation = Notation.SHARE
    unit: str = ""

    @property
    def title(self) -> str:
        """The heading with its unit."""
        return f"{self.heading} in {self.unit}" if self.unit else self.heading

    @property
    def explanation(self) -> str:
        """Everything in one paragraph, for a tooltip."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.definition} Range: {self.range}{unit}; {self.better.value}."

    @property
    def ranked(self) -> bool:
        """Whether a table may mark the best method: never for counts, nor where no end is."""
        return self.better is not Better.NEITHER and self.notation is not Notation.COUNT
