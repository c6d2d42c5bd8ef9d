r"""Loss of the anchor: what the image branch alone predicts of the clean state,

.. math:: \ell = \frac1n \lVert a(x) - z_0 \rVert^2 \quad\text{or}\quad \sum_i w_i\, \ell_i(a(x)).

Neither noise nor time is in it: it is the loss of a plain segmentation network, whose features
the diffusion then uses.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, mean_over_voxels
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["Anchor"]


@dataclass(frozen=True)
class Anchor(LossTerm):
    """What trains the head of a conditioner such as `anchor`.

    Arguments:
        terms: losses that read the predicted clean state alone, such as dice and cross_entropy;
            empty for the squared error in the space of states

    References:
        Wu et al. (2022), MedSegDiff, arXiv:2211.00611, whose code has 10 times the squared error;
        Wu et al. (2023), MedSegDiff-V2, arXiv:2301.11798, equation 10: Dice and cross entropy
    """

    prepared: ClassVar[bool] = True
    terms: tuple[LossTerm, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [type(term).__name__ for term in self.terms if not term.clean]
        if wrong:
            raise ValueError(
                "terms: expected losses of the predicted clean state alone, dice or "
                f"cross_entropy, got {wrong[0]}."
            )

    @property
    def leaves_out(self) -> bool:  # type: ignore[override]
        return bool(self.terms) and all(term.leaves_out for term in self.terms)

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        if kernel.classes is not None:
            return (
                "expected a kernel of real numbers, gaussian or cold, got discrete, whose states "
                "the image branch does not predict; leave the loss out."
            )
        problems = (term.problem(kernel, recipe, space) for term in self.terms)
        return next((p for p in problems if p is not None), None)

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        assert context.condition.prepared is not None, "terms that are `prepared` are given it"
        x0 = context.network.conditioner.anchor(context.condition.prepared)
        assert x0 is not None, "anchor_problem"
        z_0 = context.z_0
        x0 = x0.to(z_0.dtype)
        if not self.terms:
            return mean_over_voxels((x0 - z_0).square())
        alone = replace(context, prediction=replace(context.prediction, x0=x0))
        return sum(
            (term.weight * term(alone) for term in self.terms[1:]),
            start=self.terms[0].weight * self.terms[0](alone),
        )
