r"""The moves that deterministic samplers share: along a constant prediction,

.. math:: z_s = \alpha_s \hat z_0 + \sigma_s \hat\epsilon,

which is an Euler step of the probability-flow equation. With an estimate of z_0 or of eps alone
the other follows from z_t: `along_x0` divides by sigma_t, `along_eps` by alpha_t.
"""

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Prediction
from volumediff.schedules._base import Schedule, per_sample

__all__ = ["along_eps", "along_x0", "averaged", "euler", "share"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


def euler(schedule: Schedule, prediction: Prediction, s: Level) -> State:
    """z_s along both estimates of a prediction."""
    alpha, sigma = schedule(s)
    x0, eps = prediction.x0, prediction.eps
    return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * eps


def along_x0(schedule: Schedule, z_t: State, x0: State, t: Level, s: Level) -> State:
    """z_s from z_t along an estimate of the clean state; needs sigma_t > 0."""
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    kept = sigma_s / sigma_t
    return per_sample(kept, z_t) * z_t + per_sample(alpha_s - kept * alpha_t, z_t) * x0


def along_eps(schedule: Schedule, z_t: State, eps: State, t: Level, s: Level) -> State:
    """z_s from z_t along an estimate of the noise; needs alpha_t > 0."""
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    kept = alpha_s / alpha_t
    return per_sample(kept, z_t) * z_t + per_sample(sigma_s - kept * sigma_t, z_t) * eps


def share(schedule: Schedule, t: Level, s: Level) -> Level:
    """Weight w of the prediction at s in `heun`: 1/2, less where a step more than halves S."""
    r = _ratio(schedule, t, s)
    return (r / (1 - r)).clamp(max=1) / 2


def averaged(
    schedule: Schedule, prediction: Prediction, below: Prediction, t: Level, s: Level
) -> State:
    """z_s of `heun`, from the predictions at t and, after an Euler step, at s."""
    factor = (1 / _ratio(schedule, t, s) - 1).clamp(max=1) / 2  # (1 / r - 1) w, also at r = 0
    change = below.eps - prediction.eps
    return euler(schedule, prediction, s) - per_sample(schedule(s)[1] * factor, change) * change


def _ratio(schedule: Schedule, t: Level, s: Level) -> Level:
    """r = S_s / S_t with S = sigma / alpha: in [0, 1), and 0 at s = 0 and at alpha_t = 0."""
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    return alpha_t * sigma_s / (sigma_t * alpha_s)
