"""What a checkpoint was trained on, against what a method is about."""

from collections.abc import Sequence

from volumediff.anomaly._scene import classes_of
from volumediff.autoencoders import Reconstructor
from volumediff.config import name_of
from volumediff.data.corruptions import Corruption
from volumediff.guidance._base import Guidance, needs_classes, with_classes
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe

__all__ = [
    "check_corruption",
    "check_diffusion",
    "check_guidance",
    "check_kernel",
    "check_noise",
    "check_recipe",
    "check_reference",
    "check_times",
]


def check_diffusion(model: Model | Reconstructor | None) -> None:
    """Raises ValueError unless there is a diffusion model."""
    if model is None:
        raise ValueError("expected a trained model, got none; only baselines work without.")
    if isinstance(model, Reconstructor):
        kind = type(model).__name__.lower()
        raise ValueError(
            f"expected the run of a diffusion model, got one of the autoencoder {kind}; use a "
            "row such as vae, or train one of configs/pipelines."
        )


def check_recipe(model: Model, wanted: type[Recipe] | None) -> None:
    """Raises ValueError unless a model was trained on the recipe that a method is about.

    Arguments:
        wanted: the recipe; None for any whose noise is everywhere in the volume itself
    """
    got = type(model.recipe)
    if model.recipe.whole if wanted is None else got is wanted:
        return
    name = "healthy or class_conditional" if wanted is None else name_of(wanted)
    raise ValueError(
        f"recipe: expected a checkpoint of the recipe {name}, got {name_of(got)}; use a method "
        f"for it, or train with recipe={name.split()[0]}."
    )


def check_corruption(model: Model, wanted: type[Corruption] | None) -> None:
    """Raises ValueError unless a model was trained with the corruption that a method is about.

    Arguments:
        wanted: the corruption; None for any
    """
    if wanted is None or type(model.recipe.corruption) is wanted:
        return
    got = model.recipe.corruption
    raise ValueError(
        f"corruption: expected a checkpoint that was trained with {name_of(wanted)}, got one with "
        f"{'none' if got is None else name_of(type(got))}; use a method for it, or train with "
        f"recipe.corruption={name_of(wanted)}."
    )


def check_kernel(model: Model, wanted: type[Kernel]) -> None:
    """Raises ValueError unless a model has the kernel that a method walks."""
    if type(model.kernel) is not wanted:
        raise ValueError(
            f"kernel: expected a checkpoint with kernel {name_of(wanted)}, got one that was "
            f"trained with the {name_of(type(model.kernel))} kernel; use a method for that kernel."
        )


def check_noise(model: Model, wanted: type[Noise]) -> None:
    """Raises ValueError unless a model was trained with the noise that a method is about."""
    name, got = (c.__name__.lower() for c in (wanted, type(model.field)))
    if name != "gaussian" and not model.space.exact:
        raise ValueError(
            f"noise: expected a space of voxels or wavelets for {name} noise, got latents, "
            "which are trained on white noise of their own; use another pipeline."
        )
    if name != got:
        raise ValueError(
            f"noise: expected a checkpoint that was trained with {name} noise, got one with "
            f"{got} noise; use a method for {got} noise, or train with noise={name}."
        )


def check_reference(model: Model, wanted: bool) -> None:
    """Raises ValueError unless a model is told the volume where a method is about that."""
    if wanted and not model.recipe.reference:
        raise ValueError(
            "reference: expected a checkpoint that is told the volume through a bottleneck, "
            "got one that is not; train with recipe.reference=true."
        )


def check_guidance(model: Model, guidance: Guidance | None) -> None:
    """Raises ValueError unless a model has the classes that a guidance is about."""
    if guidance is None or not needs_classes(guidance):
        return
    if not classes_of(model):
        raise ValueError(
            f"guidance {type(guidance).__name__.lower()}: expected a class-conditional "
            "checkpoint, trained on volume labels, got one without classes."
        )
    with_classes(guidance, classes_of(model))


def check_times(model: Model, times: Sequence[float], *, chain: bool) -> None:
    """Raises ValueError unless a model was trained on the times that a method asks at.

    Arguments:
        times: where runs begin
        chain: whether runs go down to 0; if not, they ask at their beginning alone
    """
    low, high = model.times
    if times and max(times) > high + 1e-9:
        raise ValueError(
            f"level: expected times up to {high:.3f}, which the checkpoint was trained on, "
            f"got {max(times):.3f}; use a lower level."
        )
    lowest = 0.0 if chain else min(times, default=1.0)
    if low > 0 and lowest <= low:
        raise ValueError(
            f"level: expected times above {low:.3f}, which the checkpoint was trained on, got "
            f"{lowest:.3f}; use a method for it, or train with times=[0,1]."
        )
