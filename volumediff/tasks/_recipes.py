"""The recipe that a configuration names, checked against its channels."""

from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.recipes._base import Recipe
from volumediff.settings.run_config import RunConfig

__all__ = ["recipe_of"]


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of a configuration that has one.

    Raises:
        UsageError: unknown, or it makes no target of volumes with so many channels
    """
    recipe = build("recipe", config.recipe)
    try:
        recipe = recipe.numbered(config.data.channels)
    except ValueError as error:
        raise UsageError(f"recipe.{error}") from None
    problem = recipe.problem(config.data.channel_count)
    if problem:
        raise UsageError(f"recipe: {problem}")
    return recipe
