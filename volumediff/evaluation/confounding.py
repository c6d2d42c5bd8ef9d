r"""Confounding: whether a volume score may tell where a volume comes from instead of disease.

If the healthy volumes come from one scanner and the sick ones from another, a method that knows
the scanner has a perfect volume AUROC. Two numbers say how far that goes, for each attribute that
tells where a volume comes from, with r(g) the share of sick volumes of the origin g:

    alone  = AUROC of the score r(g): what the origin alone would reach,
    within = P(s⁺ > s⁻) + P(s⁺ = s⁻) / 2 over pairs of a sick and a healthy volume of one origin.

The volume AUROC is confounded where no such pair shares its origin, or where the origin alone
reaches `ALONE`, half way from chance to certainty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volumediff.metrics.detection import volume_auroc

__all__ = ["ALONE", "ORIGINS", "Confounding", "confounding", "origin_of"]

# Attributes, in lower case, that tell where a volume comes from.
ORIGINS = frozenset(
    "site scanner dataset data_set source center centre hospital institution manufacturer vendor "
    "study cohort field_strength".split()
)
ALONE = 0.75


@dataclass(frozen=True)
class Confounding:
    """How far an attribute tells sick from healthy.

    Arguments:
        attribute: its name
        alone: AUROC of the attribute alone
        within: AUROC of the method over pairs of one origin; nan without such pairs
        pairs: share of the pairs of a sick and a healthy volume that share their origin
    """

    attribute: str
    alone: float
    within: float
    pairs: float

    @property
    def confounded(self) -> bool:
        """Whether the volume AUROC says little about disease."""
        return self.pairs == 0 or self.alone >= ALONE


def origin_of(attributes: Mapping[str, str | float]) -> dict[str, str]:
    """The attributes of a case that tell where it comes from, names in lower case."""
    return {
        name.lower(): str(value)
        for name, value in sorted(attributes.items())
        if name.lower() in ORIGINS
    }


def confounding(
    scores: Sequence[float], abnormal: Sequence[bool], origins: Sequence[Mapping[str, str]]
) -> list[Confounding]:
    """Every attribute that some volume has, the most telling first.

    Arguments:
        scores: of the volumes
        abnormal: whether they are sick
        origins: from `origin_of`; volumes without an attribute are an origin of their own

    Returns:
        none without sick and healthy volumes
    """
    s, y = np.asarray(scores, dtype=float), np.asarray(abnormal, dtype=bool)
    if not y.any() or y.all():
        return []
    found = []
    for name in sorted({name for origin in origins for name in origin}):
        of = np.array([origin.get(name, "") for origin in origins])
        rates = np.array([y[of == g].mean() for g in of])
        same = of[y][:, None] == of[~y]
        above = s[y][:, None] - s[~y]
        won = (above > 0) + 0.5 * (above == 0)
        found.append(
            Confounding(
                name,
                alone=volume_auroc(rates.tolist(), y.tolist()),
                within=float(won[same].mean()) if same.any() else float("nan"),
                pairs=float(same.mean()),
            )
        )
    return sorted(found, key=lambda c: (-c.alone, c.pairs, c.attribute))
