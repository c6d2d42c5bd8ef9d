"""Supervised segmentation: a network of the diffusion models learns labels by Dice and entropy.

It may begin with the network of any run that has one: of a diffusion run of any recipe, which is
fine-tuning, or of self-supervised pre-training. Validation scores a checkpoint by the Dice
coefficient of whole validation volumes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import supervised_problem
from volumediff.config import build
from volumediff.data.foreground_crops import ForegroundCrops
from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.samples.dataset import Crop, Samples, collate, crop_of
from volumediff.settings.run_config import RunConfig, saved_config
from volumediff.settings.sections import Component, Section, Share
from volumediff.shapes import Shape
from volumediff.storage.cache import Cache
from volumediff.supervised_segmentation import DiceCrossEntropy, SupervisedSegmentation
from volumediff.tasks._agreement import agree
from volumediff.tasks._backbones import Backbone, made_constant, take_backbone
from volumediff.tasks._base import Criterion, Stage, Task
from volumediff.tasks._encoders import space_of
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals
from volumediff.tasks._selection import label_dice

__all__ = ["SegmentationConfig", "SegmentationTask", "Supervision"]

Level = Annotated[float, Field(ge=0, lt=1)]


class Supervision(Section):
    """How a network learns labels.

    Arguments:
        dice: weight of the Dice term of the loss
        cross_entropy: weight of the cross entropy
        background: count the background in the Dice term
        background_weight: weight of the background's voxels in the cross entropy
        deep_supervision: number of decoder levels below the finest that are trained as well
        foreground_crops: share of the training crops that is centred on a label
        levels: times at which the network is asked, 0 for the clean volume; a time above 0 needs
            `kernel`
        freeze_encoder: train the decoder alone, for runs with `start_from`
    """

    dice: NonNegativeFloat = 1.0
    cross_entropy: NonNegativeFloat = 1.0
    background: bool = False
    background_weight: PositiveFloat = 1.0
    deep_supervision: NonNegativeInt = 0
    foreground_crops: Share = 0.0
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (0.0,)
    freeze_encoder: bool = False


class SegmentationConfig(RunConfig):
    """Keys of a supervised segmentation.

    Arguments:
        space: in which the volumes are represented
        network: segmentation network
        recipe: labels that are learned
        kernel: forward process, needed where the network is asked at times above 0, as one that
            comes from a diffusion run may be
        noise: random field that volumes are corrupted with at these times
        supervision: loss, crops and the levels that are trained
    """

    space: Component
    network: Component
    recipe: Component
    kernel: Component | None = None
    noise: Component = "gaussian"
    supervision: Supervision = Supervision()


class SegmentationTask(Task):
    """A network that segments in one pass.

    Arguments:
        config: of the run
        model: the network with its space
    """

    schema = SegmentationConfig
    noun = "a supervised segmentation"
    adaptable = True
    blockwise = True

    def __init__(self, config: SegmentationConfig, model: SupervisedSegmentation) -> None:
        super().__init__(config, model, main="network", recipe=model.recipe)
        self.model = model

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        """Copies nothing; a run that begins with another must have the same states."""
        if config.start_from is None:
            if config.supervision.freeze_encoder:
                raise UsageError(
                    "supervision.freeze_encoder: expected start_from, the run that the encoder "
                    "comes from, got null; name one, or train the encoder."
                )
            return
        source = saved_config(config.start_from)
        names = ["space", *(["kernel", "noise"] if any(config.supervision.levels) else [])]
        pairs = {n: (getattr(config, n), getattr(source, n, None)) for n in names}
        pairs["data.channels"] = config.data.channel_count, source.data.channel_count
        agree(pairs, where="start_from", of=config.start_from, hint="use those of that run")

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "SegmentationTask":
        c, recipe, wanted = config.data.channel_count, recipe_of(config), config.supervision
        space, _ = space_of(config.space, run, channels=config.data.channels)
        require(supervised_problem(recipe, space), UsageError)
        if not wanted.dice and not wanted.cross_entropy:
            raise UsageError("supervision: expected dice or cross_entropy above 0, got neither.")
        if any(wanted.levels) and config.kernel is None:
            raise UsageError(
                f"supervision.levels: expected a kernel for times above 0, got "
                f"{list(wanted.levels)} and kernel null; give the kernel of the diffusion run."
            )
        try:
            k, out = space.channels(c), space.channels(len(recipe.labels) + 1)
        except ValueError as error:
            raise UsageError(f"space: {error}") from None
        network = build(
            "network",
            config.network,
            in_channels=k,
            out_channels=out,
            scalars=len(recipe.scalars),
        )
        try:
            model = SupervisedSegmentation(
                space,
                network,
                recipe,
                dtype=config.memory.torch_dtype,
                criterion=DiceCrossEntropy(
                    wanted.dice,
                    wanted.cross_entropy,
                    wanted.background,
                    wanted.background_weight,
                    recipe.coding.unions(len(recipe.labels)),
                ),
                deep_supervision=wanted.deep_supervision,
                levels=wanted.levels,
                kernel=None if config.kernel is None else build("kernel", config.kernel),
                noise_field=build("noise", config.noise),
            )
            config.memory.apply(model)
            if wanted.freeze_encoder:
                made_constant(network.anatomy.descent)
        except ValueError as error:
            raise UsageError(f"network: {error}.") from None
        return cls(config, model)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.model.network}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.model.loss(batch)

    @property
    def backbone(self) -> Backbone:
        return Backbone(self.model.network, self.model.space)

    def begin_with(self, other: Task, *, where: str) -> str:
        source = other.backbone
        if source is None:
            raise UsageError(
                f"{where}: expected a run with a network of volumes, such as one of diffusion, "
                f"pretraining or segmentation, got that of {other.noun}."
            )
        # Of another segmentation of as many labels, the last layers are good as well.
        head = isinstance(other, SegmentationTask) and other.model.classes == self.model.classes
        return take_backbone(self.backbone, source, where=where, head=head)

    # Samples

    @property
    def located(self) -> bool:
        return self.model.network.coordinates

    def crop(self, shape: Shape) -> Crop:
        return crop_of(self.model.space, shape)

    @property
    def foreground(self) -> ForegroundCrops | None:
        share = self.config.supervision.foreground_crops
        return ForegroundCrops(share, self.recipe.labels) if share else None

    def fit(
        self, samples: Samples, *, fresh: bool, cache: Cache, accelerator: Accelerator
    ) -> Samples:
        """Normalisation of the states of images; that of a run which this one begins with stays,
        since its network knows no other."""
        if fresh and self.config.start_from is None:
            dataset = samples.dataset
            images = (dataset.sample(i, key=0).images[-1][None] for i in range(len(dataset)))
            self.model.space.fit(x.to(accelerator.device) for x in images)
        return samples

    # Validation

    @classmethod
    def whole_volumes(cls, config: RunConfig) -> bool:
        return True

    def criterion(self, samples: Samples) -> Criterion | None:
        count = min(len(samples.scans), self.config.validation.volumes)
        return Criterion("dice", count, partial(self._dice, samples))

    def _dice(self, samples: Samples, index: int) -> float:
        """Mean Dice over the labels of a validation volume."""
        found, truth = self._segmented(samples, index)
        return label_dice(found, truth, self.recipe)

    @torch.no_grad()
    def _segmented(
        self, samples: Samples, index: int
    ) -> tuple[UInt8[Tensor, "1 1 d h w"], UInt8[Tensor, "1 1 d h w"]]:
        """The label map of a validation volume, and the true one."""
        sample = samples.scans.sample(index, key=0)
        batch = collate([sample]).to(self.device)
        d, h, w = batch.x.shape[2:]
        p = self.model.memberships(
            self.model.encode(batch.images[-1]),
            (d, h, w),
            keys=[key(self.config.seed, "selection", index)],
            condition=batch.condition,
        )
        values = torch.tensor([0, *self.recipe.labels], dtype=torch.uint8)
        every = torch.cat([1 - p.sum(dim=1, keepdim=True), p], dim=1)
        truth = values[self.model.shares(batch.x).argmax(dim=1, keepdim=True).cpu()]
        if batch.hidden is not None:
            truth[batch.hidden.cpu() > 0] = self.recipe.ignored[0]
        return values[every.argmax(dim=1, keepdim=True).cpu()], truth

    def preview(self, samples: Samples, index: int) -> Sequence[tuple[str, Tensor]]:
        """A volume, its true labels and those found."""
        most = max(self.recipe.labels)
        found, truth = (m[0].float() / most * 2 - 1 for m in self._segmented(samples, index))
        name = samples.scans.volumes[index].id
        x = samples.scans.sample(index, key=0).images[-1]
        return [(name, x), (f"{name}, truth", truth), (f"{name}, found", found)]

    # Planning and use

    def grid(self, shape: Shape) -> Shape:
        return self.model.space.grid(shape)

    def planes(self, shape: Shape) -> int:
        return self.grid(shape)[0]

    @property
    def entry(self) -> nn.Module:
        return self.model.network

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """Encodes, asks the network, reads the labels."""
        d, h, w = batch.x.shape[2:]
        with stage("encode"):
            z = self.model.encode(batch.images[-1])
        with stage("segment"):
            self.model.memberships(z, (d, h, w), keys=batch.keys, condition=batch.condition)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels = (self.model.network.in_channels,)
        return super().shapes() | {"space.shift": channels, "space.scale": channels}

    def freeze(self) -> None:
        self.config.memory.freeze(self.model.network)

    @property
    def refusals(self) -> Refusals:
        reason = "was trained to segment labels; segment with it."
        return Refusals(localize=reason, segment=None, sample=reason)
