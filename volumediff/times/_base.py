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
from volumediff.transfer import sent

__all__ = ["TimeDensity", "check_interval"]


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
        drawn = [torch.tensor([uniform(k, "t")], dtype=torch.float64, device="cpu") for k in keys]
        # One by one: the last bit of vectorised functions depends on the place in the vector.
        return sent(torch.cat([self.at(u, schedule) for u in drawn]), device)


def check_interval(low: float, high: float) -> None:
    """Raises ValueError unless 0 <= low < high <= 1."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"expected low and high with 0 <= low < high <= 1, got {low} and {high}.")
