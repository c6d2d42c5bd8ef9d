r"""Several guidances at once: what each of them changes, added up,

.. math:: \hat\epsilon = \epsilon + \sum_i w_i\, (\epsilon_i - \epsilon),

ε the prediction without guidance and ε_i that with the i-th term alone.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from volumediff.condition import Condition
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser, Prediction

__all__ = ["Sum"]


@dataclass(frozen=True)
class Sum(Guidance):
    """Guidances that add up.

    Arguments:
        terms: the guidances
        weights: w_i; empty for 1 each

    References:
        Liu et al. (2022), Compositional Visual Generation with Composable Diffusion Models,
        arXiv:2206.01714
    """

    terms: tuple[Guidance, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms or len(self.weights) not in (0, len(self.terms)):
            raise ValueError(
                f"expected at least one term and a weight for each, got {len(self.terms)} terms "
                f"and {len(self.weights)} weights."
            )

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser."""
        parts = [term(denoise) for term in self.terms]
        weights = self.weights or (1.0,) * len(parts)

        def guided(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
            base = denoise(z_t, t, condition)
            x0, eps, v = base.x0, base.eps, base.v
            for part, weight in zip(parts, weights, strict=True):
                changed = part(z_t, t, condition)
                x0 = x0 + weight * (changed.x0 - base.x0)
                eps = eps + weight * (changed.eps - base.eps)
                v = v + weight * (changed.v - base.v)
            return replace(base, x0=x0, eps=eps, v=v)

        return guided
