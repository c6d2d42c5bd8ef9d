r"""Trajectories of the probability flow: the states that a deterministic walk from noise passes.

A student that gives a whole trajectory in one call (an operator from noise to functions of time)
learns from M states of its teacher's walk in n steps of 1 / n,

.. math:: t_j = 1 - (j / M)^2, \qquad j = 1, \dots, M,

which are the steps n - n (j / M)^2 of the walk: n - 2 i^2 with i = 4, 8, 12, 16 for n = 512 and
M = 4. They lie close to each other near the noise, and the last one is the volume. Its loss is

.. math:: \ell = \sum_{j=1}^{M} w_j\, \overline{|\hat z_{t_j} - z_{t_j}|}, \qquad
          w_j = \operatorname{clip}(\alpha_{t_j} / \sigma_{t_j}, 1, 10^4).

References:
    Zheng et al. (2023), Fast Sampling of Diffusion Models via Operator Learning, arXiv:2211.13449,
        section 4 and appendix B
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.networks._precision import wide
from volumediff.schedules._base import Schedule

__all__ = ["trajectory_loss", "trajectory_steps", "trajectory_times", "walked"]

LEAST, MOST = 1.0, 1e4  # of the weights


def trajectory_times(states: int) -> Float[Tensor, "m"]:
    """t_1, ..., t_M in float64, the last one 0."""
    j = torch.arange(1, states + 1, dtype=torch.float64, device="cpu")
    return 1 - (j / states).square()


def trajectory_steps(states: int, steps: int) -> tuple[int, ...]:
    """How many of n steps are done at each of the times: n (j / M)^2.

    Raises:
        ValueError: n is no multiple of M^2, so that the walk does not pass these times
    """
    if steps % states**2:
        raise ValueError(
            f"steps: expected a multiple of {states**2}, the square of the {states} states, got "
            f"{steps}."
        )
    return tuple(steps // states**2 * j**2 for j in range(1, states + 1))


@torch.no_grad()
def walked(
    teacher: Model,
    z_1: Float[Tensor, "b k d h w"],
    condition: Condition,
    *,
    states: int,
    steps: int,
) -> Float[Tensor, "b m k d h w"]:
    """The states that a teacher passes at the times of a trajectory, by first-order steps (DDIM).

    Arguments:
        z_1: noise at t = 1
        condition: prepared
        states: M
        steps: n, of the walk
    """
    wanted, found, z = trajectory_steps(states, steps), [], z_1
    for k in range(steps):
        t, s = (z_1.new_full((len(z),), 1 - i / steps, dtype=torch.float64) for i in (k, k + 1))
        said = teacher.denoise(z, t, condition)
        z = teacher.kernel.corrupt(said.x0, s, said.eps)
        if k + 1 in wanted:
            found.append(z)
    return torch.stack(found, dim=1)


def trajectory_loss(
    found: Float[Tensor, "b m k d h w"],
    target: Float[Tensor, "b m k d h w"],
    schedule: Schedule,
) -> Float[Tensor, "b"]:
    """The weighted mean absolute error of each sample, summed over the times."""
    alpha, sigma = schedule(trajectory_times(found.shape[1]).to(found.device))
    weight = (alpha / sigma).clamp(LEAST, MOST)
    errors = (wide(found) - wide(target)).abs().flatten(2).mean(2)
    return (weight.to(errors) * errors).sum(1)
