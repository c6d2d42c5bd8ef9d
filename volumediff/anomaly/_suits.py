"""Whether a checkpoint is one that a method is about: its recipe, its kernel, its noise."""

from volumediff.config import name_of
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe

__all__ = ["check_noise", "check_recipe"]


def check_noise(model: Model, *, noise: type[Noise], kernel: type[Kernel]) -> None:
    """Raises ValueError unless a model was trained with this noise and this kernel."""
    if type(model.kernel) is not kernel:
        raise ValueError(
            f"kernel: expected a checkpoint with kernel {name_of(kernel)}, got one that was "
            f"trained with the {name_of(type(model.kernel))} kernel; use a method for that kernel."
        )
    wanted, got = (c.__name__.lower() for c in (noise, type(model.field)))
    if wanted != "gaussian" and not model.space.exact:
        raise ValueError(
            f"noise: expected a space of voxels or wavelets for {wanted} noise, got latents, "
            "which are trained on white noise of their own; use another pipeline."
        )
    if wanted != got:
        raise ValueError(
            f"noise: expected a checkpoint that was trained with {wanted} noise, got one with "
            f"{got} noise; use a method for {got} noise, or train with noise={wanted}."
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
