"""The networks that memory and speed are measured on: as published by peers, and as shipped here.

A case is a network, the state that it sees, and what is done with it. Peers' networks are ours of
the same architecture, proven equal to the peers' own code by the tests of the importers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import peers
import torch
from torch import Tensor, nn

from volumediff.autoencoders import Autoencoder
from volumediff.autoencoders.monai_kl import MonaiKL
from volumediff.condition import Condition
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import full_coordinates
from volumediff.networks.flowlet import FlowLet
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet

__all__ = ["CASES", "TIMED", "Case", "peer_of", "run", "smaller", "trains"]

Work = Literal["train", "infer", "decode", "autoencode"]


@dataclass(frozen=True)
class Case:
    """One row of the tables.

    Arguments:
        build: our network or autoencoder
        shape: (k, d, h, w) of its input, the state and then what it is conditioned on
        work: a training step of a network or an autoencoder, or one pass without gradients
        slab: planes of the policy that the row is about
        peer: the peer's own network, given the checkouts; None where nothing is published
        autocast: whether the peer trains under autocast
        recomputed: levels that a training step recomputes, or all
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    work: Work
    slab: int
    peer: Callable[[dict[str, Path]], nn.Module | None] = lambda found: None
    autocast: bool = False
    recomputed: bool | int = True

    @property
    def policy(self) -> MemoryPolicy:
        """Without host memory."""
        return MemoryPolicy(
            "bfloat16",
            channels_last=True,
            checkpoint=trains(self) and self.recomputed,
            slab=self.slab,
            recompute_skips=not trains(self),
        )

    @property
    def offloaded(self) -> MemoryPolicy:
        """With host memory."""
        return replace(self.policy, offload=True, recompute_skips=False)

    @property
    def plain(self) -> MemoryPolicy:
        """What the cost of the others is measured against: nothing recomputed, nothing cut."""
        return MemoryPolicy("bfloat16", channels_last=True)


def trains(case: Case) -> bool:
    """Whether it is a training step."""
    return case.work in ("train", "autoencode")


def _wdm(channels: int = 8, *, levels: int = 6) -> nn.Module:
    widths = (64, 128, 128, 256, 256, 256)[:levels]
    return Guided(channels, channels, widths=widths, groups=32)


def _cwdm() -> nn.Module:
    widths = (64, 128, 128, 256, 256)
    return Guided(8, 8, image_channels=24, widths=widths, groups=32, skips="concatenated")


def _fastwdm3d() -> nn.Module:
    widths = (64, 128, 128, 128, 256)
    return Guided(8, 8, image_channels=16, widths=widths, blocks=4, groups=32)


def _unet(blocks: int) -> nn.Module:
    widths = (64, 128, 128, 256, 256)
    return UNet(8, 8, widths=widths, blocks=blocks, embedding="additive")


def _patchddm() -> nn.Module:
    widths = (29, 87, 116, 116, 116, 116, 116)
    return Guided(5, 1, coordinates=True, widths=widths, groups=29, resampling="convolution")


def _maisi_unet() -> nn.Module:
    return MonaiUNet(
        4,
        4,
        widths=(64, 128, 256, 512),
        attention_levels=(2, 3),
        head_size=32,
        resampling="block",
    )


def _flowlet() -> nn.Module:
    return FlowLet(8, 8, scalars=1, attention_levels=(2, 3))


def _autoencoder(*, maisi: bool) -> nn.Module:
    return MonaiKL(1, widths=(64, 128, 256), upsampling="trilinear" if maisi else "nearest")


def _brain_unet() -> nn.Module:
    return MonaiUNet(
        3,
        3,
        scalars=4,
        widths=(256, 512, 768),
        attention_levels=(1, 2),
        head_size=(1, 512, 768),
        resampling="block",
        context=4,
        scalar_channels=True,
    )


def _brain_autoencoder() -> nn.Module:
    return MonaiKL(1, latent_channels=3, widths=(64, 128, 128, 128), interval=(0.0, 1.0))


def _pseudo3d() -> nn.Module:
    """The network of configs/pipelines/pseudo3d_256.yaml."""
    widths = (64, 128, 256, 256)
    return Pseudo3D(16, 16, widths=widths, attention_levels=(3,), coordinates=True)


def _of(name: str, build: Callable[[Path], nn.Module]) -> Callable[..., nn.Module | None]:
    return lambda found: build(found[name]) if name in found else None


