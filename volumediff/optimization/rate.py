r"""Learning rate as a function of the step alone, so that resuming needs no scheduler state.

.. math:: \eta(n) = \eta \cdot \min\left(1, \frac{n + 1}{W}\right) \cdot
          \left[ f + (1 - f)\, \frac{1 + \cos \pi p}{2} \right], \qquad
          p = \operatorname{clip}\left(\frac{n - W}{N - W}, 0, 1\right)

for update n = 0, 1, ..., N - 1, with warm-up W and final fraction f. With a power q the bracket is
:math:`f + (1 - f)(1 - p)^q`.
"""

import math

from volumediff.settings.sections import Optim

__all__ = ["learning_rate"]


def learning_rate(optim: Optim, step: int) -> float:
    """The rate of update number `step` (from 0)."""
    warm = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    length = optim.steps - optim.warmup
    progress = min(max((step - optim.warmup) / length, 0.0), 1.0) if length > 0 else 0.0
    if optim.power is None:
        left = (1 + math.cos(math.pi * progress)) / 2
    else:
        left = (1 - progress) ** optim.power
    return optim.lr * warm * (optim.decay + (1 - optim.decay) * left)
