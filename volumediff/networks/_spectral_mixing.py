r"""Mixing of the states of a trajectory: a convolution over time, by its lowest frequencies,

.. math:: h \leftarrow h + a\big(\mathcal{F}^{-1} (R\, \mathcal{F} h)\big), \qquad
          (R\, \mathcal{F} h)_f = R_f\, (\mathcal{F} h)_f \;\text{ for } f < F, \;
          0 \text{ above},

with the Fourier transform over the M states, voxel by voxel, one complex matrix R_f over channels
for each frequency, and a the leaky ReLU. States and channels together, it is a linear map of M C
channels,

.. math:: W_{(m, o), (n, c)} = \sum_{f < F} \frac{w_f}{M} \big(\mathrm{Re}\, R_{f, oc}
          \cos \tfrac{2 \pi f (m - n)}{M} - \mathrm{Im}\, R_{f, oc}
          \sin \tfrac{2 \pi f (m - n)}{M}\big),

w_f = 1 at f = 0 and at f = M / 2, and 2 elsewhere: a convolution of size 1, in any dtype.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

__all__ = ["SpectralMixing", "mixed"]

SLOPE = 0.01  # of the leaky ReLU


def mixed(
    x: Float[Tensor, "bm c d h w"], weight: Float[Tensor, "mc mc"], *, states: int
) -> Float[Tensor, "bm c d h w"]:
    """A linear map of the channels of all states of a sample together, in the dtype of x.

    Arguments:
        x: the states of one sample after the other
        states: M, of a sample
    """
    if has_torch_function_unary(x):
        return handle_torch_function(mixed, (x,), x, weight, states=states)
    kernel = weight.to(x.dtype)[:, :, None, None, None]
    together = x.reshape(-1, len(weight), *x.shape[2:])
    return F.conv3d(together, kernel).reshape(x.shape)


class SpectralMixing(nn.Module):
    """h + a(W h), which starts as the identity: R = 0.

    Arguments:
        channels: C
        states: M >= 1, states of a trajectory; a batch holds those of one sample after the other
        modes: F, frequencies that are mixed; all that there are, M // 2 + 1, at most

    References:
        Zheng et al. (2023), Fast Sampling of Diffusion Models via Operator Learning,
        arXiv:2211.13449, section 3.3
    """

    halo = (0, 0, 0)
    global_axes = ""

    def __init__(self, channels: int, *, states: int, modes: int) -> None:
        super().__init__()
        most = states // 2 + 1
        if not 1 <= modes <= most:
            raise ValueError(
                f"modes: expected 1 to {most}, the frequencies of {states} states, got {modes}."
            )
        self.states = states
        self.real = nn.Parameter(torch.zeros(modes, channels, channels))
        self.imaginary = nn.Parameter(torch.zeros(modes, channels, channels))

    def weight(self) -> Float[Tensor, "mc mc"]:
        """W."""
        modes, channels, _ = self.real.shape
        m = torch.arange(self.states, device=self.real.device, dtype=self.real.dtype)
        f = torch.arange(modes, device=m.device, dtype=m.dtype)
        angle = 2 * math.pi / self.states * f[:, None, None] * (m[:, None] - m[None])
        once = (f == 0) | (2 * f == self.states)
        share = torch.where(once, 1.0, 2.0).to(m)[:, None, None] / self.states
        w = torch.einsum("fmn,foc->monc", share * angle.cos(), self.real)
        w = w - torch.einsum("fmn,foc->monc", share * angle.sin(), self.imaginary)
        return w.reshape(self.states * channels, self.states * channels)

    def forward(self, x: Float[Tensor, "bm c d h w"]) -> Float[Tensor, "bm c d h w"]:
        return x + F.leaky_relu(mixed(x, self.weight(), states=self.states), SLOPE)