def _installed(build: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    return lambda found: build()


WDM, PATCHDDM = _of("wdm", peers.wdm), _of("patchddm", peers.patchddm)
WDM_128 = _of("wdm", partial(peers.wdm, size=128))
CWDM, FASTWDM3D = _of("cwdm", peers.cwdm), _of("fastwdm3d", peers.fastwdm3d)
FLOWLET = _of("flowlet", peers.flowlet)
MAISI = _installed(peers.maisi_unet)
_maisi_autoencoder = partial(_autoencoder, maisi=True)
_monai_autoencoder = partial(_autoencoder, maisi=False)
DECODER = _installed(partial(peers.monai_autoencoder, maisi=True))
BRAIN, BRAIN_DECODER = _installed(peers.brain_unet), _installed(peers.brain_autoencoder)
TRAINED = _installed(partial(peers.monai_autoencoder, maisi=False))

CASES = {
    "wavelet-256-train": Case(_wdm, (8, 128, 128, 128), "train", 16, WDM),
    "wavelet-256-infer": Case(_wdm, (8, 128, 128, 128), "infer", 4, WDM),
    "wavelet-128-train": Case(partial(_wdm, levels=5), (8, 64, 64, 64), "train", 8, WDM_128),
    "patch-256-train": Case(_patchddm, (5, 256, 256, 256), "train", 8, PATCHDDM, autocast=True),
    "patch-256-infer": Case(_patchddm, (5, 256, 256, 256), "infer", 4, PATCHDDM),
    "patch-128-train": Case(_patchddm, (5, 128, 128, 128), "train", 8, PATCHDDM, autocast=True),
    "cwdm-224-train": Case(_cwdm, (32, 112, 112, 80), "train", 16, CWDM),
    "cwdm-224-infer": Case(_cwdm, (32, 112, 112, 80), "infer", 4, CWDM),
    "fastwdm3d-128-train": Case(_fastwdm3d, (24, 64, 64, 64), "train", 8, FASTWDM3D),
    "fastwdm3d-128-infer": Case(_fastwdm3d, (24, 64, 64, 64), "infer", 4, FASTWDM3D),
    "ae-256-decode": Case(
        partial(_autoencoder, maisi=True), (4, 64, 64, 64), "decode", 4, DECODER, True
    ),
    "ae-512-decode": Case(_maisi_autoencoder, (4, 128, 128, 128), "decode", 4, DECODER, True),
    "ae-256-train": Case(_monai_autoencoder, (1, 256, 256, 256), "autoencode", 8, TRAINED, True),
    "latent-256-train": Case(_maisi_unet, (4, 64, 64, 64), "train", 16, MAISI, autocast=True),
    "latent-512-train": Case(_maisi_unet, (4, 128, 128, 128), "train", 16, MAISI, autocast=True),
    "brain-infer": Case(_brain_unet, (3, 20, 28, 20), "infer", 4, BRAIN),
    "brain-decode": Case(
        _brain_autoencoder, (3, 20, 28, 20), "decode", 4, BRAIN_DECODER, autocast=True
    ),
    "latent-256-infer": Case(_maisi_unet, (4, 64, 64, 64), "infer", 8, MAISI, autocast=True),
    "latent-512-infer": Case(_maisi_unet, (4, 128, 128, 128), "infer", 8, MAISI, autocast=True),
    "flowlet-112-train": Case(_flowlet, (8, 56, 56, 56), "train", 8, FLOWLET, autocast=True),
    "flowlet-112-infer": Case(_flowlet, (8, 56, 56, 56), "infer", 4, FLOWLET, autocast=True),
    "pseudo3d-256-train": Case(_pseudo3d, (16, 256, 64, 64), "train", 16, recomputed=1),
    "pseudo3d-256-infer": Case(_pseudo3d, (16, 256, 64, 64), "infer", 16),
    "wavelet-512-train": Case(partial(_wdm, 64), (64, 128, 128, 128), "train", 16),
    "wavelet-512-infer": Case(partial(_wdm, 64), (64, 128, 128, 128), "infer", 8),
}

# For times, not for memory: a pass of the smaller network, and our own network at the widths of a
# peer's, with fewer operations.
TIMED = {
    "wavelet-128-infer": Case(partial(_wdm, levels=5), (8, 64, 64, 64), "infer", 8, WDM_128),
    "wavelet-128-unet": Case(partial(_unet, 2), (8, 64, 64, 64), "train", 8, WDM_128),
    "wavelet-128-unet-1": Case(partial(_unet, 1), (8, 64, 64, 64), "train", 8, WDM_128),
}


def smaller(case: Case, factor: int) -> Case:
    """The case on a state of so many times fewer voxels along each axis."""
    k, d, h, w = case.shape
    return replace(case, shape=(k, d // factor, h // factor, w // factor))


def run(module: nn.Module, case: Case, z: Tensor, *, policy: MemoryPolicy) -> Tensor:
    """One pass of ours; in training its loss."""
    dtype = policy.torch_dtype
    if isinstance(module, Autoencoder):
        if case.work == "decode":
            return module.decode(z.to(dtype))
        generator = torch.Generator().manual_seed(0)
        return module.loss("autoencoder", z.to(dtype), generator=generator)["loss"]
    t = torch.full((len(z),), 0.5, device=z.device)
    narrow = z.to(dtype)
    state, image = narrow[:, : module.in_channels], narrow[:, module.in_channels :]
    y = module(state, t, _told(module, state, image)).float()
    return (y - z[:, : y.shape[1]]).square().mean() if case.work == "train" else y


def _told(module: nn.Module, z: Tensor, image: Tensor) -> Condition:
    """What a network is conditioned on."""
    scalars = module.embedding.scalars
    return Condition(
        image=image if module.image_channels else None,
        coordinates=full_coordinates(z) if module.coordinates else None,
        scalars=z.new_zeros(len(z), scalars) if scalars else None,
    )


def peer_of(network: nn.Module, case: Case, z: Tensor) -> Tensor:
    """One pass of the peer's; in training its loss."""
    if case.work == "decode":
        return network.decode(z)
    if case.work == "autoencode":
        fake, mean, deviation = network(z)
        kl = 0.5 * (mean.square() + deviation.square() - deviation.square().log() - 1).mean()
        return (fake - z).abs().mean() + 1e-6 * kl
    if case.build is _patchddm:
        # Its eight channels: state and images, and the coordinates.
        z = torch.cat([z, z[:, :3]], dim=1)
    y = peers.output(network, z, torch.full((len(z),), 500, device=z.device))
    return (y.float() - z[:, : y.shape[1]]).square().mean() if case.work == "train" else y
