"""Requirements on the training of a run: recipe, kernel, noise, corruption, mask loss."""

from dataclasses import dataclass

from volumediff.compatibility import require
from volumediff.compatibility.chains import path_problem
from volumediff.compatibility.methods import (
    corruption_problem,
    kernel_problem,
    noise_problem,
    recipe_problem,
    reference_problem,
)
from volumediff.component import Requirement
from volumediff.config import name_of
from volumediff.data.corruptions import Corruption
from volumediff.kernels._base import Kernel
from volumediff.kernels.gaussian import Gaussian as GaussianKernel
from volumediff.model import Model
from volumediff.noise import GaussianNoise, Noise
from volumediff.recipes._base import Recipe

__all__ = [
    "CorruptedBy",
    "MaskLoss",
    "NoisedBy",
    "OnPath",
    "Referred",
    "SameSupervision",
    "TrainedOn",
    "WithKernel",
]


@dataclass(frozen=True)
class TrainedOn(Requirement):
    """A recipe of training.

    Arguments:
        recipe: the recipe; None for any whose noise is everywhere in the volume itself
    """

    recipe: type[Recipe] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The recipe."""
        return () if self.recipe is None else (f"recipe={name_of(self.recipe)}",)

    def check(self, model: Model) -> None:
        """The recipe must be that one."""
        require(recipe_problem(model, self.recipe))


@dataclass(frozen=True)
class Referred(Requirement):
    """A network that is conditioned on the volume through a bottleneck."""

    @property
    def words(self) -> tuple[str, ...]:
        """The switch of the recipe."""
        return ("recipe.reference=true",)

    def check(self, model: Model) -> None:
        """The recipe must have it."""
        require(reference_problem(model, True))


@dataclass(frozen=True)
class WithKernel(Requirement):
    """A kernel, whose states the method walks.

    Arguments:
        kernel: the kernel
    """

    kernel: type[Kernel] = GaussianKernel

    @property
    def words(self) -> tuple[str, ...]:
        """The kernel, where it is not that of the shipped configurations."""
        return () if self.kernel is GaussianKernel else (f"kernel={name_of(self.kernel)}",)

    def check(self, model: Model) -> None:
        """The kernel must be that one."""
        require(kernel_problem(model, self.kernel))


@dataclass(frozen=True)
class OnPath(Requirement):
    """A kernel whose states are edited.

    Arguments:
        paths: of the kernels that will do
        of: what needs it, for the message
    """

    paths: tuple[str, ...]
    of: str

    def check(self, model: Model) -> None:
        """The kernel must have one of the paths."""
        problem = path_problem(self, model.kernel, self.of)
        if problem is not None:
            raise ValueError(f"{problem.removesuffix('.')}; use another, such as plain.")


@dataclass(frozen=True)
class NoisedBy(Requirement):
    """A kind of noise.

    Arguments:
        noise: the noise
    """

    noise: type[Noise] = GaussianNoise

    @property
    def words(self) -> tuple[str, ...]:
        """The noise, where it is not that of the shipped configurations."""
        return () if self.noise is GaussianNoise else (f"noise={name_of(self.noise)}",)

    def check(self, model: Model) -> None:
        """The noise must be of that kind."""
        require(noise_problem(model, self.noise))


@dataclass(frozen=True)
class CorruptedBy(Requirement):
    """A corruption that was trained with.

    Arguments:
        corruption: the corruption
    """

    corruption: type[Corruption]

    @property
    def words(self) -> tuple[str, ...]:
        """The corruption."""
        return (f"recipe.corruption={name_of(self.corruption)}",)

    def check(self, model: Model) -> None:
        """The recipe must have it."""
        require(corruption_problem(model, self.corruption))


@dataclass(frozen=True)
class SameSupervision(Requirement):
    """That a method says of its supervision what its trained map was trained with.

    Arguments:
        trained: of the map; None for maps that were not trained, or not handed in
        said: of the method
    """

    trained: str | None
    said: str

    def check(self, model: Model) -> None:
        """The two must agree; no model is asked."""
        if self.trained not in (None, self.said):
            raise ValueError(
                f"supervision: expected {self.trained}, which the run map.run was trained with, "
                f"got {self.said}; use supervision={self.trained}."
            )


@dataclass(frozen=True)
class MaskLoss(Requirement):
    """A network that predicts where noise is.

    Arguments:
        of: what needs it, for the message
    """

    of: str

    @property
    def words(self) -> tuple[str, ...]:
        """Weight of the loss that teaches it."""
        return ("recipe.mask_loss=0.1",)

    def check(self, model: Model) -> None:
        """It must have been taught."""
        if not model.recipe.mask_loss:
            raise ValueError(
                f"{self.of}: expected a checkpoint that predicts where noise is, got one that "
                f"does not; train with {self.words[0]}."
            )
