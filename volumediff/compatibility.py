r"""Whether sampler, kernel, recipe, space, noise and method fit, and why not: all decided here.

Every part declares what it can do and what it needs as plain class attributes:

    kernel    path, predicts, classes     schedule  variance_preserving, zero_terminal_snr
    recipe    paths, exact, whole, teaches, marks, reference, …       noise     kind
    space     exact, binary               corruption  kind                  times     support
    sampler   paths, reads, invertible    route, editing  paths             model     diffuses

Names and ancestry of classes decide nothing: a subclass inherits what its parent declares and fits
wherever that does, and a new part fits wherever what it declares is enough. What declares nothing
fits nowhere. A function gives the reason, one line that says what is expected, what came and what
to do; None where the parts fit. `require` raises it.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from volumediff.autoencoders import Reconstructor
from volumediff.config import name_of
from volumediff.data.corruptions import Corruption
from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossTerm
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace
from volumediff.supervised_segmentation import SupervisedSegmentation

__all__ = [
    "anchor_problem",
    "classification_problem",
    "codec_problem",
    "coding_problem",
    "comparison_problem",
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
    "noise_problem",
    "path_problem",
    "prior_problem",
    "probe_problem",
    "recipe_problem",
    "reference_problem",
    "require",
    "restores",
    "sampler_problem",
    "samples_everything",
    "states_problem",
    "supervised_problem",
    "supervision_problem",
    "times_problem",
    "told_problem",
    "training_problem",
    "variance_problem",
    "walks",
]

WHITE = "white"
ROUNDING = 1e-9  # of times, which are computed from log-SNRs


@runtime_checkable
class Walker(Protocol):
    """What walks or edits states: samplers, routes, editing strategies."""

    @property
    def paths(self) -> tuple[str, ...] | None:
        """Paths of the kernels whose states it knows; None for all."""


@runtime_checkable
class Stepper(Walker, Protocol):
    """What steps along predictions."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Quantities of a prediction that it needs."""


@runtime_checkable
class Guide(Protocol):
    """A change of the denoiser."""

    @property
    def needs_classes(self) -> bool:
        """Whether it is about class labels."""


def require(problem: str | None, error: type[Exception] = ValueError) -> None:
    """Raises the error with the reason, where there is one."""
    if problem is not None:
        raise error(problem)


# Training: recipe, space, kernel, noise


def training_problem(
    recipe: Recipe,
    space: StateSpace,
    kernel: Kernel,
    noise: Noise,
    losses: Sequence[LossTerm] = (),
) -> str | None:
    """Why a diffusion model cannot be trained of these parts."""
    if recipe.exact and not space.exact:
        return (
            f"recipe: expected a space of voxels or wavelets for {name_of(type(recipe))}, got "
            "latents, whose autoencoder was made for volumes and not for maps; use voxel, wavelet "
            "or slices."
        )
    name = name_of(type(kernel))
    if kernel.path not in recipe.paths:
        return (
            f"kernel: expected {_either(recipe.paths)} for the recipe {name_of(type(recipe))}, "
            f"got {name}{_undeclared(kernel.path, 'path')}."
        )
    if kernel.classes is not None:
        problem = _classes_problem(recipe, space, kernel)
        if problem is not None:
            return problem
    elif kernel.valued and not space.exact:
        return (
            f"kernel: expected a space of voxels or wavelets for {name}, which is about values at "
            "places, got latents; use voxel, wavelet or slices."
        )
    for loss in losses:
        problem = loss.problem(kernel, recipe, space)
        if problem is None and recipe.local:
            problem = "expected noise everywhere, got a recipe with noise in a region alone."
        if problem is not None:
            return f"losses, {name_of(type(loss))}: {problem}"
    return variance_problem(kernel, losses) or _noise_space_problem(space, noise)


def _classes_problem(recipe: Recipe, space: StateSpace, kernel: Kernel) -> str | None:
    """Why a discrete kernel cannot flip what a recipe and a space give it.

    States are bits of a binary autoencoder, or voxels of a code of -1 and 1; a linear transform of
    voxels is no obstacle, see `volumediff.model.Model.transform`.
    """
    name = name_of(type(kernel))
    if space.binary:
        if kernel.classes in (0, 2):
            return None
        return f"kernel.classes: expected 2 for bits, got {kernel.classes}."
    if recipe.segments and not space.exact:
        return (
            f"kernel: expected a space of bits for {name}, got latents in real numbers; use those "
            "of a binary autoencoder, space={name: latent, autoencoder: RUN}, or voxels or "
            "wavelets, where it flips the labels themselves."
        )
    if recipe.codes is None:
        advice = (
            "recipe.coding=signed for bits, or one_hot for classes"
            if recipe.segments
            else "the latents of a binary autoencoder, space={name: latent, autoencoder: RUN}"
        )
        return (
            f"kernel: expected a space of bits for {name}, got {name_of(type(space))}, whose "
            f"states are not; use {advice}."
        )
    if kernel.classes not in (0, recipe.codes):
        return (
            f"kernel.classes: expected {recipe.codes}, those of the coding, got {kernel.classes}; "
            "use 0, which takes them from there."
        )
    return None


