r"""Discrete DDIM: a class is kept from the state, taken from the prediction, or drawn anew,

.. math:: z_s \sim Cat\Big(g z_t + (\bar\alpha_s - g \bar\alpha_t)\, p
          + \big(1 - \bar\alpha_s - g (1 - \bar\alpha_t)\big) \pi\Big), \qquad
          0 \le g \le \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t},

with p the predicted classes of z_0 and pi the law that the kernel ends in. Every variable has its
exact marginals for any g and any number of steps; what variables have to do with each other needs
steps, as everywhere.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.samplers._base import Memory, Sampler, Step

__all__ = ["DiscreteDDIM"]


@dataclass(frozen=True)
class DiscreteDDIM(Sampler):
    """Skips levels of a discrete kernel, one evaluation per step.

    Arguments:
        share: of the largest g, in [0, 1]; 1 keeps what may be kept (BerDiff), 0 draws every
            variable anew around the prediction
        mean: whether a chain ends on the probabilities of the classes (of confidence) in place of
            the likeliest class

    References:
        Song et al. (2021), Denoising Diffusion Implicit Models, arXiv:2010.02502, appendix A;
        Chen et al. (2023), BerDiff, arXiv:2304.04429, for g at its largest; Zbinden et al. (2023),
        CCDM, arXiv:2303.08888, for the two ends
    """

    paths: ClassVar[tuple[str, ...] | None] = ("discrete",)
    reads: ClassVar[tuple[str, ...]] = ("x0",)
    _: KW_ONLY
    share: float = 1.0
    mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"expected share in [0, 1], got {self.share}.")

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        kernel, x0 = step.kernel, step.prediction.x0
        if step.last and self.mean:
            return x0, ()
        p = kernel.probabilities(x0)
        p = kernel.skip(p, step.z_t, step.t, step.s, share=self.share)
        return kernel.draw(p, step.s, step.z_t * 0 if step.last else step.noise()), ()
