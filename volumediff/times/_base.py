r"""Contract of densities of training times: one number in [0, 1) becomes a time.

The number of a sample follows from the sample's key alone, so that batches may be cut and ordered
in any way. It is turned upside down, u = 0 being the noisiest time: t = 0 has no noise to remove
and is never drawn.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.randomness import uniform
from volumediff.schedules._base import Schedule

__all__ = ["TimeDensity", "check_interval", "remaining"]


@dataclass(frozen=True)
class TimeDensity(ABC):
    """A density on an interval of times."""

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """(low, high): times are in (low, high], and nothing else is ever drawn."""

    @abstractmethod
    def at(self, u: Float[Tensor, "b"], schedule: Schedule) -> Float[Tensor, "b"]:
        """The times of uniform numbers in [0, 1), falling in u; both in float64.

        Arguments:
            schedule: of the kernel, for densities of noise levels
        """

    def draw(
        self, keys: Sequence[int], schedule: Schedule, *, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "b"]:
        """A time per key, in float64; made on the CPU, so that no device changes it."""
        u = torch.tensor([uniform(key, "t") for key in keys], dtype=torch.float64, device="cpu")
        return self.at(u, schedule).to(device)


def check_interval(low: float, high: float) -> None:
    """Raises ValueError unless 0 <= low < high <= 1."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"expected low and high with 0 <= low < high <= 1, got {low} and {high}.")


def remaining(
    u: Float[Tensor, "b"], below: Float[Tensor, ""] | float, up_to: Float[Tensor, ""] | float
) -> Float[Tensor, "b"]:
    """Probabilities of a density that is cut to an interval, between its values at both ends.

    Arguments:
        below: its distribution function at the lower end
        up_to: the same at the upper end, whose u is 0
    """
    return up_to - (up_to - below) * u
