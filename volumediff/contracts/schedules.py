"""The contract of noise schedules: clean at 0, noisier ever after, log-SNR and time inverse."""

import math
from typing import Any

import torch

from volumediff.contracts.requirements import built, equal, require, takes
from volumediff.schedules._base import Schedule, power

__all__ = ["check_schedule"]

CLOSE = {"atol": 1e-12, "rtol": 1e-9}


def check_schedule(cls: type, **arguments: Any) -> None:
    """Signal and noise over time, as they are, with zero terminal SNR, and shifted."""
    for more in ({}, {"zero_terminal_snr": True}, {"shift": 8.0}):
        _check(built(cls, arguments, more))
    if not takes(cls, "shift"):
        return
    plain, shifted = built(cls, arguments), built(cls, {**arguments, "shift": 64.0})
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    equal(
        plain.log_snr(t) - shifted.log_snr(t),
        torch.full_like(t, math.log(64)),
        "A shift does not divide the signal-to-noise ratio at every time.",
        rtol=1e-9,
    )


def _check(schedule: Schedule) -> None:
    t = torch.cat([torch.logspace(-6, -3, 20), torch.linspace(0.002, 1, 200)]).double()
    alpha, sigma = schedule(t)
    require(alpha.dtype == sigma.dtype == torch.float64, "Levels must be in float64.")
    require(bool((alpha >= 0).all() and (sigma > 0).all()), "Levels are negative, or not noisy.")
    equal(alpha[100:101], schedule(t[100:101])[0], "A time's level depends on the others.")
    first = schedule(torch.zeros(1, dtype=torch.float64))
    require(
        float(first[0]) == 1 and float(first[1]) == 0,
        f"At t = 0 the state must be clean, alpha = 1 and sigma = 0, got {float(first[0])} and "
        f"{float(first[1])}.",
    )
    snr = schedule.log_snr(t)
    require(bool((snr.diff() < 0).all()), "The log-SNR does not fall strictly with the time.")
    equal(schedule.time(snr), t, "time is not the inverse of log_snr.", atol=1e-9, rtol=1e-7)
    require(
        (float(alpha[-1]) == 0) == schedule.zero_terminal_snr,
        f"zero_terminal_snr is {schedule.zero_terminal_snr}, and alpha at t = 1 is "
        f"{float(alpha[-1]):.3g}.",
    )
    require(
        bool((power(alpha, sigma) == 1).all()) == schedule.variance_preserving,
        f"variance_preserving is {schedule.variance_preserving}, which alpha and sigma belie.",
    )
    require(
        bool((alpha == 1).all()) == schedule.variance_exploding,
        f"variance_exploding is {schedule.variance_exploding}, which alpha belies.",
    )
    inner, step = t[t > 0.01] - 0.0013, 1e-7
    slopes = [
        (a - b) / (2 * step)
        for a, b in zip(schedule(inner + step), schedule(inner - step), strict=True)
    ]
    for rate, slope in zip(schedule.rates(inner), slopes, strict=True):
        equal(rate, slope, "rates are not the derivatives of the levels.", atol=1e-5, rtol=1e-2)
