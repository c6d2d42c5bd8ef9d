"""Recipes of configurations, and crops of volumes that are windows of their states."""

from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.recipes._base import Recipe
from volumediff.samples.dataset import Crop
from volumediff.settings.run_config import RunConfig
from volumediff.shapes import Shape
from volumediff.spaces import StateSpace

__all__ = ["crop_of", "recipe_of"]


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of a configuration that has one.

    Raises:
        UsageError: unknown, or it makes no target of volumes with so many channels
    """
    recipe = build("recipe", config.recipe)
    problem = recipe.problem(config.data.channel_count)
    if problem:
        raise UsageError(f"recipe: {problem}")
    return recipe


def crop_of(space: StateSpace, shape: Shape) -> Crop:
    """Crops of a volume that are windows of its state.

    Raises:
        ValueError: the shape is no multiple of the stride
    """
    # Sizes that tell the axes apart say where the space puts each of them.
    sizes = (2, 3, 5)
    d, h, w = (n * s for n, s in zip(sizes, space.stride, strict=True))
    first, second, third = (sizes.index(n) for n in space.grid((d, h, w)))
    return Crop(shape, space.stride, (first, second, third))
