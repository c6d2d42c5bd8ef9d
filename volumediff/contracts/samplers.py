"""The contract of samplers: data whose denoiser is known is reproduced."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from volumediff import config
from volumediff.compatibility.chains import walks
from volumediff.condition import Condition
from volumediff.contracts.closed_form import gaussian, gaussian_ends
from volumediff.contracts.requirements import built, equal, require, takes
from volumediff.kernels._base import Kernel, Prediction
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.edm import EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.randomness import normal
from volumediff.samplers._base import Context, InvertibleSampler, Sampler
from volumediff.samplers.spans import Spans
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified

__all__ = ["check_sampler"]

MEAN, STD = 0.3, 0.5
KERNELS = (
    Gaussian(LinearSchedule(zero_terminal_snr=True)),
    Gaussian(Cosine()),
    Gaussian(Rectified(), "u"),
    EDM(Exploding()),
)
BITS = Discrete(Cosine(zero_terminal_snr=True))
SHARE = 0.2  # of bits that are 1


def check_sampler(cls: type, **arguments: Any) -> None:
    """The law of the data, exact ends, hooks that are asked, kernels that are refused."""
    made = {n: _built(cls, arguments, n) for n in (1, 3, 8, 100)}
    if not walks(made[1], "gaussian"):
        _bits(made)
        return
    for kernel in KERNELS:
        _law(made[100], kernel)
        for steps in (1, 3):
            _few(made[steps], kernel)
    _times(made[8], KERNELS[0])
    _hooks(made[8], KERNELS[0])
    _apart(made[8], KERNELS[0])
    _kernels(made[8])
    if isinstance(made[100], InvertibleSampler):
        _inverts(made[100], KERNELS[1])


def _built(cls: type, arguments: dict[str, Any], steps: int) -> Sampler:
    """A sampler of so many steps, which are its own argument or those of a model's walk."""
    if takes(cls, "walk"):
        return built(cls, arguments, objects={"walk": Spans(steps)})
    return built(cls, {**arguments, "steps": steps})


def _run(sampler: Sampler, kernel: Kernel, z: Tensor, **more: Any) -> Tensor:
    def noise(step: int) -> Tensor:
        return normal(tuple(z.shape), "contracts", "step", step, dtype=z.dtype)

    times = more.pop("times", None)
    times = sampler.times(kernel.schedule) if times is None else times
    exact = gaussian_ends if sampler.through_ends else gaussian
    denoise = more.pop("denoise", exact(kernel.schedule, MEAN, STD))
    return sampler.sample(denoise, kernel, z, times, **{"noise": noise, **more})


def _bits(made: dict[int, Sampler]) -> None:
    """What is asked of samplers of Gaussian states, for those of discrete ones."""
    z = BITS.prior(normal((1, 1, 1, 40, 500), "contracts", "bits", dtype=torch.float64))
    for steps in (1, 3, 100):
        shares: list[float] = []

        def watch(context: Context, seen: list[float] = shares) -> tuple[Tensor, Tensor]:
            seen.append(float((1 + context.z_t).mean() / 2))
            return context.prediction.x0, context.z_t

        def run(sampler: Sampler = made[steps], **more: Any) -> Tensor:
            return _run(sampler, BITS, z, denoise=_exact_bits, **more)

        end = run(on_x0=watch)
        require(len(shares) == steps, f"The hook is called {len(shares)} times in {steps} steps.")
        require(torch.equal(end, run()), "A hook without changes has an effect.")
        require(end.abs().max() <= 1 and end.dtype == z.dtype, "States are no bits.")
        kept = BITS.schedule(made[steps].times(BITS.schedule)[:-1])[0].square()
        for share, alpha in zip(shares, kept.tolist(), strict=True):
            expected = alpha * SHARE + (1 - alpha) / 2
            require(
                abs(share - expected) < 0.02,
                f"At a level where a share of {expected:.3f} of all bits is 1 it is {share:.3f}.",
            )
    few = z[..., :8].expand(3, -1, -1, -1, -1)
    fields = {i: normal(tuple(few.shape), "contracts", "step", i, dtype=z.dtype) for i in range(8)}
    whole = _run(made[8], BITS, few, denoise=_exact_bits)
    one = _run(made[8], BITS, few[1:2], denoise=_exact_bits, noise=lambda i: fields[i][1:2])
    equal(one, whole[1:2], "A sample's result depends on its batch.", atol=1e-12)
    _times(made[8], KERNELS[0])
    _kernels(made[8])


