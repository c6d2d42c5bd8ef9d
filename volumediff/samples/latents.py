"""Latents computed once: without augmentation and crops they never change.

The cached arrays are raw latents A(x), before shift and scale, so that they depend on nothing but
the volume and the autoencoder. The model that trains sees them through a space whose transform is
the identity; network and normalisation are those of the real model.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from volumediff.distributed.mesh import turn
from volumediff.distributed.processes import wait
from volumediff.samples.volumes import TrainingVolume
from volumediff.shapes import Shape
from volumediff.spaces import StateSpace
from volumediff.storage.cache import Cache

__all__ = ["Precomputed", "encoded"]


class Precomputed(StateSpace):
    """The identity on raw states: voxels of this space are states of another one."""

    stride = (1, 1, 1)
    exact = True

    def channels(self, c: int) -> int:
        return c

    def analysis(self, x: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return x

    def synthesis(
        self, raw: Float[Tensor, "b k d h w"], shape: Shape | None = None
    ) -> Float[Tensor, "b k d h w"]:
        return raw

    def noise(self, field: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return field

    def mask(self, m: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        return m


@torch.no_grad()
def encoded(
    volumes: Sequence[TrainingVolume],
    space: StateSpace,
    *,
    digest: str,
    described: str,
    cache: Cache,
    accelerator: Accelerator,
) -> list[TrainingVolume]:
    """The same volumes with raw states in place of voxels, shared by the processes.

    Arguments:
        digest: of the autoencoder's weights
        described: the space's configuration
    """

    def entry(volume: TrainingVolume) -> TrainingVolume:
        def make() -> tuple[dict[str, np.ndarray], dict[str, object]]:
            x = volume.array("x")
            assert x is not None, "every entry has x"
            raw = space.analysis(x[None].to(accelerator.device))[0]
            return {"x": raw.float().cpu().numpy()}, dict(volume.entry.info)

        fingerprint = {
            "volume": volume.entry.folder.name,
            "autoencoder": digest,
            "space": described,
            "device": accelerator.device.type,
        }
        made = cache.entry(f"{volume.id}-latent", fingerprint, make)
        return replace(volume, entry=made)

    rank, world = turn(accelerator)
    for volume in volumes[rank::world]:
        entry(volume)
    wait(accelerator)
    return [entry(volume) for volume in volumes]
