"""What a trained run is not for, with the reasons."""

from dataclasses import dataclass

from volumediff.compatibility.methods import trained_on_walks, translates
from volumediff.config import name_of
from volumediff.model import Model

__all__ = ["Refusals", "diffusion_refusals"]


@dataclass(frozen=True)
class Refusals:
    """Why a trained run is not for a use, to follow `RUN: `; None where it is.

    Arguments:
        localize: anomaly maps of volumes
        segment: labels of volumes
        sample: new volumes
        translate: missing channels of volumes
    """

    localize: str | None
    segment: str | None
    sample: str | None
    translate: str | None = (
        "was not trained to translate; train with the recipe translation "
        "(volumediff train PIPELINE method=translation)."
    )


def diffusion_refusals(model: Model) -> Refusals:
    """What a diffusion model is not for, by its recipe and the times that it was trained on."""
    recipe, (low, high) = model.recipe, model.time_density.support
    sample = None
    if recipe.segments:
        return Refusals(
            localize="was trained to segment (recipe label_diffusion); segment with it, or use "
            "the run of a model of healthy volumes.",
            segment=None,
            sample="samples label maps of an image; segment one with it.",
        )
    if translates(recipe):
        return Refusals(
            localize="was trained to translate (recipe translation); let it fill in channels "
            "for a run that localizes, or use the run of a model of healthy volumes.",
            segment="was trained to translate (recipe translation); let it fill in channels "
            "for a run that segments.",
            sample="samples the missing channels of an image; translate one with it.",
            translate=None,
        )
    if not recipe.whole or recipe.reference:
        sample = (
            f"its recipe {name_of(type(recipe))} models no whole volumes; sample from a run of "
            "the recipe healthy or class_conditional."
        )
    elif not trained_on_walks(model):
        sample = (
            f"was trained on the times {low:g} to {high:g} alone, and sampling goes through all "
            "from 1 to 0; train with times=uniform."
        )
    segment = (
        "was not trained to segment; train with the recipe label_diffusion, or localize "
        "anomalies with it."
    )
    return Refusals(localize=None, segment=segment, sample=sample)
