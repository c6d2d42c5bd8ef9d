r"""A rectified flow: straight lines from data to noise, whose velocity the network learns,

.. math:: z_t = (1 - t) z_0 + t \epsilon, \qquad u = \epsilon - z_0,

trained at times of the density 6 t (1 - t). Liu et al. (2023), arXiv:2209.03003.
"""

from dataclasses import dataclass

import torch

from volumediff.kernels.gaussian import Gaussian, Quantity
from volumediff.schedules._base import Schedule
from volumediff.times._base import TimeDensity


class Straight(Schedule):
    """Signal 1 - t and noise t."""

    zero_terminal_snr = True

    def __call__(self, t):
        return 1 - t.double(), t.double()


@dataclass(frozen=True)
class RectifiedFlow(Gaussian):
    """Straight lines from data to noise; the network gives their velocity."""

    schedule: Schedule = Straight()  # noqa: RUF009 - holds nothing
    prediction: Quantity = "u"


@dataclass(frozen=True)
class Middle(TimeDensity):
    """Training times of the density 6 t (1 - t), most of them in the middle."""

    support = (0.0, 1.0)

    def at(self, u, schedule):
        # the distribution function 3 t² - 2 t³ solved for t, in closed form
        return 0.5 - torch.sin(torch.asin(1 - 2 * (1 - u)) / 3)
