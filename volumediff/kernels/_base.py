r"""Kernels: the corruption q(z_t | z_0), its posterior, and the reading of a network's output.

For levels s < t a kernel gives

.. math:: z_t \sim q(z_t | z_0), \qquad z_t \sim q(z_t | z_s), \qquad z_s \sim q(z_s | z_t, z_0)

and turns outputs into a `Prediction`. All times are per sample; noise always comes from outside.

What a kernel can do is declared by its class attributes, which `volumediff.compatibility` reads: a
new kernel, or a subclass of one, works with every recipe, sampler and method that knows its path.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.condition import Condition
from volumediff.kernels._prediction import Prediction
from volumediff.schedules._base import Schedule

__all__ = ["UNCONDITIONAL", "Denoiser", "Kernel", "Prediction", "check_fading"]

UNCONDITIONAL = Condition()

# (z_t, t, condition) -> what z_t says about z_0
Denoiser = Callable[[Tensor, Tensor, Condition], Prediction]


@dataclass(frozen=True)
class Kernel(ABC):
    """Forward process and posterior.

    Class attributes:
        path: family of the states: `gaussian` (z_t = alpha z_0 + sigma eps for any alpha and
            sigma), `cold` (another volume in place of noise), `discrete` (classes), or a name of
            its own, which then needs recipes and methods that declare it
        predicts: quantities that its predictions hold, of x0, eps and v
        classes: number of classes of a state's variables; None for real numbers
        valued: whether it is about values at places, so that states are voxels (or bits of a
            binary autoencoder) and never coefficients; networks may still compute on coefficients
        tied: whether all steps of a chain take the noise that it began with

    Arguments:
        schedule: signal and noise over time
    """

    schedule: Schedule
    path: ClassVar[str] = ""
    predicts: ClassVar[tuple[str, ...]] = ("x0",)
    classes: ClassVar[int | None] = None
    valued: ClassVar[bool] = False
    tied: ClassVar[bool] = False

    def over(self, classes: int, *, grouped: bool = False) -> "Kernel":
        """The kernel for states whose variables have so many classes, where it leaves that open.

        Arguments:
            classes: of the code that is diffused; 2 for bits
            grouped: whether a variable has one channel per class; bits have one in all
        """
        return self

    def given(self, law: Float[Tensor, "b k d h w"] | None) -> "Kernel":
        """The kernel whose states end in a law of their own in every voxel.

        Arguments:
            law: E[z_1], with the channels of a state; None for the kernel's usual end

        Raises:
            ValueError: it has no such ends
        """
        if law is not None:
            raise ValueError(
                f"{type(self).__name__} ends in noise alone, not in a law per voxel; use discrete."
            )
        return self

    def shown(
        self, z_t: Float[Tensor, "b k d h w"], t: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, "b"]]:
        """What networks see of a state and of its time; the rest of the code sees neither."""
        return z_t, t

    def outputs(self, k: int) -> int:
        """Channels of a network's output for states of k channels."""
        return k

    @property
    def variance_preserving(self) -> bool:
        """Whether states of unit variance keep it at every t."""
        return self.schedule.variance_preserving

    @abstractmethod
    def prior(
        self, noise: Float[Tensor, "b k d h w"], start: float = 1.0
    ) -> Float[Tensor, "b k d h w"]:
        """The state that sampling starts from, made of white noise.

        Arguments:
            noise: of the chain
            start: its time; below 1 for networks that were never trained as high
        """

    @abstractmethod
    def corrupt(
        self,
        z_0: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
        noise: Float[Tensor, "b k d h w"],
    ) -> Float[Tensor, "b k d h w"]:
        """z_t ~ q(z_t | z_0)."""

    @abstractmethod
    def renoise(
        self,
        z_s: Float[Tensor, "b k d h w"],
        s: Float[Tensor, "b"],
        t: Float[Tensor, "b"],
        noise: Float[Tensor, "b k d h w"],
    ) -> Float[Tensor, "b k d h w"]:
        """z_t ~ q(z_t | z_s): back to a noisier level."""

    @abstractmethod
    def predict(
        self,
        output: Float[Tensor, "b o d h w"],
        z_t: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
    ) -> Prediction:
        """The network's output read as a prediction."""

    @abstractmethod
    def step(
        self,
        prediction: Prediction,
        z_t: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
        s: Float[Tensor, "b"],
        noise: Float[Tensor, "b k d h w"],
    ) -> Float[Tensor, "b k d h w"]:
        """z_s from the posterior q(z_s | z_t, z_0) with the predicted z_0; no noise at s = 0."""

    @abstractmethod
    def loss(
        self,
        output: Float[Tensor, "b o d h w"],
        z_0: Float[Tensor, "b k d h w"],
        z_t: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
        noise: Float[Tensor, "b k d h w"],
    ) -> Float[Tensor, "b"]:
        """One loss per sample, at least in float32."""


def check_fading(schedule: Schedule) -> None:
    """Raises ValueError for a schedule whose signal stays, where alpha says how much is left."""
    if schedule.variance_exploding:
        raise ValueError(
            "schedule: expected one whose signal fades, got "
            f"{type(schedule).__name__}, whose alpha is 1 throughout; use for example cosine."
        )
