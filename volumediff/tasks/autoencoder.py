"""Autoencoders and other networks that reconstruct volumes, with discriminators and encoders.

An autoencoder with a latent grid serves latent diffusion; the others localize anomalies by what
they cannot reconstruct. A model of another autoencoder's codes keeps a copy of that one, frozen.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders import Reconstructor
from volumediff.config import build, component
from volumediff.errors import UsageError
from volumediff.model import Batch
from volumediff.randomness import generator
from volumediff.samples.dataset import Crop, Samples
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.shapes import Shape
from volumediff.tasks._base import Refusals, Stage, Task
from volumediff.tasks._encoders import encoder, encoder_paths, keep_encoders

__all__ = ["AutoencoderConfig", "AutoencoderTask"]


class AutoencoderConfig(RunConfig):
    """The key of an autoencoder."""

    autoencoder: Component

    def borrows(self) -> dict[str, Path]:
        """The autoencoder whose codes are modelled."""
        paths = encoder_paths(self.autoencoder)
        return {f"autoencoder.{key}": Path(path) for key, path in paths.items()}


class AutoencoderTask(Task):
    """A reconstructor with all its players.

    Arguments:
        config: of the run
        autoencoder: what is trained
        digest: SHA-256 of the weights of a frozen autoencoder that it works on
        frozen: this autoencoder
    """

    schema = AutoencoderConfig
    noun = "an autoencoder"

    def __init__(
        self,
        config: RunConfig,
        autoencoder: Reconstructor,
        *,
        digest: str = "",
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        main = next(iter(autoencoder.players))
        super().__init__(config, autoencoder, main=main, digest=digest, frozen=frozen)
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
        derived: dict[str, Any] = {"channels": config.data.channel_count}
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
        config.memory.apply(autoencoder)
        if inner is None:
            return cls(config, autoencoder)
        return cls(config, autoencoder, digest=inner.digest, frozen=[inner.autoencoder])

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

    def crop(self, shape: Shape) -> Crop:
        return Crop(shape, self.autoencoder.stride)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the volumes look like to it."""
        return self.autoencoder.reconstruct(x.to(self.dtype)).to(x.dtype)

    @classmethod
    def whole_volumes(cls, config: RunConfig) -> bool:
        return bool(config.validation.previews)

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

    @property
    def refusals(self) -> Refusals:
        alone = (
            "trains an autoencoder, expected the run of a diffusion model; this one localizes "
            "alone, see volumediff info."
        )
        return Refusals(localize=None, segment=alone, sample=alone)
