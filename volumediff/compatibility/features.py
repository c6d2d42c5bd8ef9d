"""Whether what a diffusion model sees can be read by heads, or learnt by an encoder."""

from volumediff.compatibility.training import told_problem
from volumediff.config import name_of
from volumediff.model import Model
from volumediff.recipes._base import Recipe

__all__ = ["probe_problem", "representation_problem"]


def probe_problem(recipe: Recipe, model: Model) -> str | None:
    """Why heads cannot learn what a recipe says from the features of a model."""
    if not recipe.segments:
        return (
            "recipe: expected label_diffusion, which says the labels, for a probe, got "
            f"{name_of(type(recipe))}; use recipe={{name: label_diffusion, labels: [1]}}."
        )
    if recipe.ignored:
        return (
            "recipe.ignored: expected none for a probe, whose voxels are drawn by label, got "
            f"{list(recipe.ignored)}; use method=unet."
        )
    regions = recipe.coding.unions(recipe.label_count)
    if recipe.codes is None or any(len(region) > 1 for region in regions):
        return (
            "recipe.coding: expected signed or one_hot for a probe, which learns voxels one by "
            f"one, got {recipe.coding}; leave it out."
        )
    if problem := told_problem(recipe):
        return problem
    got = model.recipe
    if got.whole and not got.atlas:
        return None
    return (
        "probe.of: expected a model of whole volumes without an atlas (recipe healthy or "
        f"class_conditional), got {name_of(type(got))}{' with an atlas' if got.atlas else ''}."
    )


def representation_problem(labels: Recipe, teacher: Model) -> str | None:
    """Why an encoder cannot learn the deepest features of a model at times that labels choose."""
    if labels.ignored:
        return (
            "recipe.ignored: expected none for a feature distillation, which asks what features "
            f"say of every voxel, got {list(labels.ignored)}; use method=unet."
        )
    recipe, kernel, network = teacher.recipe, teacher.kernel, teacher.network
    told = recipe.atlas or recipe.reference or recipe.classes or recipe.scalars
    if kernel.path != "gaussian" or not recipe.whole or told:
        return (
            "teacher: expected a diffusion model of volumes and nothing beside them (recipe "
            "healthy without atlas, scalars and reference, kernel gaussian), got "
            f"{name_of(type(recipe))} and {name_of(type(kernel))}; train such a run."
        )
    if network.latent_length or network.times or network.guidance is not None:
        return (
            "teacher: expected a network of a state and its time alone, got that of a student "
            "with an input of its own; use the run of its teacher."
        )
    return None