def prior_problem(recipe: Recipe, space: StateSpace, kernel: Kernel) -> str | None:
    """Why the probabilities of a segmentation network cannot be what states end in."""
    if kernel.classes is None:
        return (
            f"prior: expected the kernel discrete, whose states end in classes, got "
            f"{name_of(type(kernel))}; leave prior out, or use kernel.name=discrete."
        )
    if recipe.segments and space.keeps_values:
        return None
    return (
        "prior: expected label_diffusion in voxels or wavelets, where states are labels, got "
        f"{name_of(type(recipe))} in {name_of(type(space))}; leave prior out."
    )


def anchor_problem(network: Network, losses: Sequence[LossTerm]) -> str | None:
    """Why a prediction of the image branch alone would not be trained, or is not there."""
    trained = any(loss.prepared for loss in losses)
    if trained == network.conditioner.anchors:
        return None
    if trained:
        return (
            "losses, anchor: expected a network whose image branch predicts the clean state; use "
            "network.conditioner=anchor, or leave the loss out."
        )
    return (
        "losses: expected anchor for a network whose image branch predicts the clean state, got "
        "none that trains it; use losses=[{name: anchor}] or head: false of the conditioner."
    )


def variance_problem(kernel: Kernel, losses: Sequence[LossTerm]) -> str | None:
    """Why nothing would train what a kernel asks of the network beside the mean."""
    trained = any(loss.bounds for loss in losses)
    if kernel.outputs(1) == 1 or trained:
        return None
    return (
        "losses: expected vlb for a kernel that learns the variance of its steps, got none that "
        "trains it; use losses=[{name: vlb}] or kernel.variance=posterior."
    )


def _noise_space_problem(space: StateSpace, noise: Noise) -> str | None:
    """Why a noise cannot be drawn in a space."""
    if noise.kind != WHITE and not space.exact:
        return (
            f"noise: expected gaussian in a latent space, got {name_of(type(noise))}; the latents "
            "are computed once, and noise of voxels has no counterpart in them. Use voxel or "
            "wavelet."
        )
    return None


def coding_problem(recipe: Recipe, autoencoder: Reconstructor, c: int) -> str | None:
    """Why an autoencoder cannot learn to code what a recipe makes of volumes of c channels."""
    beside = recipe.image_channels(c) or recipe.classes or recipe.scalar_count
    if beside or recipe.shows_mask or recipe.local or "gaussian" not in recipe.paths:
        return (
            "recipe: expected healthy or label_maps for an autoencoder, which is shown nothing "
            f"beside what it codes, got {name_of(type(recipe))}."
        )
    if recipe.labels and not autoencoder.codes_labels:
        return (
            "autoencoder: expected one with a latent grid for label_maps, such as kl, vq or "
            f"binary, got {name_of(type(autoencoder))}."
        )
    return None


def codec_problem(recipe: Recipe, codec: Recipe) -> str | None:
    """Why what a recipe diffuses cannot be coded by an autoencoder.

    Arguments:
        recipe: of the diffusion model
        codec: recipe that the autoencoder was trained on
    """
    if not codec.labels:
        return None
    if not recipe.labels:
        return (
            f"space.autoencoder: expected an autoencoder of volumes for {name_of(type(recipe))}, "
            "got one of masks; use one that was trained with recipe=healthy."
        )
    ours, theirs = (f"labels {list(r.labels)} with {r.coding}" for r in (recipe, codec))
    if ours == theirs:
        return None
    return (
        f"recipe: expected the labels and the coding of the autoencoder of masks, {theirs}, got "
        f"{ours}; change recipe.labels and recipe.coding here, or train an autoencoder of these."
    )


def classification_problem(recipe: Recipe) -> str | None:
    """Why a classifier of states cannot learn from a recipe: it sees a state and nothing else,
    and samples without a class mean nothing to it."""
    if recipe.classes and not (recipe.drop or recipe.atlas or recipe.scalars):
        return None
    return (
        "recipe: expected classes without drop, atlas and scalars for a classifier, such as "
        "{name: class_conditional, attribute: group, values: [healthy, sick], drop: 0}"
    )


def states_problem(recipe: Recipe) -> str | None:
    """Why a classifier cannot take the states of a model of a recipe."""
    if recipe.whole:
        return None
    return (
        "expected a model of whole volumes (recipe healthy or class_conditional), got the recipe "
        f"{name_of(type(recipe))}."
    )


def supervision_problem(recipe: Recipe) -> str | None:
    """Why a segmentation network cannot learn from a recipe."""
    if recipe.marks is not None:
        return told_problem(recipe)
    return (
        "recipe: expected synthetic_anomalies, or label_diffusion with the code -1 and 1, for a "
        f"residual segmenter, got {name_of(type(recipe))}; use recipe=synthetic_anomalies."
    )


