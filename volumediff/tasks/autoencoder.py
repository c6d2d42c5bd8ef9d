"""Autoencoders and other networks that reconstruct volumes, with discriminators and encoders.

An autoencoder with a latent grid serves latent diffusion; the others localize anomalies by what
they cannot reconstruct. A model of another autoencoder's codes keeps a copy of that one, frozen.

With the recipe label_maps masks take the place of volumes: they are compared by a weighted cross
entropy, checkpoints are selected by the Dice of what comes back, and what small lesions lose is
measured when training ends.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn

from volumediff.autoencoders import Reconstructor
from volumediff.autoencoders._readouts import ClassReadout, IntensityReadout, MaskReadout, Readout
from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import coding_problem
from volumediff.config import build, component
from volumediff.errors import UsageError
from volumediff.randomness import generator
from volumediff.recipes._base import Recipe
from volumediff.samples.dataset import Crop, Samples
from volumediff.segmentation.result import label_map
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.shapes import Shape
from volumediff.storage import checkpoint
from volumediff.storage.records import write
from volumediff.tasks._base import Criterion, Stage, Task
from volumediff.tasks._encoders import encoder, encoder_paths, keep_encoders
from volumediff.tasks._loading import load_task
from volumediff.tasks._oracle import ORACLE, OracleMeasure
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals
from volumediff.tasks._selection import label_dice

__all__ = ["AutoencoderConfig", "AutoencoderTask"]


class AutoencoderConfig(RunConfig):
    """Keys of an autoencoder.

    Arguments:
        autoencoder: architecture and losses of the autoencoder
        recipe: what is coded: healthy (volumes) or label_maps (masks)
        label_weight: weight of a voxel inside a label in the cross entropy of masks; outside it is
            1
    """

    autoencoder: Component
    recipe: Component = "healthy"
    label_weight: PositiveFloat = 10.0

    def borrows(self) -> dict[str, Path]:
        """The autoencoder whose codes are modelled."""
        paths = encoder_paths(self.autoencoder)
        return {f"autoencoder.{key}": Path(path) for key, path in paths.items()}


class AutoencoderTask(Task):
    """A reconstructor with all its players.

    Arguments:
        config: of the run
        autoencoder: what is trained
        recipe: what it codes
        digest: SHA-256 of the weights of a frozen autoencoder that it works on
        frozen: this autoencoder
    """

    schema = AutoencoderConfig
    noun = "an autoencoder"
    adaptable = True

    def __init__(
        self,
        config: RunConfig,
        autoencoder: Reconstructor,
        *,
        recipe: Recipe,
        digest: str = "",
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        main = next(iter(autoencoder.players))
        super().__init__(
            config, autoencoder, main=main, recipe=recipe, digest=digest, frozen=frozen
        )
        self.autoencoder = autoencoder
        self.dtype = config.memory.torch_dtype

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        keep_encoders(config.autoencoder, run, where="autoencoder")

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "AutoencoderTask":
        """With the size of the volumes and the inner autoencoder, if it takes any."""
        spec = config.autoencoder
        parts = {"name": spec} if isinstance(spec, str) else dict(spec)
        takes = inspect.signature(component("autoencoder", str(parts.get("name")))).parameters
        recipe, c = recipe_of(config), config.data.channel_count
        derived: dict[str, Any] = {"channels": recipe.channels(c)}
        inner = None
        if "shape" in takes:
            shape = config.crop or config.data.preprocessing.shape
            if shape is None:
                raise UsageError(
                    "data.preprocessing.shape: expected the size of the volumes, which the latent "
                    "vector of this autoencoder stands for, got null; set it, for example "
                    "[64,64,64]."
                )
            derived["shape"] = shape
        if "autoencoder" in takes:
            inner = encoder(
                str(parts.pop("autoencoder", "")),
                run,
                "autoencoder.autoencoder",
                channels=config.data.channels,
            )
            derived["autoencoder"] = inner.autoencoder
        autoencoder = build("autoencoder", parts, **derived)
        require(coding_problem(recipe, autoencoder, c), UsageError)
        if recipe.labels:
            autoencoder.readout = _readout(recipe, config.label_weight)
        config.memory.apply(autoencoder)
        if inner is None:
            return cls(config, autoencoder, recipe=recipe)
        frozen = [inner.autoencoder]
        return cls(config, autoencoder, recipe=recipe, digest=inner.digest, frozen=frozen)

    def modules(self) -> Mapping[str, nn.Module]:
        return self.autoencoder.players

    @property
    def target(self) -> nn.Module:
        return self.autoencoder

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        # Sample by sample: the noise of a latent then depends on its own key alone.
        losses = [
            self.autoencoder.loss(
                player, x[None].to(self.dtype), generator=generator(key, player)
            )["loss"]
            for x, key in zip(batch.x, batch.keys, strict=True)
        ]
        return torch.stack(losses)

    def stepped(self, step: int, accelerator: Accelerator) -> None:
        self.autoencoder.stepped(accelerator.reduce)

    def crop(self, shape: Shape) -> Crop:
        return Crop(shape, self.autoencoder.stride)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the volumes look like to it."""
        return self.autoencoder.reconstruct(x.to(self.dtype)).to(x.dtype)

    @classmethod
    def whole_volumes(cls, config: RunConfig) -> bool:
        return bool(config.validation.previews) or bool(recipe_of(config).labels)

    def preview(self, samples: Samples, index: int) -> Sequence[tuple[str, Tensor]]:
        """A volume beside its reconstruction."""
        name = samples.scans.volumes[index].id
        x = samples.scans.sample(index, key=0).x[None].to(self.device)
        return [(name, x[0]), (f"{name}, reconstruction", self.reconstruct(x)[0])]

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """Reconstructs."""
        with stage("reconstruct"):
            self.reconstruct(batch.x)

    # Masks

    def criterion(self, samples: Samples) -> Criterion | None:
        """The Dice of masks that come back, where masks are coded."""
        if not self.recipe.labels:
            return None
        count = min(self.config.validation.volumes, len(samples.scans))
        return Criterion("oracle_dice", count, partial(self._dice, samples))

    def _dice(self, samples: Samples, index: int) -> float:
        found, truth = self._coded(self.autoencoder, samples, index)
        return label_dice(found, truth, self.recipe)

    @torch.no_grad()
    def _coded(
        self, autoencoder: Reconstructor, samples: Samples, index: int
    ) -> tuple[Tensor, Tensor]:
        """Label map (1, 1, d, h, w) of a validation volume after and before the autoencoder."""
        values, coding = self.recipe.labels, self.recipe.coding
        spacing = samples.scans.volumes[index].spacing_mm
        x = samples.scans.sample(index, key=0).x[None].to(self.device)
        back = autoencoder.reconstruct(x.to(self.dtype)).to(x.dtype)
        found, truth = (
            label_map(coding.decode(code, spacing_mm=spacing), values)[:, None].cpu()
            for code in (back, x)
        )
        return found, truth

    def finish(self, samples: Samples, run: Path) -> Sequence[str]:
        """Measures the oracle Dice of the best checkpoint, where masks are coded."""
        best = checkpoint.find(run, "best")
        if not self.recipe.labels or best is None or not len(samples.scans):
            return ()
        autoencoder = load_task(run, found=best).lend(Reconstructor)
        assert autoencoder is not None, "it is this run's"
        autoencoder.to(self.device)
        measure = OracleMeasure(self.recipe.labels)
        for index in range(len(samples.scans)):
            found, truth = self._coded(autoencoder, samples, index)
            spacing = samples.scans.volumes[index].spacing_mm
            measure.add(found[0, 0], truth[0, 0], spacing_mm=spacing)
        result = measure.result(checkpoint=best.path.name, digest=best.digest)
        write(run / ORACLE, result)
        return [
            f"oracle Dice of {best.path.name}: masks that are coded and decoded, about the best "
            "that segmentations in its latent space reach:",
            *result.lines(),
        ]

    @property
    def refusals(self) -> Refusals:
        if self.recipe.labels:
            masks = (
                "trains an autoencoder of masks, which sees no image; train a latent pipeline in "
                "its space: method=lsegdiff space.autoencoder=RUN."
            )
            return Refusals(localize=masks, segment=masks, sample=masks)
        alone = (
            "trains an autoencoder, expected the run of a diffusion model; this one localizes "
            "alone, see volumediff info."
        )
        return Refusals(localize=None, segment=alone, sample=alone)


def _readout(recipe: Recipe, weight: float) -> Readout:
    """How the scores of a decoder of masks are read and compared."""
    if recipe.coding.grouped:
        return ClassReadout(weight)
    masks = recipe.coding.classes(len(recipe.labels)) == 2
    return MaskReadout(weight) if masks else IntensityReadout()
