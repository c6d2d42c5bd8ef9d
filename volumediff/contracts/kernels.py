"""The contract of kernels: corruption, reading of outputs, and the minimum of the loss."""

from typing import Any

import torch
from torch import Tensor

from volumediff.contracts.requirements import built, equal, require
from volumediff.kernels._base import Kernel, Prediction
from volumediff.randomness import normal

__all__ = ["check_kernel"]


def _draw(key: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal((3, 2, 3, 2, 4), "contracts", key, dtype=dtype)


def _at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check_kernel(cls: type, **arguments: Any) -> None:
    """Corruption starts clean, samples are apart, and the loss is least at the true state."""
    kernel: Kernel = built(cls, arguments, {"schedule": "linear"})
    require(kernel.path, "The class does not declare its path, so that nothing works with it.")
    # bits are states of every kernel
    z, noise = _draw("z").sign(), _draw("noise")
    t, s = _at(0.2, 0.6, 1.0), _at(0.0, 0.5, 0.3)
    equal(kernel.corrupt(z, 0 * t, noise), z, "At t = 0 the state is not the clean one.")
    z_t = kernel.corrupt(z, t, noise)
    _apart(kernel, z, z_t, t, s, noise)
    _ends(kernel, z, z_t, t)
    _types(kernel, z, noise, t, s)
    _teaches(kernel, z, noise)
    _shown(kernel, z_t, t)


def _part(p: Prediction, i: slice) -> Prediction:
    return Prediction(p.x0[i], p.eps[i], p.v[i])


def _apart(kernel: Kernel, z: Tensor, z_t: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> None:
    output = _draw("output")
    p = kernel.predict(output, z_t, t)
    moves = {
        "corrupt": lambda i: kernel.corrupt(z[i], t[i], noise[i]),
        "renoise": lambda i: kernel.renoise(z[i], s[i], t[i], noise[i]),
        "predict": lambda i: kernel.predict(output[i], z_t[i], t[i]).x0,
        "step": lambda i: kernel.step(_part(p, i), z_t[i], t[i], s[i], noise[i]),
        "loss": lambda i: kernel.loss(output[i], z[i], z_t[i], t[i], noise[i]),
    }
    for name, move in moves.items():
        whole = move(slice(None))
        require(whole.isfinite().all(), f"{name} gives values that are not finite.")
        for i in range(3):
            equal(
                move(slice(i, i + 1)),
                whole[i : i + 1],
                f"{name} of a sample depends on its batch, or times are not per sample.",
                atol=1e-12,
            )


def _ends(kernel: Kernel, z: Tensor, z_t: Tensor, t: Tensor) -> None:
    alpha, sigma = kernel.schedule(t)
    truth = Prediction.from_x0(z, z_t, alpha, sigma)
    last = kernel.step(truth, z_t, t, 0 * t, _draw("last"))
    equal(last, z, "A step to s = 0 with the true clean state does not give it.", atol=1e-9)
    guess = kernel.predict(_draw("guess"), z_t, t)
    quiet, loud = (kernel.step(guess, z_t, t, 0 * t, _draw("last") * k) for k in (0, 1))
    equal(quiet, loud, "A step to s = 0 leaves noise in the clean state.")


def _types(kernel: Kernel, z: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> None:
    z, noise = z.float(), noise.float()
    z_t = kernel.corrupt(z, t, noise)
    p = kernel.predict(z, z_t, t)
    made = [z_t, kernel.renoise(z, s, t, noise), p.x0, kernel.step(p, z_t, t, s, noise)]
    require({x.dtype for x in made} == {torch.float32}, "States do not keep their dtype.")
    half = kernel.loss(z.bfloat16(), z.bfloat16(), z_t.bfloat16(), t, noise.bfloat16())
    require(half.dtype in (torch.float32, torch.float64), "Losses must be at least in float32.")


def _shown(kernel: Kernel, z_t: Tensor, t: Tensor) -> None:
    """What networks see: finite at the ends, too, with a clock that never falls in t."""
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    state = z_t[:1].expand(21, -1, -1, -1, -1)
    seen, clock = kernel.shown(state, times)
    require(seen.shape == state.shape and seen.dtype == state.dtype, "Shape or dtype change.")
    require(seen.isfinite().all() and clock.isfinite().all(), "What networks see is not finite.")
    require((clock.diff() >= 0).all() and clock[5] < clock[15], "The clock of networks falls.")
    alone = kernel.shown(z_t[1:2], t[1:2])
    for one, all_of_them in zip(alone, kernel.shown(z_t, t), strict=True):
        equal(one, all_of_them[1:2], "What a network sees of a sample depends on its batch.")


def _teaches(kernel: Kernel, z: Tensor, noise: Tensor) -> None:
    """Least squares on the output alone: its reading must be the clean state."""
    t = _at(0.3, 0.4, 0.5)
    z_t = kernel.corrupt(z, t, noise)
    output = torch.zeros_like(z).requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        kernel.loss(output, z, z_t, t, noise).sum().backward()
        optimizer.step()
    found = kernel.predict(output.detach(), z_t, t).x0
    error = float((found - z).abs().mean())
    require(
        error < 0.1,
        f"The output of least loss is read as another clean state than the true one (mean error "
        f"{error:.3g}).",
    )
