r"""Cold kernel: another volume takes the place of noise,

.. math:: z_t = \alpha_t z_0 + (1 - \alpha_t) z_1,

with z_1 the state of a degraded volume, and 1 - alpha_t its severity. The network gives z_0, and
the rest follows: it is a straight line, so that the restoration step of cold diffusion,
z_s = z_t - D(z_0, t) + D(z_0, s), is the point of the line at s.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction, check_fading
from volumediff.schedules._base import per_sample

__all__ = ["Cold"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class Cold(Kernel):
    """A line from a state to that of its degraded version; `noise` is the latter throughout.

    Arguments:
        schedule: of alpha; its sigma is not used

    References:
        Bansal et al. (2022), Cold Diffusion, arXiv:2208.09392, algorithm 2; Marimont et al.
        (2023), DISYRE, arXiv:2311.15453
    """

    path: ClassVar[str] = "cold"
    predicts: ClassVar[tuple[str, ...]] = ("x0", "eps", "v")

    def __post_init__(self) -> None:
        check_fading(self.schedule)

    def prior(self, noise: State, start: float = 1.0) -> State:
        """There is no distribution of degraded volumes to draw from.

        Raises:
            ValueError: always
        """
        raise ValueError("a cold kernel cannot sample: it starts from a volume, not from noise.")

    def corrupt(self, z_0: State, t: Level, noise: State) -> State:
        return torch.lerp(noise, z_0, self._alpha(t, z_0))

    def renoise(self, z_s: State, s: Level, t: Level, noise: State) -> State:
        ratio = self._alpha(t, z_s) / self._alpha(s, z_s)
        return torch.lerp(noise, z_s, ratio)

    def predict(self, output: State, z_t: State, t: Level) -> Prediction:
        alpha = self.schedule(t)[0]
        return Prediction.from_x0(output, z_t, alpha, 1 - alpha)

    def step(self, prediction: Prediction, z_t: State, t: Level, s: Level, noise: State) -> State:
        return torch.lerp(prediction.eps, prediction.x0, self._alpha(s, z_t))

    def loss(self, output: State, z_0: State, z_t: State, t: Level, noise: State) -> Level:
        dtype = torch.promote_types(output.dtype, torch.float32)
        return (output.to(dtype) - z_0.to(dtype)).square().flatten(1).mean(1)

    def _alpha(self, t: Level, z: State) -> Float[Tensor, "b 1 1 1 1"]:
        return per_sample(self.schedule(t)[0], z)
