r"""Learned weight of every noise level, in place of the kernel's own loss,

.. math:: \frac{\ell_{\text{kernel}}}{e^{u(t)}} + u(t),

which is least at u(t) = log E[l | t]: all levels then contribute alike, however large their errors
are, and u says how large. The network's optimum at a level is not moved.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.losses._base import LossContext, LossTerm

__all__ = ["LogUncertainty", "Uncertainty"]

# log-SNR beyond which u stays what it is.
ENDS = 2 * math.log(1e5)
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Uncertainty(LossTerm):
    """The kernel's loss over a learned size of it, as a function of the log-SNR.

    It has the kernel's loss in it, so that `kernel_weight` is 0.

    Arguments:
        frequencies: Fourier features of the log-SNR that u is linear in

    References:
        Karras et al. (2024), Analyzing and Improving the Training Dynamics of Diffusion Models,
        arXiv:2312.02696, eq. 14 and 22, on the log-SNR / 8 for their ln(sigma) / 4; Kendall et
        al. (2018), arXiv:1705.07115
    """

    contains_kernel: ClassVar[bool] = True
    frequencies: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frequencies < 1:
            raise ValueError(f"expected frequencies >= 1, got {self.frequencies}.")

    def side(self, channels: int, image_channels: int) -> nn.Module:
        return LogUncertainty(self.frequencies)

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        assert context.side is not None, "Model builds it"
        loss = context.kernel.loss(
            context.output, context.z_0, context.z_t, context.t, context.noise
        )
        log_snr = context.kernel.schedule.log_snr(context.t).clamp(-ENDS, ENDS)
        u = context.side(log_snr).to(loss)
        return loss * torch.exp(-u) + u


class LogUncertainty(nn.Module):
    """u of a log-SNR: linear in cosines of normal frequencies, and 0 at first.

    Frequencies are the quantiles of N(0, (2 pi)^2) and phases multiples of the golden ratio, in
    place of the paper's random ones.

    Arguments:
        frequencies: number of features
    """

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(frequencies))

    def forward(self, log_snr: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        n = len(self.weight)
        i = torch.arange(n, dtype=torch.float64, device=log_snr.device)
        omega = 2 * math.pi * 2**0.5 * torch.erfinv((2 * i + 1) / n - 1)
        phase = 2 * math.pi * GOLDEN * i
        features = torch.cos(log_snr.double()[:, None] / 8 * omega + phase)
        return (2 / n) ** 0.5 * features.to(self.weight) @ self.weight
