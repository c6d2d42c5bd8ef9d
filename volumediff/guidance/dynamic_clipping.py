r"""Dynamic clipping: predictions that strong guidance drives out of range are brought back,

.. math:: \hat z_0 \leftarrow \mathrm{clip}(\hat z_0, -s, s)\, \ell / s, \qquad
          s = \max(\ell, Q_q(|\hat z_0|)),

sample by sample, and ε and v follow from the same z_t. Within the limit nothing changes.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from volumediff.condition import Condition
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.schedules._base import per_sample

__all__ = ["DynamicClipping"]


@dataclass(frozen=True)
class DynamicClipping(Guidance):
    """Clips predictions to a quantile of their own, and scales them back to the limit.

    Arguments:
        quantile: q in (0, 1]; 0.99 in Diff-SCM
        limit: l; the published 1 is for images in [-1, 1], states have unit variance

    References:
        Saharia et al. (2022), Imagen, arXiv:2205.11487, section 2.3 (dynamic thresholding);
        Sanchez et al. (2022), arXiv:2207.12268
    """

    quantile: float = 0.99
    limit: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1 or not self.limit > 0:
            raise ValueError(
                f"expected quantile in (0, 1] and limit > 0, got {self.quantile} and {self.limit}."
            )

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The clipped denoiser."""

        def clipped(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
            p = denoise(z_t, t, condition)
            sizes = p.x0.abs().flatten(1)
            rank = min(max(round(self.quantile * sizes.shape[1]), 1), sizes.shape[1])
            s = sizes.kthvalue(rank, dim=1).values.clamp(min=self.limit)
            if bool((sizes.amax(1) <= self.limit).all()):
                return p
            s = per_sample(s, p.x0)
            x0 = p.x0.clamp(-s, s) * (self.limit / s)
            # (z_t, v) is (x0, eps) turned by (alpha, sigma), which every voxel knows
            power = (p.x0.square() + p.eps.square()).flatten(1).double().sum(1)
            alpha = (z_t * p.x0 + p.v * p.eps).flatten(1).double().sum(1) / power
            sigma = (z_t * p.eps - p.v * p.x0).flatten(1).double().sum(1) / power
            eps = p.eps - per_sample(alpha / sigma, p.x0) * (x0 - p.x0)
            v = per_sample(alpha, p.x0) * eps - per_sample(sigma, p.x0) * x0
            return replace(p, x0=x0, eps=eps, v=v)

        return clipped
