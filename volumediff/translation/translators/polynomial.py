r"""Baseline: every target voxel is a polynomial of the source intensities at its place,

.. math:: \hat x_T = \sum_{|a| \le n} \beta_a \prod_i x_{S,i}^{a_i}, \qquad
          \beta = \operatorname{argmin} \sum_{\text{foreground}} (x_T - \hat x_T)^2,

by least squares over the foregrounds of all training volumes.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.component import handed_in
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.translation.translators._base import TranslationPair
from volumediff.translation.translators._baseline import TranslationBaseline

__all__ = ["Polynomial"]

# Share of the largest singular value below which a direction is noise of the arithmetic.
RANK = 1e-10


@dataclass(frozen=True, repr=False)
class Polynomial(TranslationBaseline):
    """Regression of intensities; it knows no neighbours.

    Arguments:
        degree: n, 1 for a linear regression
        coefficients: one column per target channel, as `fit` finds them
    """

    degree: int = 3
    coefficients: Float[Tensor, "m t"] | None = handed_in(None)

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"degree: expected at least 1, got {self.degree}.")

    def fit(self, pairs: Iterable[TranslationPair]) -> "Polynomial":
        gram, moment = None, None
        for pair in pairs:
            inside = pair.foreground[0]
            a = monomials(pair.sources[:, inside].double(), self.degree)
            y = pair.targets[:, inside].double()
            left, right = a @ a.T, a @ y.T
            gram = left if gram is None else gram + left
            moment = right if moment is None else moment + right
        if gram is None or moment is None:
            raise ValueError("expected at least one training volume, got none.")
        return replace(self, coefficients=torch.linalg.pinv(gram, rtol=RANK) @ moment)

    def draws(
        self,
        model: Model,
        sources: Float[Tensor, "1 s d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        key: int,
        condition: Condition,
    ) -> Iterator[Float[Tensor, "1 t d h w"]]:
        assert self.coefficients is not None, "fit comes first"
        a = monomials(sources[0].flatten(1).double(), self.degree)
        y = self.coefficients.to(a.device).T @ a
        yield y.reshape(1, -1, *sources.shape[2:]).to(sources.dtype)

    def __repr__(self) -> str:
        return f"Polynomial(degree={self.degree})"


def monomials(x: Float[Tensor, "s n"], degree: int) -> Float[Tensor, "m n"]:
    """All products of at most `degree` of the rows, 1 first."""
    rows = [torch.ones_like(x[0])]
    for n in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(len(x)), n):
            rows.append(x[list(chosen)].prod(0))
    return torch.stack(rows)