def supervised_problem(recipe: Recipe, space: StateSpace) -> str | None:
    """Why a network cannot learn labels by itself, without a diffusion."""
    if not recipe.segments:
        return (
            f"recipe: expected label_diffusion, which says the labels, got "
            f"{name_of(type(recipe))}; use recipe={{name: label_diffusion, labels: [1]}}."
        )
    if recipe.tells:
        return (
            "recipe.raters: expected raters that say no level of agreement for a supervised "
            "segmentation, got consensus, which asks for a model of every level; use majority or "
            "drawn."
        )
    if not space.exact:
        return (
            "space: expected voxels, wavelets or slices of them for a supervised segmentation, "
            "got latents, whose decoder makes volumes and no logits; use a patch, wavelet or "
            "pseudo3d pipeline."
        )
    return told_problem(recipe)


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


def comparison_problem(model: Model) -> str | None:
    """Why a segmentation network cannot learn from the reconstructions of a model."""
    if model.recipe.whole and model.kernel.path == "gaussian":
        return None
    return (
        "expected a model of whole volumes under Gaussian noise (recipe healthy or "
        f"class_conditional, kernel gaussian), got {name_of(type(model.recipe))} and "
        f"{name_of(type(model.kernel))}."
    )


def told_problem(recipe: Recipe) -> str | None:
    """Why a network that is no diffusion cannot learn from a recipe with levels of agreement."""
    if not recipe.tells:
        return None
    return (
        "recipe.raters: expected majority or drawn, got a consensus, whose level only a diffusion "
        "of labels is told."
    )


def probe_problem(recipe: Recipe, model: Model) -> str | None:
    """Why heads cannot learn what a recipe says from the features of a model."""
    if not recipe.segments:
        return (
            "recipe: expected label_diffusion, which says the labels, for a probe, got "
            f"{name_of(type(recipe))}; use recipe={{name: label_diffusion, labels: [1]}}."
        )
    if recipe.codes is None:
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


# Chains: samplers, routes and editing strategies against kernels


def walks(walker: Walker, path: str) -> bool:
    """Whether a sampler, route or editing strategy knows the states of a path."""
    return walker.paths is None or path in walker.paths


def sampler_problem(sampler: Stepper, kernel: Kernel | type[Kernel]) -> str | None:
    """Why a sampler cannot walk the states of a kernel."""
    mine, name = type(sampler).__name__, name_of(_class(kernel))
    if not walks(sampler, kernel.path):
        return (
            f"sampler: expected the kernel {_either(sampler.paths)} for {mine}, got {name}, which "
            "has its own steps; use ancestral with variance 0."
        )
    missing = [quantity for quantity in sampler.reads if quantity not in kernel.predicts]
    if missing:
        return (
            f"sampler: expected a kernel that predicts {' and '.join(sampler.reads)} for {mine}, "
            f"got {name}, which does not predict {' and '.join(missing)}; use ancestral."
        )
    return None


def path_problem(walker: Walker, kernel: Kernel | type[Kernel], what: str) -> str | None:
    """Why a route or an editing strategy cannot take the states of a kernel.

    Arguments:
        what: the part in words, such as `the route diffuse`
    """
    if walks(walker, kernel.path):
        return None
    return (
        f"kernel: expected {_either(walker.paths)} for {what}, got {name_of(_class(kernel))}"
        f"{_undeclared(kernel.path, 'path')}."
    )


def samples_everything(model: Model) -> bool:
    """Whether a chain from t = 1 to 0 draws volumes, and was trained all the way."""
    return (
        model.recipe.samples
        and not model.recipe.reference
        and model.time_density.support == (0.0, 1.0)
    )


def fills_voids(recipe: Recipe) -> bool:
    """Whether the network is conditioned on a void and its surroundings, with noise everywhere."""
    return recipe.teaches == "inpainting"


def restores(kernel: Kernel) -> bool:
    """Whether the volume itself is read as a state, to which nothing is added."""
    return kernel.path == "cold"


# Checkpoints against what a method is about


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
        f"with the {got} kernel{_undeclared(model.kernel.path, 'path')}; use a method for that "
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
        f"noise{_undeclared(model.noise_field.kind, 'kind')}; use a method for {got} noise, or "
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


def guidance_problem(model: Model, guidance: Guide | None) -> str | None:
    """Why a model has not the classes that a guidance is about."""
    if guidance is None or not guidance.needs_classes or model.network.embedding.classes:
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


def _undeclared(declared: str, what: str) -> str:
    return "" if declared else f", whose class declares no {what}"


def _either(paths: Sequence[str] | None) -> str:
    return " or ".join(paths or ())


def _class(part: object) -> type:
    return part if isinstance(part, type) else type(part)
