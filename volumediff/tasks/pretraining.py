"""Self-supervised pre-training: a network's encoder learns from volumes without labels.

The run is what another one begins with, `start_from`: a segmentation with the same network. Its
pretext says what is learnt: rotations, the order of pieces, contrast, hidden cells.
"""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.pretraining import NetworkEncoder, Pretraining
from volumediff.recipes._base import Recipe
from volumediff.samples.dataset import Crop, Samples, crop_of
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.shapes import Shape
from volumediff.storage.cache import Cache
from volumediff.tasks._backbones import Backbone, take_backbone
from volumediff.tasks._base import Task
from volumediff.tasks._encoders import space_of
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals

__all__ = ["PretrainingConfig", "PretrainingTask"]


class PretrainingConfig(RunConfig):
    """Keys of a self-supervised pre-training.

    Coordinates of the network are left out: they would give away what it is to find out.

    Arguments:
        space: in which the volumes are represented
        network: network whose encoder is trained
        pretext: the self-supervised task
        recipe: which volumes are trained on
        kernel: unused; it stands in configurations of pipelines, which may be taken as they are
        noise: unused, like `kernel`
    """

    space: Component
    network: Component
    pretext: Component
    recipe: Component = "healthy"
    kernel: Component | None = None
    noise: Component | None = None


class PretrainingTask(Task):
    """An encoder with a pretext.

    Arguments:
        config: of the run
        module: both
        recipe: of plain volumes
    """

    schema = PretrainingConfig
    noun = "a self-supervised pre-training"

    def __init__(self, config: RunConfig, module: Pretraining, *, recipe: Recipe) -> None:
        super().__init__(config, module, main="network", recipe=recipe, frozen=module.untrained)
        self.pretraining = module

    @classmethod
    def build(cls, config: RunConfig, run: Any) -> "PretrainingTask":
        c, recipe = config.data.channel_count, recipe_of(config)
        plain = recipe.whole and not (recipe.classes or recipe.scalars or recipe.atlas)
        if not plain or recipe.reference:
            raise UsageError(
                "recipe: expected healthy without atlas, scalars and reference for volumes alone, "
                f"got {config.recipe}; leave the recipe out."
            )
        space, _ = space_of(config.space, run, channels=config.data.channels)
        if not space.exact:
            raise UsageError(
                "space: expected voxels, wavelets or slices of them for pre-training, got "
                "latents, in which no supervised segmentation works; use a patch, wavelet or "
                "pseudo3d pipeline."
            )
        spec = config.network
        if not isinstance(spec, str):
            spec = {name: value for name, value in spec.items() if name != "coordinates"}
        try:
            k = space.channels(c)
            network = build("network", spec, in_channels=k, out_channels=k)
            features = network.anatomy.channels
        except ValueError as error:
            raise UsageError(f"network: {error}.") from None
        pretext = build("pretext", config.pretext, features=features)
        encoder = NetworkEncoder(space, network, dtype=config.memory.torch_dtype)
        config.memory.apply(encoder)
        return cls(config, Pretraining(encoder, pretext), recipe=recipe)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.pretraining}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.pretraining.loss(batch)

    @property
    def backbone(self) -> Backbone:
        encoder = self.pretraining.encoder
        return Backbone(encoder.network, encoder.space, untrained=tuple(self.frozen))

    def begin_with(self, other: Task, *, where: str) -> str:
        source = other.backbone
        if source is None:
            raise UsageError(
                f"{where}: expected a run with a network of volumes, got that of {other.noun}."
            )
        said = take_backbone(self.backbone, source, where=where, head=False)
        self.pretraining.pretext.begin(self.pretraining.encoder)
        return said

    def stepped(self, step: int, accelerator: Accelerator) -> None:
        self.pretraining.stepped(step / self.config.optim.steps, accelerator.gather)

    def crop(self, shape: Shape) -> Crop:
        return crop_of(self.pretraining.encoder.space, shape)

    def fit(
        self, samples: Samples, *, fresh: bool, cache: Cache, accelerator: Accelerator
    ) -> Samples:
        """Normalisation of the states, unless it came with the weights."""
        if fresh and self.config.start_from is None:
            dataset = samples.dataset
            volumes = (dataset.sample(i, key=0).x[None] for i in range(len(dataset)))
            self.pretraining.encoder.space.fit(x.to(accelerator.device) for x in volumes)
        return samples

    def grid(self, shape: Shape) -> Shape:
        return self.pretraining.grid(shape)

    def planes(self, shape: Shape) -> int:
        return self.grid(shape)[0]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels = (self.pretraining.encoder.network.in_channels,)
        names = ("encoder.space.shift", "encoder.space.scale")
        return super().shapes() | dict.fromkeys(names, channels)

    @property
    def refusals(self) -> Refusals:
        reason = (
            "was pre-trained without labels; begin another run with it: volumediff train PIPELINE "
            "method=unet start_from=RUN."
        )
        return Refusals(reason, reason, reason)
