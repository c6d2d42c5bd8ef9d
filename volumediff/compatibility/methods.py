"""Whether a method can do with a model what it is for."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from volumediff.autoencoders import Reconstructor
from volumediff.compatibility._words import undeclared
from volumediff.config import name_of
from volumediff.data.corruptions import Corruption
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace
from volumediff.supervised_segmentation import SupervisedSegmentation

__all__ = [
    "Guide",
    "corruption_problem",
    "diffusion_problem",
    "direct_problem",
    "end_problem",
    "fills_voids",
    "guidance_problem",
    "highest_problem",
    "kernel_problem",
    "label_model_problem",
    "level_problem",
    "map_space_problem",
    "mean_problem",
    "noise_problem",
    "recipe_problem",
    "reference_problem",
    "restores",
    "samples_everything",
    "times_problem",
    "trained_on_walks",
    "translates",
]

WHITE = "white"
ROUNDING = 1e-9  # of times, which are computed from log-SNRs


@runtime_checkable
class Guide(Protocol):
    """A change of the denoiser."""

    @property
    def needs_classes(self) -> bool:
        """Whether it is about class labels."""

    @property
    def told_weight(self) -> float | None:
        """The weight that the network itself is told; None for none."""


def label_model_problem(model: object) -> str | None:
    """Why label maps cannot be drawn from a model."""
    if isinstance(model, Model) and model.recipe.segments:
        return None
    return "expected a diffusion model of label maps; train with recipe=label_diffusion."


def direct_problem(model: object) -> str | None:
    """Why a model does not give labels in one pass."""
    if isinstance(model, SupervisedSegmentation):
        return None
    return "expected the run of a supervised segmentation; train with method=unet."


def level_problem(model: object, *, levels: bool) -> str | None:
    """Why members of a segmentation have no level of agreement that a model is told, or one that
    it is not.

    Arguments:
        levels: whether the members have one
    """
    tells = isinstance(model, Model) and model.recipe.tells
    if tells and not levels:
        return (
            "expected levels of agreement among readers, which this run is told; add "
            "{name: consensus, readers: R} to ensemble."
        )
    if levels and not tells:
        return (
            "ensemble: expected no consensus, since this run is told no level of agreement; train "
            "with recipe.raters=consensus."
        )
    return None


def samples_everything(model: Model) -> bool:
    """Whether a chain from t = 1 to 0 draws volumes, and was trained all the way."""
    return model.recipe.samples and not model.recipe.reference and trained_on_walks(model)


def trained_on_walks(model: Model) -> bool:
    """Whether a chain from t = 1 to 0 asks a model at times alone that it was trained on."""
    low, high = model.time_density.support
    if model.walk is None:
        return (low, high) == (0.0, 1.0)
    return high == 1 and float(model.walk.times(model.kernel.schedule)[-2]) > low


def fills_voids(recipe: Recipe) -> bool:
    """Whether the network is conditioned on a void and its surroundings, with noise everywhere."""
    return recipe.teaches == "inpainting"


def translates(recipe: Recipe) -> bool:
    """Whether the network draws some channels of a volume given the others."""
    return recipe.teaches == "translation"


def restores(kernel: Kernel) -> bool:
    """Whether the volume itself is read as a state, to which nothing is added."""
    return kernel.path == "cold"


def diffusion_problem(model: Model | Reconstructor | None) -> str | None:
    """Why there is no diffusion model."""
    if model is None:
        return "expected a trained model, got none; only baselines work without."
    if model.diffuses:
        return None
    return (
        "expected the run of a diffusion model, got one of the autoencoder "
        f"{name_of(type(model))}; use a method such as vae, or train one of configs/pipelines."
    )


def recipe_problem(model: Model, wanted: type[Recipe] | None) -> str | None:
    """Why a model was not trained on what a method is about.

    Arguments:
        wanted: a recipe that teaches it; None for any whose noise is everywhere in the volume
    """
    got = model.recipe
    if got.whole if wanted is None else _alike(got.teaches, wanted.teaches):
        return None
    name = "healthy or class_conditional" if wanted is None else name_of(wanted)
    return (
        f"recipe: expected a checkpoint of the recipe {name}, got {name_of(type(got))}; use a "
        f"method for it, or train with recipe={name.split()[0]}."
    )


def corruption_problem(model: Model, wanted: type[Corruption] | None) -> str | None:
    """Why a model was not trained with the corruption that a method is about.

    Arguments:
        wanted: a corruption of the kind; None for any or none
    """
    got = model.recipe.corruption
    if wanted is None or (got is not None and _alike(got.kind, wanted.kind)):
        return None
    return (
        f"corruption: expected a checkpoint that was trained with {name_of(wanted)}, got one with "
        f"{'none' if got is None else name_of(type(got))}; use a method for it, or train with "
        f"recipe.corruption={name_of(wanted)}."
    )


def kernel_problem(model: Model, wanted: type[Kernel]) -> str | None:
    """Why a model's kernel has not the path that a method walks.

    Arguments:
        wanted: a kernel of the path
    """
    if _alike(model.kernel.path, wanted.path):
        return None
    got = name_of(type(model.kernel))
    return (
        f"kernel: expected a checkpoint with kernel {name_of(wanted)}, got one that was trained "
        f"with the {got} kernel{undeclared(model.kernel.path, 'path')}; use a method for that "
        "kernel."
    )


def noise_problem(model: Model, wanted: type[Noise]) -> str | None:
    """Why a model was not trained with the noise that a method is about.

    Arguments:
        wanted: a noise of the kind
    """
    name, got = name_of(wanted), name_of(type(model.noise_field))
    if wanted.kind != WHITE and not model.space.exact:
        return (
            f"noise: expected a space of voxels or wavelets for {name} noise, got latents, which "
            "are trained with white noise alone; use another pipeline."
        )
    if _alike(model.noise_field.kind, wanted.kind):
        return None
    return (
        f"noise: expected a checkpoint that was trained with {name} noise, got one with {got} "
        f"noise{undeclared(model.noise_field.kind, 'kind')}; use a method for {got} noise, or "
        f"train with noise={name}."
    )


def reference_problem(model: Model, wanted: bool) -> str | None:
    """Why a model is not conditioned on the volume, where a method needs that."""
    if model.recipe.reference or not wanted:
        return None
    return (
        "reference: expected a checkpoint that is conditioned on the volume through a "
        "bottleneck, got one that is not; train with recipe.reference=true."
    )


def mean_problem(model: Model) -> str | None:
    """Why a single prediction of a model is no mean of the clean state."""
    if model.walk is None or model.walk.through_means:
        return None
    return (
        "expected a run whose single predictions are means, got one that predicts draws "
        f"({name_of(type(model.walk))}); use a method that walks, with sampler=student, or the "
        "run of a plain diffusion model."
    )


def guidance_problem(model: Model, guidance: Guide | None) -> str | None:
    """Why a model has not the classes that a guidance is about, or is not told its weight."""
    weight = None if guidance is None else guidance.told_weight
    if weight is not None and model.guided is None:
        return (
            f"guidance {name_of(type(guidance))}: expected a run that is told the weight, got one "
            "that is not; distil one with volumediff train guided teacher=RUN, or use "
            "guidance=classifier_free."
        )
    if weight is not None and not model.guided[0] <= weight <= model.guided[1]:
        low, high = model.guided
        return (
            f"guidance {name_of(type(guidance))}: expected a weight from {low:g} to {high:g}, "
            f"which the run was distilled for, got {weight:g}; use one of these."
        )
    there = model.network.embedding.classes and model.recipe.compares
    if guidance is None or not guidance.needs_classes or there:
        return None
    return (
        f"guidance {name_of(type(guidance))}: expected a class-conditional checkpoint, trained on "
        "volume labels, got one without classes."
    )


def map_space_problem(space: StateSpace) -> str | None:
    """Why a space cannot hold maps of anomalies."""
    if space.exact:
        return None
    return (
        "space: expected voxels or wavelets, got latents, whose autoencoder was made for volumes "
        "and not for maps; use another pipeline."
    )


def times_problem(model: Model, times: Sequence[float], *, chain: bool) -> str | None:
    """Why a model was not trained on the times at which a method evaluates it.

    Arguments:
        times: where runs begin
        chain: whether runs go down to 0; if not, they evaluate the model at their beginning alone
    """
    low, _ = model.time_density.support
    problem = highest_problem(model, max(times, default=0.0))
    if problem is not None:
        return f"level: {problem}"
    lowest = 0.0 if chain else min(times, default=1.0)
    if model.network.times and lowest <= low:
        return (
            "level: expected 1 for an operator of trajectories, which starts from noise alone, "
            f"got {lowest:.3f}; use a method that starts there, or a student of another kind, "
            "such as progressive."
        )
    if low > 0 and lowest <= low:
        return (
            f"level: expected times above {low:.3f}, which the checkpoint was trained on, got "
            f"{lowest:.3f}; use a method for it, or train with times=uniform."
        )
    return None


def highest_problem(model: Model, time: float) -> str | None:
    """Why a model was not trained on times as high as one."""
    _, high = model.time_density.support
    if time <= high + ROUNDING:
        return None
    return (
        f"expected times up to {high:.3f}, which the checkpoint was trained on, got {time:.3f}; "
        "use lower ones."
    )


def end_problem(model: Model) -> str | None:
    """Why a model cannot be evaluated at t = 1."""
    _, high = model.time_density.support
    if high >= 1:
        return None
    return (
        f"level: expected a checkpoint that was trained up to t = 1, got one up to {high:.3f}; "
        "train with times=uniform."
    )


def _alike(got: str, wanted: str) -> bool:
    """Whether a declared kind is the wanted one; what declares none is like nothing."""
    return bool(got) and got == wanted
