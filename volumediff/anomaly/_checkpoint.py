"""What a checkpoint was trained on, against what a method is about."""

from volumediff.config import name_of
from volumediff.data.corruptions import Corruption
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe

__all__ = ["check_corruption", "check_kernel", "check_noise", "check_recipe"]


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
