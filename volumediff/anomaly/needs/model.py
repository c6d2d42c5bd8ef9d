"""What model a run must hold: a denoiser, classes, bits, an exact space, features."""

from dataclasses import dataclass

from volumediff.anomaly._checkpoint import check_diffusion, check_guidance
from volumediff.anomaly._scene import classes_of
from volumediff.autoencoders import Reconstructor
from volumediff.component import Requirement
from volumediff.config import name_of
from volumediff.features.encoder import feature_problem
from volumediff.guidance._base import Guidance, needs_classes
from volumediff.model import Model

__all__ = ["Bits", "Classes", "Diffusion", "ExactSpace", "Features", "GuidanceClasses"]

Learned = Model | Reconstructor | None


@dataclass(frozen=True)
class Diffusion(Requirement):
    """A diffusion model."""

    def check(self, model: Learned) -> None:
        """It must be one, and there."""
        check_diffusion(model)


@dataclass(frozen=True)
class Classes(Requirement):
    """Classes of volumes.

    Arguments:
        index: of the last class that is asked for; 0 is healthy
        of: who asks, for the message
    """

    index: int
    of: str

    @property
    def words(self) -> tuple[str, ...]:
        """The recipe that has classes."""
        return ("recipe=class_conditional",)

    def check(self, model: Model) -> None:
        """There must be so many."""
        classes = classes_of(model)
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
        return ("recipe=class_conditional",) if needs_classes(self.guidance) else ()

    def check(self, model: Model) -> None:
        """They must exist."""
        check_guidance(model, self.guidance)


@dataclass(frozen=True)
class Bits(Requirement):
    """A space whose states are bits.

    Arguments:
        of: who asks, for the message
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
        if not model.space.exact:
            raise ValueError(
                "space: expected voxels or wavelets, got latents, whose autoencoder was made for "
                "volumes and not for maps; use another pipeline."
            )


@dataclass(frozen=True)
class Features(Requirement):
    """Features that an encoder of the run has of a volume.

    Arguments:
        of: the denoiser (`network`) or the `autoencoder` of a latent space
        where: who asks, for the message
        times: at which the denoiser is asked; none for no check of them
    """

    of: str
    where: str
    times: tuple[float, ...] = ()

    def check(self, model: Learned) -> None:
        """The model must have them."""
        if model is None:
            raise ValueError(f"{self.where}: expected a trained model, got none; use a baseline.")
        problem = feature_problem(model, self.of)
        asked = self.of == "network" and self.times
        if problem is None and asked and max(self.times) > model.times[1] + 1e-9:
            problem = (
                f"expected times up to {model.times[1]:.3f}, which the checkpoint was trained on, "
                f"got {max(self.times):.3f}; use lower times."
            )
        if problem:
            raise ValueError(f"{self.where}: {problem}")
