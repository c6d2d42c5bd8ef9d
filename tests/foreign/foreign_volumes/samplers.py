r"""The midpoint rule for the probability flow, along the velocity of a prediction,

.. math:: z_s = z_t + (s - t)\, u(z_m, m), \qquad z_m = z_t + (m - t)\, u(z_t, t), \qquad
          m = (s + t) / 2.
"""

from dataclasses import dataclass

from volumediff.samplers._base import Sampler
from volumediff.schedules._base import per_sample


@dataclass(frozen=True)
class Midpoint(Sampler):
    """Second order for flows, two evaluations per step; the last one ends on the clean state."""

    def step(self, step):
        if step.last or step.replaced:
            alpha, sigma = (per_sample(level, step.z_t) for level in step.kernel.schedule(step.s))
            return alpha * step.prediction.x0 + sigma * step.prediction.eps, ()
        schedule, middle = step.kernel.schedule, (step.t + step.s) / 2
        u = step.prediction.velocity(schedule.rates(step.t))
        z = step.z_t + per_sample(middle - step.t, step.z_t) * u
        u = step.evaluate(z, middle).velocity(schedule.rates(middle))
        return step.z_t + per_sample(step.s - step.t, step.z_t) * u, ()