def _exact_bits(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
    """The posterior of independent bits, of which a share is 1."""
    kept = per_sample(BITS.schedule(t)[0].square(), z_t).to(z_t)
    evidence = torch.log((1 + kept) / (1 - kept).clamp(min=1e-300))
    return BITS.predict(math.log(SHARE / (1 - SHARE)) + z_t * evidence, z_t, t)


def _quantiles(n: int) -> Tensor:
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (torch.erfinv(2 * u - 1) * 2**0.5).view(1, 1, 1, 1, n)


def _draw(dtype: torch.dtype = torch.float64) -> Tensor:
    return normal((3, 2, 3, 2, 4), "contracts", "z", dtype=dtype)


def _law(sampler: Sampler, kernel: Kernel) -> None:
    out = _run(sampler, kernel, kernel.prior(_quantiles(3000)))
    mean, std = float(out.mean()), float(out.std())
    require(
        abs(mean - MEAN) < 0.03 and abs(std / STD - 1) < 0.08,
        f"Data of mean {MEAN} and deviation {STD} whose denoiser is exact come out with mean "
        f"{mean:.3f} and deviation {std:.3f} after 100 steps.",
    )


def _few(sampler: Sampler, kernel: Kernel) -> None:
    z = kernel.prior(_draw(torch.float32))
    out = _run(sampler, kernel, z)
    require(out.shape == z.shape and out.dtype == z.dtype, "States change their shape or dtype.")
    require(out.isfinite().all() and out.abs().max() < 10, "Few steps give values out of bounds.")


def _times(sampler: Sampler, kernel: Kernel) -> None:
    for start in (1.0, 0.25):
        times = sampler.times(kernel.schedule, start)
        ends = (float(times[0]), float(times[-1]))
        require(ends == (start, 0.0), f"Times from {start} to 0 go from {ends[0]} to {ends[1]}.")
        require(times.dtype == torch.float64, "Expected times in float64.")
        enough = len(times) == 9 if start == 1 else 2 <= len(times) <= 9
        require(enough, f"Expected 9 times, or fewer from a later start, got {len(times)}.")
        require(bool((times.diff() < 0).all()), "Times do not descend.")


def _hooks(sampler: Sampler, kernel: Kernel) -> None:
    seen: list[int] = []

    def watch(context: Context) -> tuple[Tensor, Tensor]:
        seen.append(context.step)
        return context.prediction.x0, context.z_t

    z = _draw()
    watched = _run(sampler, kernel, z, on_x0=watch)
    require(seen == list(range(8)), f"The hook is called at the steps {seen} of 8.")
    require(
        torch.equal(watched, _run(sampler, kernel, z)),
        "A hook without changes has an effect.",
    )

    def fixed(context: Context) -> tuple[Tensor, Tensor]:
        return torch.full_like(context.z_t, 0.7), context.z_t

    end = _run(sampler, kernel, z, on_x0=fixed)
    equal(end, torch.full_like(z, 0.7), "The clean state of a hook is not followed.", atol=1e-6)


def _apart(sampler: Sampler, kernel: Kernel) -> None:
    z = _draw()
    whole = _run(sampler, kernel, z)
    fields = {i: normal(tuple(z.shape), "contracts", "step", i, dtype=z.dtype) for i in range(8)}
    one = _run(sampler, kernel, z[1:2], noise=lambda i: fields[i][1:2])
    equal(one, whole[1:2], "A sample's result depends on its batch.", atol=1e-12)


def _kernels(sampler: Sampler) -> None:
    """A kernel is refused, in one line, or its chain ends in the true clean state."""
    z_0 = _draw().sign()  # bits are states of every kernel
    accepted = 0
    for name in config.available("kernel"):
        kernel = config.build("kernel", {"name": name, "schedule": "linear"})
        try:
            sampler.check(type(kernel))
        except ValueError as error:
            require("\n" not in str(error), f"The refusal of the kernel {name} is not one line.")
            continue

        def denoise(z: Tensor, t: Tensor, condition: Condition, k: Kernel = kernel) -> Prediction:
            # what this kernel's networks never say is NaN here, too
            said, truth = k.predict(z_0, z, t), Prediction.from_x0(z_0, z, *k.schedule(t))
            eps, v = (torch.where(a.isnan(), a, b) for a, b in _pairs(said, truth))
            return replace(truth, eps=eps, v=v)

        one = torch.ones(3, dtype=torch.float64)
        z = kernel.corrupt(z_0, one, _draw().roll(1, 2))
        end = _run(sampler, kernel, z, denoise=denoise)
        text = f"The kernel {name} is not refused, and its chain does not end in the clean state."
        equal(end, z_0, text, atol=1e-6)
        accepted += 1
    require(accepted, "It refuses every kernel.")


def _pairs(a: Prediction, b: Prediction) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (a.eps, b.eps), (a.v, b.v)


def _inverts(sampler: InvertibleSampler, kernel: Kernel) -> None:
    times = sampler.times(kernel.schedule, 0.6)
    denoise = gaussian(kernel.schedule, MEAN, STD)
    z = MEAN + STD * _draw()
    try:
        up = sampler.invert(denoise, kernel, z, times)
    except ValueError:  # with these arguments it draws noise, and says so
        return
    back = sampler.sample(denoise, kernel, up, times)
    equal(back, z, "sample after invert does not come back.", atol=0.05)
