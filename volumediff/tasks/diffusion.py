"""Diffusion: a network learns to predict clean states from noisy ones.

What is diffused (volumes, labels, anomalies) is the recipe's; where, how and by what network is
said by space, kernel, noise and network. Validation scores a checkpoint by how well one denoising
step finds synthetic lesions, where `validation.best` asks for it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import (
    anchor_problem,
    codec_problem,
    prior_problem,
    training_problem,
    weight_problem,
)
from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.image_codecs import ImageCodec
from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.samples.dataset import Crop, Samples, crop_of
from volumediff.samples.latents import Precomputed, encoded
from volumediff.samples.loss_noise import LossNoise
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.shapes import Shape
from volumediff.spaces import StateSpace
from volumediff.spaces.voxel import Voxel
from volumediff.storage.cache import Cache
from volumediff.tasks._backbones import Backbone
from volumediff.tasks._base import Criterion, Stage, Task
from volumediff.tasks._encoders import STATES, encoder_paths, keep_encoders, space_of
from volumediff.tasks._one_of_many import segment_once
from volumediff.tasks._oracle import OracleDice, oracle_remarks
from volumediff.tasks._prior import keep_prior, prior_of
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals, diffusion_refusals
from volumediff.tasks._selection import with_lesions
from volumediff.tasks._validating import Validating

__all__ = ["DiffusionConfig", "DiffusionTask"]

LEVEL = 0.6  # the planner's pass: any time will do


class DiffusionConfig(RunConfig):
    """Keys of a diffusion model.

    Arguments:
        space: what is diffused: voxels, wavelet coefficients, latents or slices
        kernel: the forward process, its schedule and what the network predicts
        network: architecture of the denoising network
        recipe: what is learned of the volumes, and which conditions the network is given
        noise: random field that volumes are corrupted with
        times: density of the training times, such as {name: uniform, high: 0.8} for methods that
            never go higher
        losses: terms beside the kernel's own loss
        kernel_weight: weight of the kernel's own loss
        prior: folder of the run of a segmentation network, whose probabilities become the
            distribution in which the labels of a discrete kernel end; a copy of it is kept
    """

    space: Component
    kernel: Component
    network: Component
    recipe: Component = "healthy"
    noise: Component = "gaussian"
    times: Component = "uniform"
    losses: tuple[Component, ...] = ()
    kernel_weight: float = Field(1.0, ge=0)
    prior: Path | None = None

    def borrows(self) -> dict[str, Path]:
        """The autoencoders of a latent space, and the prior of labels."""
        runs = {f"space.{key}": Path(path) for key, path in encoder_paths(self.space).items()}
        return runs if self.prior is None else runs | {"prior": self.prior}


class DiffusionTask(Task):
    """A diffusion model; its network is the one player, with an encoder of images that is trained.

    Arguments:
        config: of the run
        model: the model
        digest: SHA-256 of the autoencoders' weights in a latent space
        frozen: these autoencoders
        oracle: what the autoencoder gives back of masks, where it was measured
    """

    schema = DiffusionConfig
    noun = "a diffusion model"
    adaptable = True
    blockwise = True

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        *,
        digest: str = "",
        frozen: Sequence[nn.Module] = (),
        oracle: OracleDice | None = None,
    ) -> None:
        super().__init__(
            config, model, main="network", recipe=model.recipe, digest=digest, frozen=frozen
        )
        self.model, self.oracle = model, oracle
        # Space of the volumes that the loss sees, if they are states computed beforehand.
        self.states: StateSpace | None = None

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        keep_encoders(config.space, run, where="space")
        if config.prior is not None:
            keep_prior(config.prior, run, data=config.data)

    @classmethod
    def walk(cls, config: RunConfig) -> Sampler | None:
        """The sampler that the network is distilled for; None where it is not."""
        return None

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "DiffusionTask":
        c, recipe = config.data.channel_count, recipe_of(config)
        keys = config.recipe if isinstance(config.recipe, Mapping) else None
        names = config.data.channels
        names = names and tuple(names[i] for i in recipe.diffused(c))
        space, encoders = space_of(config.space, run, channels=names, recipe=keys)
        kernel, noise = build("kernel", config.kernel), build("noise", config.noise)
        losses = [
            build("loss", spec, where=f"losses[{i}]") for i, spec in enumerate(config.losses)
        ]
        require(training_problem(recipe, space, kernel, noise, losses), UsageError)
        require(weight_problem(config.kernel_weight, losses), UsageError)
        states = encoders.each.get(STATES)
        if states is not None:
            require(codec_problem(recipe, states.recipe), UsageError)
        codes = (2, False) if space.binary else (recipe.codes or 2, recipe.grouped)
        try:
            kernel = kernel.over(codes[0], grouped=codes[1])
        except ValueError as error:
            raise UsageError(f"kernel: {error}") from None
        # Values at places have no coefficients: the network alone computes on those.
        inside = kernel.valued and not (space.binary or space.keeps_values)
        state, transform = (Voxel(), space) if inside else (space, None)
        borrowed = None
        if config.prior is not None:
            require(prior_problem(recipe, state, kernel), UsageError)
            borrowed = prior_of(config.prior, run, labels=recipe.labels, data=config.data)
        try:
            k = state.channels(recipe.channels(c))
            image_channels = sum(space.image_channels(n) for n in recipe.image_channels(c))
            image_channels += recipe.shows_mask
            image_channels += space.channels(recipe.channels(c)) if borrowed else 0
            into = space.channels(k) if inside else k
            out = kernel.outputs(k) + (recipe.mask_loss > 0)
            out = space.channels(out) if inside else out
        except ValueError as error:
            raise UsageError(f"space: {error}") from None
        references = {"reference_channels": k} if recipe.reference else {}
        network = build(
            "network",
            config.network,
            in_channels=into,
            out_channels=out,
            image_channels=image_channels,
            classes=recipe.classes,
            scalars=recipe.scalar_count,
            **references,
        )
        require(anchor_problem(network, losses), UsageError)
        images = sum(recipe.image_channels(c))
        sides = {i: term.side(recipe.channels(c), images) for i, term in enumerate(losses)}
        model = Model(
            state,
            kernel,
            network,
            dtype=config.memory.torch_dtype,
            time_density=build("times", config.times),
            noise_field=noise,
            recipe=recipe,
            transform=transform,
            losses=losses,
            kernel_weight=config.kernel_weight,
            sides={i: side for i, side in sides.items() if side is not None},
            prior=None if borrowed is None else borrowed.module,
            walk=cls.walk(config),
        )
        config.memory.apply(model)
        if borrowed is not None:
            return cls(config, model, digest=borrowed.digest, frozen=[borrowed.module])
        oracle = None if states is None else states.oracle
        return cls(config, model, digest=encoders.digest, frozen=encoders.frozen, oracle=oracle)

    def modules(self) -> Mapping[str, nn.Module]:
        model, codec = self.model, self._image_encoder
        parts: dict[str, nn.Module] = {"network": model.network}
        if codec is not None:
            parts["image"] = codec
        if model.sides:
            parts["losses"] = model.sides
        return {"network": nn.ModuleDict(parts) if len(parts) > 1 else model.network}

    @property
    def target(self) -> nn.Module:
        return self.model.network

    @property
    def _image_encoder(self) -> ImageCodec | None:
        """The encoder of images that is trained with the network."""
        codec = self.model.space.image_codec
        return codec if codec is not None and codec.trained else None

    @property
    def backbone(self) -> Backbone | None:
        """The network, as it sees the volume: its state, or the first image that is a volume."""
        model, c = self.model, self.config.data.channel_count
        recipe, space = self.recipe, model.space
        if recipe.channels(c) == c and not recipe.segments and recipe.marks is None:
            return Backbone(model.network, space)
        first, network = space.channels(recipe.channels(c)), model.network
        beside = network.conditioner.input_channels == network.image_channels
        for channels in recipe.image_channels(c):
            if channels == c and beside:
                return Backbone(model.network, space, first)
            first += space.image_channels(channels)
        return None

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self._seen.loss(batch)

    @property
    def loss_noise(self) -> LossNoise | None:
        return LossNoise.of(self._seen)

    @property
    def _seen(self) -> Model:
        """The model on the volumes that the loader brings: the same network and normalisation."""
        if self.states is None:
            return self.model
        self.states.shift, self.states.scale = self.model.space.shift, self.model.space.scale
        return Model(
            self.states,
            self.model.kernel,
            self.model.network,
            dtype=self.model.dtype,
            time_density=self.model.time_density,
            noise_field=self.model.noise_field,
            recipe=self.model.recipe,
            losses=self.model.losses,
            kernel_weight=self.model.kernel_weight,
            sides={int(i): side for i, side in self.model.sides.items()},
        )

    # What a latent space of masks costs

    @property
    def _of_masks(self) -> bool:
        """Whether masks are diffused as latents."""
        return self.recipe.segments and not self.model.space.exact

    @property
    def remarks(self) -> Sequence[str]:
        """The oracle Dice, which bounds that of the segmentations."""
        return oracle_remarks(self.oracle) if self._of_masks else ()

    @property
    def facts(self) -> Mapping[str, Any]:
        if self.oracle is None:
            return {}
        return {"oracle_dice": self.oracle.model_dump(mode="json")}

    # Samples

    @property
    def located(self) -> bool:
        return self.model.network.coordinates

    @property
    def distances(self) -> bool:
        return any(term.distances for term in self.model.losses)

    def crop(self, shape: Shape) -> Crop:
        return crop_of(self.model.network_space, shape)

    def fit(
        self, samples: Samples, *, fresh: bool, cache: Cache, accelerator: Accelerator
    ) -> Samples:
        """Latents that never change, normalisation, and lesions to select by."""
        config, recipe, space = self.config, self.recipe, self.model.space
        best = config.validation.best
        data = config.data
        whole = config.crop is None and data.augmentation is None and data.drawn is None
        codec = space.image_codec
        if codec is not None and fresh:
            dataset = samples.dataset
            shown = (i for n in range(len(dataset)) for i in dataset.sample(n, key=0).images)
            codec.fit(image[None].to(accelerator.device) for image in shown)
        if whole and self.digest and recipe.fixed and codec is None:
            samples = self._in_latents(samples, cache, accelerator)
        if self.fits_states and fresh:
            dataset = samples.dataset
            everything = (dataset.sample(i, key=0).x[None] for i in range(len(dataset)))
            self.normalise(x.to(accelerator.device) for x in everything)
        # A map of one denoising step says nothing where noise is in a region alone.
        mapped = recipe.whole or (recipe.corruption is not None and not recipe.paired)
        if best is None or not mapped:
            return samples
        chosen = samples.sound[: best.volumes]
        lesions = with_lesions(chosen, seed=config.seed, cache=cache, accelerator=accelerator)
        return replace(samples, lesions=lesions)

    @property
    def fits_states(self) -> bool:
        """Whether the run measures what makes its states have unit variance."""
        # Codes of an autoencoder have none of their own, masks or not.
        fits = self.recipe.normalised or not self.model.space.exact
        return fits and not self.model.space.binary

    def normalise(self, volumes: Iterable[Float[Tensor, "_ _ _ _ _"]]) -> None:
        """Sets the space's normalisation from what the loss sees."""
        space = self.model.space if self.states is None else self.states
        space.fit(volumes)
        self.model.space.shift, self.model.space.scale = space.shift, space.scale

    def _in_latents(self, samples: Samples, cache: Cache, accelerator: Accelerator) -> Samples:
        """Both splits with raw latents in place of voxels, which the loss then expects."""
        space = self.model.space
        convert = partial(
            encoded,
            space=space,
            digest=self.digest,
            described=json.dumps(self.config.space, sort_keys=True),
            cache=cache,
            accelerator=accelerator,
        )
        dataset, held = samples.dataset, samples.held
        atlas = dataset.statistics.atlas
        if atlas is not None:
            with torch.no_grad():
                atlas = space.analysis(atlas[None].to(accelerator.device))[0].cpu()
        statistics = replace(dataset.statistics, atlas=atlas)
        self.states = Precomputed().to(accelerator.device)
        return replace(
            samples,
            dataset=replace(dataset, volumes=convert(dataset.volumes), statistics=statistics),
            held=replace(held, volumes=convert(held.volumes), statistics=statistics),
        )

    # Validation

    @classmethod
    def whole_volumes(cls, config: RunConfig) -> bool:
        return bool(config.validation.previews) or config.validation.best is not None

    def criterion(self, samples: Samples) -> Criterion | None:
        best = self.config.validation.best
        if self.recipe.segments and best is not None:
            count = min(best.volumes, len(samples.scans))
            return Criterion("dice", count, partial(self._looks(samples).dice, steps=best.steps))
        if not samples.lesions or best is None:
            return None
        found = partial(
            self._looks(samples).localization_ap, levels=best.levels, smooth_mm=best.smooth_mm
        )
        return Criterion("localization_ap", len(samples.lesions), found)

    def preview(self, samples: Samples, index: int) -> Sequence[tuple[str, Tensor]]:
        """A sample, of models that can be sampled without an image; or, of models of labels, a
        volume with its labels and a sampled label map."""
        steps = self.config.validation.preview_steps
        return self._looks(samples).preview(index, steps=steps)

    def _looks(self, samples: Samples) -> Validating:
        return Validating(self.model, samples, self.config.seed)

    # Planning and use

    def grid(self, shape: Shape) -> Shape:
        return self.model.network_space.grid(shape)

    def planes(self, shape: Shape) -> int:
        return shape[0] if self.frozen else self.grid(shape)[0]

    @property
    def entry(self) -> nn.Module:
        return self.model.network

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """Encodes, prepares the image, denoises once, decodes; models of labels segment."""
        model, (d, h, w) = self.model, batch.x.shape[2:]
        if self.recipe.segments:
            segment_once(model, batch, stage=stage)
            return
        with stage("encode"):
            z = model.encode(batch.x)
            condition = model.told(batch.condition, batch.images, batch.mask)
            condition = model.referred(condition, z)
            chain = model.noise(batch.keys, tuple(batch.x.shape[1:]))
            condition, noise = chain.conditioned(condition, 0), chain(0)
        if model.network.conditioner.places:
            with stage("prepare"):
                # Once per volume; what it made is held while the network runs.
                condition = model.prepared(condition)
        with stage("denoise"):
            t = torch.full((len(z),), LEVEL, dtype=torch.float64, device=z.device)
            # A sampler holds on to the state and the noise while the network runs.
            z_t = model.kernel_of(condition).corrupt(z, t, noise)
            x0 = model.denoise(z_t, t, condition).x0
        with stage("decode"):
            model.decode(x0, (d, h, w))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        # Normalisation has one number per state channel, once there is one.
        channels = (self.model.network.in_channels,)
        return super().shapes() | {"space.shift": channels, "space.scale": channels}

    def freeze(self) -> None:
        for part in self.modules().values():
            self.config.memory.freeze(part)

    @property
    def refusals(self) -> Refusals:
        return diffusion_refusals(self.model)
