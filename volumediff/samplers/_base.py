r"""Samplers: solve from a noisy state down to a clean one, one step t -> s at a time.

A sampler holds numbers only; state, times and noise come with every call, so that one object
serves any number of volumes. Times descend from `start` to 0. Where they ascend (s > t), the step
is a draw from q(z_s | z_t) instead, which is how resampling methods go back.

A hook sees every step's prediction and returns the pair (x0, z_t) to go on from: stitching,
healthy guidance, clipping and constraints are hooks. Nothing is clipped unless a hook does it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.chain_noise import ChainNoise
from volumediff.compatibility import require
from volumediff.compatibility.chains import sampler_problem, walk_problem
from volumediff.component import Component
from volumediff.condition import Condition
from volumediff.kernels._base import UNCONDITIONAL, Denoiser, Kernel, Prediction
from volumediff.model import Model
from volumediff.schedules._base import Schedule
from volumediff.time_grids import TimeGrid, UniformTimeGrid

__all__ = ["Context", "Denoiser", "Hook", "InvertibleSampler", "Sampler", "Step"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]
# Number of the noise that the state at the start of a chain is made of, see `Model.noise`.
FIRST = -1
# One grid for the batch, or one per sample: time index first.
Times = Float[Tensor, "n"] | Float[Tensor, "n b"]
# What a multistep method keeps of earlier steps; empty after a break.
Memory = tuple[tuple[Level, State], ...]


@dataclass(frozen=True)
class Context:
    """What a hook sees.

    Arguments:
        step: index i of the step from times[i] to times[i + 1]
        t: its time, per sample
        s: the next time
        z_t: the state
        prediction: what the denoiser made of it
    """

    step: int
    t: Level
    s: Level
    z_t: State
    prediction: Prediction


Hook = Callable[[Context], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """One step of a sampler, ready to be taken.

    Arguments:
        kernel: of the model
        evaluate: (z, t) -> prediction, for methods that need more than one per step
        t: where it starts, per sample
        s: where it ends
        z_t: the state
        prediction: at (z_t, t), after the hook
        replaced: whether the hook changed the pair; a further prediction would not know of it
        last: whether all samples end at s = 0
        noise: () -> white noise of this step
        first: () -> the noise that the chain began with
        memory: what the previous step kept
    """

    kernel: Kernel
    evaluate: Callable[[Tensor, Tensor], Prediction]
    t: Level
    s: Level
    z_t: State
    prediction: Prediction
    replaced: bool
    last: bool
    noise: Callable[[], Tensor]
    first: Callable[[], Tensor]
    memory: Memory


@dataclass(frozen=True)
class Sampler(Component, ABC):
    """Steps from z_t to z_0.

    Class attributes:
        paths: paths of the kernels that it walks; None for all, by the kernel's own step
        reads: quantities of a prediction that it goes along
        invertible: whether it also finds the noisy state that leads to a clean one
        between: whether it also evaluates predictions between the times of its grid
        through_means: whether the single predictions that it goes along are means of the clean
            state; models that were distilled for another sampler predict draws
        through_ends: whether they are the ends of the paths of the probability flow

    Arguments:
        steps: N, number of steps from the start to 0
        grid: times of the steps
    """

    paths: ClassVar[tuple[str, ...] | None] = ("gaussian",)
    reads: ClassVar[tuple[str, ...]] = ("x0", "eps")
    invertible: ClassVar[bool] = False
    between: ClassVar[bool] = False
    through_means: ClassVar[bool] = True
    through_ends: ClassVar[bool] = False
    steps: int
    _: KW_ONLY
    grid: TimeGrid = UniformTimeGrid()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}.")

    @abstractmethod
    def step(self, step: Step) -> tuple[State, Memory]:
        """z_s, and what the next step may use of this one."""

    def check(self, kernel: type[Kernel]) -> None:
        """Raises ValueError, with the reason, for a kernel whose states it cannot walk."""
        require(sampler_problem(self, kernel))

    def of(self, model: Model) -> "Sampler":
        """The sampler for a model: itself, unless it takes what it does from the model.

        Raises:
            ValueError: the model was distilled for other steps
        """
        require(walk_problem(self, model.walk))
        return self

    def admits(self, other: "Sampler") -> bool:
        """Whether a model that was distilled for this sampler can be walked by another one."""
        return True

    def times(self, schedule: Schedule, start: float = 1.0) -> Float[Tensor, "n"]:
        """N + 1 times in float64, descending from `start` to 0, both exact; one step for each
        but the last."""
        return self.grid.times(schedule, self.steps, start)

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoiser,
        kernel: Kernel,
        z: State,
        times: Times,
        *,
        condition: Condition = UNCONDITIONAL,
        noise: Callable[[int], Tensor] | None = None,
        on_x0: Hook | None = None,
    ) -> State:
        """The state at times[-1], from the state z at times[0].

        Arguments:
            denoise: guided or not
            kernel: that the denoiser was trained with
            z: the state at times[0]; the result has its dtype
            times: (n + 1,) for all, or (n + 1, b) per sample; ascents are re-noising moves
            condition: passed to the denoiser
            noise: i -> white noise of step i; needed by stochastic steps, and by networks that
                take a random latent, which then is that of `Model.noise`
            on_x0: called once per descending step

        Raises:
            ValueError: times that are no grid, no noise where a step needs some, or the kernel is
                not for this sampler
        """
        self.check(type(kernel))
        memory: Memory = ()
        for i, move in enumerate(_moves(times, z)):
            t, s = move.t, move.s
            if move.ascends:
                z, memory = kernel.renoise(z, t, s, _noise(noise, i, z)), ()
                continue
            asked = noise.conditioned(condition, i) if isinstance(noise, ChainNoise) else condition
            prediction = denoise(z, t, asked)
            replaced = False
            if on_x0 is not None:
                x0, state = on_x0(Context(i, t, s, z, prediction))
                replaced = x0 is not prediction.x0 or state is not z
                # A state that was moved has left the path that the memory is about.
                memory = memory if state is z else ()
                if replaced:
                    spread = prediction.spread
                    prediction = Prediction.from_x0(x0, state, *kernel.schedule(t))
                    prediction = replace(prediction, spread=spread)
                z = state
            step = Step(
                kernel=kernel,
                evaluate=lambda y, u, asked=asked: denoise(y, u, asked),
                t=t,
                s=s,
                z_t=z,
                prediction=prediction,
                replaced=replaced,
                last=move.ends,
                noise=lambda i=i, z=z: _noise(noise, i, z),
                first=lambda z=z: _noise(noise, FIRST, z),
                memory=memory,
            )
            z, memory = self.step(step)
        return z


@dataclass(frozen=True)
class InvertibleSampler(Sampler):
    """A deterministic sampler that also finds the noisy state that leads to a clean one."""

    invertible: ClassVar[bool] = True

    @abstractmethod
    def ascend(
        self,
        evaluate: Callable[[Tensor, Tensor], Prediction],
        kernel: Kernel,
        z_s: State,
        s: Level,
        t: Level,
        iterations: int,
    ) -> State:
        """z_t whose step to s ends in z_s, refined by so many fixed-point iterations."""

    @torch.no_grad()
    def invert(
        self,
        denoise: Denoiser,
        kernel: Kernel,
        z: State,
        times: Times,
        *,
        condition: Condition = UNCONDITIONAL,
        iterations: int = 0,
    ) -> State:
        """The state at times[0] from the state z at times[-1]: `sample` backwards.

        Arguments:
            times: the descending grid that `sample` would take, here walked from its end
            iterations: fixed-point iterations per step; 0 is the explicit inversion of the
                literature, whose round trip is only as good as the grid is fine

        Raises:
            ValueError: times that are no grid or that ascend
        """
        moves = _moves(times, z)
        if any(move.ascends for move in moves):
            raise ValueError("inversion needs descending times, got ascents; take them out.")
        for move in reversed(moves):

            def evaluate(y: Tensor, u: Tensor) -> Prediction:
                return denoise(y, u, condition)

            z = self.ascend(evaluate, kernel, z, move.s, move.t, iterations)
        return z


@dataclass(frozen=True)
class _Move:
    """From times t to times s: all samples up, or all down, and all to 0 or none."""

    t: Level
    s: Level
    ascends: bool
    ends: bool


def _moves(times: Times, z: State) -> list[_Move]:
    """The grid per sample, in float64 and on the device of z; decided before, to spare syncs."""
    times = times.detach().to(device="cpu", dtype=torch.float64)
    levels = times if times.ndim == 2 else times[:, None].expand(-1, len(z))
    if len(levels) < 2 or not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"expected two or more times, all in [0, 1], got {times.tolist()}.")
    up = levels[1:] > levels[:-1]
    alike = (up == up[:, :1]).all() and ((levels == 0) == (levels[:, :1] == 0)).all()
    if not bool(alike) or bool((levels[1:] == levels[:-1]).any()):
        raise ValueError(
            "expected every time to differ from the one before, and all samples to go up, down "
            f"and to 0 together, got {times.tolist()}."
        )
    ascends, ends = up[:, 0].tolist(), (levels[1:, 0] == 0).tolist()
    levels = levels.to(z.device)
    return [
        _Move(t, s, a, e)
        for t, s, a, e in zip(levels[:-1], levels[1:], ascends, ends, strict=True)
    ]


def _noise(noise: Callable[[int], Tensor] | None, i: int, z: State) -> State:
    if noise is None:
        raise ValueError(
            f"step {i} draws noise: pass noise=, for example model.noise(keys, shape)."
        )
    return noise(i).to(z)
