"""Whether recipe, space, kernel, noise, network and losses can be trained together."""

from collections.abc import Sequence

from volumediff.autoencoders import Reconstructor
from volumediff.compatibility._words import either, undeclared
from volumediff.compatibility.methods import mean_problem
from volumediff.config import name_of
from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossTerm
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = [
    "anchor_problem",
    "classification_problem",
    "codec_problem",
    "coding_problem",
    "comparison_problem",
    "distillation_problem",
    "gan_problem",
    "guided_problem",
    "kept_problem",
    "prior_problem",
    "states_problem",
    "supervised_problem",
    "supervision_problem",
    "told_problem",
    "training_problem",
    "trajectory_problem",
    "variance_problem",
    "weight_problem",
]

WHITE = "white"
# Paths of kernels whose own loss is a squared error, voxel by voxel.
SQUARED = ("gaussian", "cold")


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
            f"kernel: expected {either(recipe.paths)} for the recipe {name_of(type(recipe))}, "
            f"got {name}{undeclared(kernel.path, 'path')}."
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
    if recipe.local and kernel.schedule.variance_exploding:
        return (
            "kernel.schedule: expected one whose states keep about their size for "
            f"{name_of(type(recipe))}, which leaves states clean outside of a region, got "
            f"{name_of(type(kernel.schedule))}; use kernel.schedule=cosine or rectified."
        )
    if recipe.ignored and (kernel.path not in SQUARED or not space.exact or recipe.codes is None):
        return (
            "recipe.ignored: expected the kernel gaussian or cold, a space of voxels or wavelets, "
            "and the coding signed, one_hot or regions, whose loss can leave voxels out, got "
            f"{name}, {name_of(type(space))} and {name_of(type(recipe.coding))}; use these, or "
            "method=unet."
        )
    for loss in losses:
        problem = loss.problem(kernel, recipe, space)
        if problem is None and recipe.ignored and not loss.leaves_out:
            problem = "expected losses that leave voxels out for recipe.ignored, dice, "
            problem += "cross_entropy or anchor with these terms; leave it out."
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


def weight_problem(kernel_weight: float, losses: Sequence[LossTerm]) -> str | None:
    """Why a kernel's own loss would be trained twice."""
    for loss in losses:
        if loss.contains_kernel and kernel_weight:
            name = name_of(type(loss))
            return (
                f"kernel_weight: expected 0 beside the loss {name}, which contains the kernel's "
                f"own loss, got {kernel_weight:g}; use kernel_weight=0."
            )
    return None


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
    if recipe.classes and recipe.compares and not (recipe.drop or recipe.atlas or recipe.scalars):
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
    if recipe.marks is not None and not recipe.ignored:
        return told_problem(recipe)
    return (
        "recipe: expected synthetic_anomalies, or label_diffusion with the code -1 and 1 and "
        f"without ignored, for a residual segmenter, got {name_of(type(recipe))}; use "
        "recipe=synthetic_anomalies."
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


def comparison_problem(model: Model) -> str | None:
    """Why a segmentation network cannot learn from the reconstructions of a model."""
    if model.recipe.whole and model.kernel.path == "gaussian":
        return mean_problem(model)
    return (
        "expected a model of whole volumes under Gaussian noise (recipe healthy or "
        f"class_conditional, kernel gaussian), got {name_of(type(model.recipe))} and "
        f"{name_of(type(model.kernel))}."
    )


def distillation_problem(teacher: Model) -> str | None:
    """Why a model cannot be distilled: nothing leads from its noise to its volumes by itself."""
    recipe, kernel = teacher.recipe, teacher.kernel
    if kernel.path != "gaussian":
        return (
            "expected a teacher with a gaussian kernel, whose steps follow from the state alone, "
            f"got {name_of(type(kernel))}; use fewer steps of its own sampler."
        )
    if recipe.local:
        return (
            "expected a teacher with noise everywhere, got the recipe "
            f"{name_of(type(recipe))}, with noise in a region; use a run of the recipe healthy."
        )
    low, high = teacher.time_density.support
    if low > 0:
        return (
            f"expected a teacher that was trained down to t = 0, got one on the times {low:g} to "
            f"{high:g}; train it with times=uniform."
        )
    if teacher.sides or teacher.network.conditioner.anchors:
        return (
            "expected a teacher whose losses have no networks of their own, which a student has "
            "no use for, got one with them; use a run of a method without, such as segdiff."
        )
    return None


def guided_problem(recipe: Recipe) -> str | None:
    """Why a model of a recipe is not guided by classes."""
    if recipe.classes and recipe.drop > 0:
        return None
    return (
        "recipe: expected class_conditional with drop above 0 for a guided student, whose teacher "
        f"predicts with and without the class, got {name_of(type(recipe))}"
        f"{' with drop 0' if recipe.classes else ''}; use another teacher."
    )


def gan_problem(model: Model) -> str | None:
    """Why a model cannot be the generator of a denoising diffusion GAN."""
    recipe, kernel = model.recipe, model.kernel
    if kernel.path != "gaussian" or kernel.outputs(1) != 1:
        return (
            "kernel: expected gaussian with variance posterior for a denoising diffusion GAN, "
            "whose steps are draws from its posterior, got "
            f"{name_of(type(kernel))}{' with learned variance' if kernel.outputs(1) != 1 else ''}."
        )
    if recipe.local or recipe.mask_loss:
        return (
            "recipe: expected noise everywhere for a denoising diffusion GAN, got "
            f"{name_of(type(recipe))}, whose noise is in a region alone; use another recipe."
        )
    if model.losses:
        names = ", ".join(name_of(type(term)) for term in model.losses)
        return (
            "losses: expected none for a denoising diffusion GAN, which learns from its "
            f"discriminator alone, got {names}; leave losses out."
        )
    return None


def trajectory_problem(model: Model) -> str | None:
    """Why a network cannot give the trajectory of a model in one call."""
    low, high = model.time_density.support
    if (low, high) != (0.0, 1.0):
        return (
            "teacher: expected one that was trained on all times for an operator of trajectories, "
            f"which lead from t = 1 to 0, got one on the times {low:g} to {high:g}; train it with "
            "times=uniform."
        )
    if getattr(model.kernel, "prediction", "") == "eps":
        return (
            "teacher: expected one that predicts x0, v or u for an operator of trajectories, got "
            "eps, which at t = 1 says next to nothing about the clean state; use a teacher with "
            "kernel.prediction=v."
        )
    if not model.network.taps:
        return (
            "teacher: expected a network with levels for an operator of trajectories, got "
            f"{name_of(type(model.network))}; use a teacher with the network unet."
        )
    return None


def kept_problem(model: Model, c: int, *, crop: Shape | None) -> str | None:
    """Why trajectories depend on more than noise, so that they cannot be kept by number.

    Arguments:
        c: channels of the volumes
        crop: of training, if any
    """
    recipe = model.recipe
    told = recipe.image_channels(c) or recipe.classes or recipe.scalar_count or recipe.shows_mask
    if told or recipe.reference:
        reason = f"a model with conditions (recipe {name_of(type(recipe))})"
    elif crop is not None and model.network.coordinates:
        reason = "crops whose place the network is shown"
    else:
        return None
    return f"student.kept: expected 0 for {reason}, got more; set student.kept=0."


def told_problem(recipe: Recipe) -> str | None:
    """Why a network that is no diffusion cannot learn from a recipe with levels of agreement."""
    if not recipe.tells:
        return None
    return (
        "recipe.raters: expected majority or drawn, got a consensus, whose level only a diffusion "
        "of labels is told."
    )
