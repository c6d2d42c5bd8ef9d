"""Requirements on the model of a run: a denoiser, its walk, classes, bits, features."""

from dataclasses import dataclass

from volumediff.anomaly._context import classes_of
from volumediff.anomaly._level import read_levels
from volumediff.autoencoders import Reconstructor
from volumediff.compatibility import require
from volumediff.compatibility.methods import (
    diffusion_problem,
    guidance_problem,
    highest_problem,
    map_space_problem,
    mean_problem,
)
from volumediff.component import Requirement
from volumediff.config import name_of
from volumediff.features.autoencoder import autoencoder_problem
from volumediff.features.denoiser import denoiser_problem
from volumediff.guidance._base import Guidance, with_classes
from volumediff.model import Model
from volumediff.samplers._base import Sampler

__all__ = [
    "Bits",
    "Classes",
    "Diffusion",
    "ExactSpace",
    "Features",
    "GuidanceClasses",
    "PredictsMeans",
    "Walked",
]

Learned = Model | Reconstructor | None


@dataclass(frozen=True)
class Diffusion(Requirement):
    """A diffusion model."""

    def check(self, model: Learned) -> None:
        """It must be one, and there."""
        require(diffusion_problem(model))


@dataclass(frozen=True)
class Walked(Requirement):
    """A model that a sampler can walk: one that was distilled for it, or for none.

    Arguments:
        sampler: the sampler
    """

    sampler: Sampler

    def check(self, model: Model) -> None:
        """The sampler says."""
        self.sampler.of(model)


@dataclass(frozen=True)
class PredictsMeans(Requirement):
    """A model whose single predictions are means of the clean state, and no draws."""

    def check(self, model: Model) -> None:
        """They must be means."""
        require(mean_problem(model))


@dataclass(frozen=True)
class Classes(Requirement):
    """Classes of volumes.

    Arguments:
        index: of the last class that is asked for; 0 is healthy
        of: what needs it, for the message
    """

    index: int
    of: str

    @property
    def words(self) -> tuple[str, ...]:
        """The recipe that has classes."""
        return ("recipe=class_conditional",)

    def check(self, model: Model) -> None:
        """There must be so many."""
        classes = classes_of(model) if model.recipe.compares else 0
        if not 0 < self.index < classes:
            got = f"got one with {classes}" if classes else "got one without classes"
            raise ValueError(
                f"{self.of}: expected a class-conditional checkpoint with a class {self.index}, "
                f"{got}."
            )


@dataclass(frozen=True)
class GuidanceClasses(Requirement):
    """The classes that a guidance is about, where it is about any.

    Arguments:
        guidance: the guidance
    """

    guidance: Guidance

    @property
    def words(self) -> tuple[str, ...]:
        """The recipe that has classes."""
        return ("recipe=class_conditional",) if self.guidance.needs_classes else ()

    def check(self, model: Model) -> None:
        """They must exist."""
        require(guidance_problem(model, self.guidance))
        with_classes(self.guidance, classes_of(model))  # says if there are too few


@dataclass(frozen=True)
class Bits(Requirement):
    """A space whose states are bits.

    Arguments:
        of: what needs it, for the message
    """

    of: str

    @property
    def words(self) -> tuple[str, ...]:
        """The autoencoder that has them."""
        return ("space.autoencoder=binary",)

    def check(self, model: Model) -> None:
        """The space must be binary."""
        if not model.space.binary:
            raise ValueError(
                f"{self.of}: expected a space of bits, got {name_of(type(model.space))}, whose "
                "states are not; use the latents of a binary autoencoder."
            )


@dataclass(frozen=True)
class ExactSpace(Requirement):
    """A space that loses nothing, for methods whose states are maps."""

    def check(self, model: Model) -> None:
        """The space must be exact."""
        require(map_space_problem(model.space))


@dataclass(frozen=True)
class Features(Requirement):
    """Features that an encoder of the run has of a volume.

    Arguments:
        of: the denoiser (`network`) or the `autoencoder` of a latent space
        where: what needs it, for the message
        log_snrs: at which the denoiser is evaluated
    """

    of: str
    where: str
    log_snrs: tuple[float, ...]

    def check(self, model: Learned) -> None:
        """The model must have them."""
        if model is None:
            raise ValueError(f"{self.where}: expected a trained model, got none; use a baseline.")
        problem = self._problem(model)
        if problem is None and self.of == "network":
            schedule = model.kernel.schedule
            times = [level.time(schedule) for level in read_levels((), self.log_snrs)]
            problem = highest_problem(model, max(times))
        if problem:
            raise ValueError(f"{self.where}: {problem}")

    def _problem(self, model: Model | Reconstructor) -> str | None:
        if self.of == "autoencoder":
            return autoencoder_problem(model)
        if model.diffuses:
            return denoiser_problem(model)
        return "expected a denoiser, got an autoencoder; use of: autoencoder."
