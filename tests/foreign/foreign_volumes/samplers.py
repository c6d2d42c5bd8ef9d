r"""The midpoint rule for the probability flow, along the levels of a prediction,

.. math:: z_s = z_t + (\alpha_s - \alpha_t)\, \hat z_0(z_m, m) +
          (\sigma_s - \sigma_t)\, \hat\epsilon(z_m, m), \qquad m = (s + t) / 2,

with z_m the same from the prediction at (z_t, t). For a rectified flow it is z_t + (s - t) u(z_m),
and few steps stay in bounds where levels change fast.
"""

from dataclasses import dataclass

from volumediff.samplers._base import Sampler
from volumediff.schedules._base import per_sample


@dataclass(frozen=True)
class Midpoint(Sampler):
    """Second order for flows, two evaluations per step; the last one ends on the clean state."""

    def step(self, step):
        schedule, middle = step.kernel.schedule, (step.t + step.s) / 2
        if step.last or step.replaced:
            alpha, sigma = (per_sample(level, step.z_t) for level in schedule(step.s))
            return alpha * step.prediction.x0 + sigma * step.prediction.eps, ()

        def along(prediction, end):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(step.t), schedule(end)
            of_x0 = per_sample(alpha_s - alpha_t, step.z_t) * prediction.x0
            return step.z_t + of_x0 + per_sample(sigma_s - sigma_t, step.z_t) * prediction.eps

        found = step.evaluate(along(step.prediction, middle), middle)
        return along(found, step.s), ()
