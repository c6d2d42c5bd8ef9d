"""Feature distillation: an encoder learns what a diffusion run sees, at times that a policy picks.

The run is what a segmentation begins with, `start_from`, as one of self-supervised pre-training
is. The teacher is copied into RUN/borrowed/teacher and needed by training alone.

References:
    Yang and Wang (2023), Diffusion Model as Representation Learner (RepFusion), arXiv:2308.10916
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.features import representation_problem
from volumediff.compatibility.methods import highest_problem
from volumediff.compatibility.training import supervised_problem
from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.features.distillation import FeatureDistillation
from volumediff.model import Model
from volumediff.pretraining import beside_encoder
from volumediff.samples.dataset import Crop, crop_of
from volumediff.samples.landmarks import keep_landmarks
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component, Section
from volumediff.shapes import Shape
from volumediff.storage import checkpoint
from volumediff.tasks._agreement import agree
from volumediff.tasks._backbones import Backbone
from volumediff.tasks._base import Refusals, Stage, Task, best_of
from volumediff.tasks._borrowing import keep, kept, source_of, take
from volumediff.tasks._encoders import space_of
from volumediff.tasks._loading import build_task, load_task
from volumediff.tasks._recipes import recipe_of

__all__ = ["Distillation", "FeatureDistillationConfig", "FeatureDistillationTask"]

NAME = WHERE = "teacher"


class Distillation(Section):
    """At which times the teacher is looked at.

    Arguments:
        log_snrs: logarithms of α²/σ² of the times to choose from
        entropy: weight of the entropy of the choice, which keeps all times in play
    """

    log_snrs: Annotated[tuple[float, ...], Field(min_length=1)] = (6.12, 3.47, 1.30, 0.09, -1.43)
    entropy: NonNegativeFloat = 0.01


class FeatureDistillationConfig(RunConfig):
    """Keys of a feature distillation. The data of the teacher are taken where none are named.

    Arguments:
        teacher: folder of the diffusion run whose features are learnt
        distillation: at which times they are
        recipe: labels that say what a time is worth; the encoder itself learns from features alone
        space: that of the teacher
        network: network whose encoder is trained; left out, that of the teacher
    """

    teacher: Path
    distillation: Distillation = Distillation()
    recipe: Component
    space: Component | None = None
    network: Component | None = None

    def borrows(self) -> dict[str, Path]:
        """The teacher."""
        return {WHERE: self.teacher}


class FeatureDistillationTask(Task):
    """An encoder that learns the features of a diffusion model.

    Arguments:
        config: of the run
        module: the encoder, and what chooses times
    """

    schema = FeatureDistillationConfig
    noun = "a feature distillation"
    fits_intensities = False
    training_copies = (NAME,)

    def __init__(self, config: RunConfig, module: FeatureDistillation) -> None:
        frozen = beside_encoder(module.network)
        super().__init__(config, module, main="network", recipe=module.recipe, frozen=frozen)
        self.distillation = module

    @classmethod
    def resolve(cls, config: RunConfig) -> RunConfig:
        """The data, the space and, if it has none of its own, the network of the teacher's run."""
        if config.space is not None and config.network is not None:
            return config
        source = source_of(config.teacher, where=WHERE, channels=config.data.channels)
        missing = [name for name in ("space", "network") if getattr(config, name) is None]
        parts = {name: getattr(source, name, None) for name in missing}
        if None in parts.values():
            raise UsageError(f"{WHERE} = {config.teacher}: expected the run of a diffusion model.")
        if config.data.root is None:
            parts["data"] = source.data.model_copy(update={"lesion_free": None})
        return config.model_copy(update=parts)

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        """Copies the teacher, and the landmarks that its intensities were fitted with."""
        if kept(run, NAME) is not None:
            return
        of, source = config.teacher, source_of(config.teacher, where=WHERE)
        best_of(of, where=WHERE)
        pairs = {
            "space": (config.space, getattr(source, "space", None)),
            "data.preprocessing": (config.data.preprocessing, source.data.preprocessing),
            "data.channels": (config.data.channels, source.data.channels),
        }
        agree(pairs, where=WHERE, of=of, hint="use that of the teacher")
        teacher = load_task(of)
        if not checkpoint.exists(run, "last"):
            keep_landmarks(run, of)
        keep(run, NAME, of=of, tensors=teacher.state(), where=WHERE)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "FeatureDistillationTask":
        c, recipe, section = config.data.channel_count, recipe_of(config), config.distillation
        space, _ = space_of(config.space, run, channels=config.data.channels)
        require(supervised_problem(recipe, space), UsageError)
        with torch.device("meta"):  # its parts say what fits, its weights are for training
            teacher = cls._model(config, run)
        require(representation_problem(recipe, teacher), UsageError)
        snrs = torch.tensor(section.log_snrs, dtype=torch.float64, device="cpu")
        times = teacher.kernel.schedule.time(snrs).tolist()
        problem = highest_problem(teacher, max(times))
        if problem is not None:
            raise UsageError(f"distillation.log_snrs: {problem}")
        try:
            k = space.channels(c)
            network = build("network", config.network, in_channels=k, out_channels=k)
            if network.stride != teacher.network.stride:
                raise ValueError(
                    f"expected as many levels as the teacher, whose deepest features have the "
                    f"stride {teacher.network.stride}, got {network.stride}"
                )
            module = FeatureDistillation(
                space,
                network,
                recipe,
                width=teacher.network.anatomy.channels,
                times=times,
                entropy=section.entropy,
                dtype=config.memory.torch_dtype,
            )
        except ValueError as error:
            raise UsageError(f"network: {error}.") from None
        for part in beside_encoder(network):
            part.requires_grad_(False)
        config.memory.apply(module)
        return cls(config, module)

    @classmethod
    def _model(cls, config: RunConfig, run: Path | None) -> Model:
        """The teacher, with fresh weights."""
        copy = kept(run, NAME)
        source = source_of(config.teacher, where=WHERE) if copy is None else copy.config
        model = build_task(source).lend(Model)
        if model is None:
            raise UsageError(f"{WHERE} = {config.teacher}: expected the run of a diffusion model.")
        return model

    # Training

    def begin_training(self, run: Path | None, *, fresh: bool) -> None:
        """The teacher, and the normalisation of its states before the first step."""
        teacher, copy = self._model(self.config, run), kept(run, NAME)
        if copy is not None:
            take(teacher, copy)
        teacher.dtype = self.config.memory.torch_dtype
        if fresh:
            self.distillation.space.load_state_dict(teacher.space.state_dict())
        self.training_only[NAME] = teacher.requires_grad_(False).eval()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.distillation}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.distillation.loss(batch, self.training_only[NAME])

    @property
    def backbone(self) -> Backbone:
        module = self.distillation
        return Backbone(module.network, module.space, untrained=tuple(self.frozen))

    @property
    def located(self) -> bool:
        return self.distillation.network.coordinates

    def crop(self, shape: Shape) -> Crop:
        return crop_of(self.distillation.space, shape)

    # Planning and use

    def grid(self, shape: Shape) -> Shape:
        return self.distillation.grid(shape)

    def planes(self, shape: Shape) -> int:
        return self.grid(shape)[0]

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """One pass of the encoder."""
        module = self.distillation
        with stage("encode"):
            module.features(module.space.encode(batch.images[-1]), batch.condition)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels = (self.distillation.network.in_channels,)
        return super().shapes() | dict.fromkeys(("space.shift", "space.scale"), channels)

    @property
    def refusals(self) -> Refusals:
        reason = (
            "has learnt features, and no labels; begin another run with it: volumediff train "
            "PIPELINE method=repfusion start_from=RUN."
        )
        return Refusals(reason, reason, reason)
