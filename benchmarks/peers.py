"""The peers' own networks, built by their own code with the settings of their own scripts.

Checkouts are named on the command line, `wdm=PATH patchddm=PATH` and so on; MONAI is the installed
package.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

__all__ = [
    "REPOSITORIES",
    "brain_autoencoder",
    "brain_unet",
    "checkouts",
    "cwdm",
    "fastwdm3d",
    "flowlet",
    "maisi_unet",
    "monai_autoencoder",
    "patchddm",
    "wdm",
]

WIDTHS = (64, 128, 256)  # of MONAI's published autoencoders
REPOSITORIES = {
    "wdm": "pfriedri/wdm-3d",
    "patchddm": "FlorentinBieder/PatchDDM-3D",
    "cwdm": "pfriedri/cwdm",
    "fastwdm3d": "AliciaDurrer/fastWDM3D, folder WDM3D",
    "flowlet": "Danesed/FlowLet",
}
PACKAGES = dict.fromkeys(REPOSITORIES, "guided_diffusion") | {"flowlet": "flowlet"}


def checkouts(words: list[str]) -> dict[str, Path]:
    """`name=PATH` words as paths of checkouts."""
    found = {}
    for word in words:
        name, _, path = word.partition("=")
        if name not in REPOSITORIES or not (Path(path) / PACKAGES[name]).is_dir():
            words = " or ".join(f"{name}=PATH" for name in REPOSITORIES)
            raise SystemExit(
                f"--peer {word}: expected {words} with the path of a checkout of "
                f"{' or '.join(REPOSITORIES.values())}"
            )
        found[name] = Path(path)
    return found


def _create_model(checkout: Path) -> Callable[..., nn.Module]:
    """`create_model` of a checkout; both have a package of the same name."""
    for name in [n for n in sys.modules if n.startswith(("guided_diffusion", "DWT_IDWT"))]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    # Logging and plotting packages that the model does not need are replaced where missing.
    sys.modules["torch.utils.tensorboard"] = MagicMock()
    try:
        while True:
            try:
                from guided_diffusion.script_util import create_model
            except ModuleNotFoundError as error:
                if error.name is None or error.name.startswith(("guided_diffusion", "DWT_IDWT")):
                    raise SystemExit(f"{checkout} is no checkout of a peer: {error}") from None
                sys.modules[error.name] = MagicMock()
                for name in [n for n in sys.modules if n.startswith("guided_diffusion")]:
                    del sys.modules[name]
            else:
                return create_model
    finally:
        sys.path.remove(str(checkout))


COMMON = {
    "num_res_blocks": 2,
    "attention_resolutions": "",
    "num_heads": 1,
    "use_scale_shift_norm": False,
    "dims": 3,
    "bottleneck_attention": False,
    "resample_2d": False,
    "additive_skips": True,
}


def wdm(checkout: Path, *, size: int = 256) -> nn.Module:
    """WDM's U-Net variant for volumes of 128³ or 256³; its input is the 8 subbands."""
    return _create_model(checkout)(
        image_size=size,
        num_channels=64,
        channel_mult={128: "1,2,2,4,4", 256: "1,2,2,4,4,4"}[size],
        num_groups=32,
        in_channels=8,
        out_channels=8,
        **COMMON,
    )


def patchddm(checkout: Path) -> nn.Module:
    """PatchDDM's U-Net; its input is 4 images, 3 coordinates and 1 noisy mask."""
    return _create_model(checkout)(
        image_size=256,
        num_channels=29,
        channel_mult="1,3,4,4,4,4,4",
        num_groups=29,
        in_channels=8,
        out_channels=1,
        resblock_updown=False,
        **COMMON,
    )


def cwdm(checkout: Path) -> nn.Module:
    """cWDM's U-Net by its run.sh; its input is the subbands of a contrast and of three others."""
    settings = COMMON | {"additive_skips": False}
    return _create_model(checkout)(
        image_size=224,
        num_channels=64,
        channel_mult="1,2,2,4,4",
        num_groups=32,
        in_channels=32,
        out_channels=8,
        **settings,
    )


def fastwdm3d(checkout: Path) -> nn.Module:
    """fastWDM3D's U-Net by its run.sh; its input is the subbands of three volumes."""
    settings = COMMON | {"num_res_blocks": 4}
    return _create_model(checkout)(
        image_size=128,
        num_channels=64,
        channel_mult="1,2,2,2,4",
        num_groups=32,
        in_channels=24,
        out_channels=8,
        **settings,
    )


def flowlet(checkout: Path) -> nn.Module:
    """FlowLet's U-Net by its training_FlowLet.sh; its input is the 8 subbands of 112³, 2 mm."""
    sys.path.insert(0, str(checkout))
    # What its package imports for training and its metrics.
    absent = [name for name in ("wandb", "skimage", "skimage.metrics") if name not in sys.modules]
    sys.modules |= {name: MagicMock() for name in absent}
    try:
        from flowlet.models.unet import ConditionalUNet
    finally:
        sys.path.remove(str(checkout))
        for name in absent:
            del sys.modules[name]
    return ConditionalUNet(
        model_channels=128,
        channel_mult=(1, 2, 4, 8),
        attention_resolutions=(4, 8),
        num_heads=8,
        dropout=0.0,
        use_checkpoint=True,
        condition_dims={"Age": 1},
        condition_embedding_dim=512,
    )


def maisi_unet() -> nn.Module:
    """The U-Net of MAISI's diffusion model, 180 M parameters, without its extra conditions."""
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=4,
        out_channels=4,
        channels=(64, 128, 256, 512),
        attention_levels=(False, False, True, True),
        num_head_channels=(0, 0, 32, 32),
        num_res_blocks=2,
        resblock_updown=True,
        include_fc=True,
        use_flash_attention=True,
    )


def brain_unet() -> nn.Module:
    """The U-Net of MONAI's brain_image_synthesis_latent_diffusion_model, 553 M parameters."""
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=7,
        out_channels=3,
        channels=(256, 512, 768),
        attention_levels=(False, True, True),
        num_head_channels=(0, 512, 768),
        num_res_blocks=2,
        resblock_updown=True,
        with_conditioning=True,
        cross_attention_dim=4,
        upcast_attention=True,
    )


def brain_autoencoder() -> nn.Module:
    """The autoencoder of the same model."""
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(
        spatial_dims=3,
        latent_channels=3,
        channels=(64, 128, 128, 128),
        num_res_blocks=(2, 2, 2, 2),
        attention_levels=(False,) * 4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def monai_autoencoder(*, maisi: bool) -> nn.Module:
    """MONAI's AutoencoderKL at 64, 128, 256 channels, or MAISI's."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from monai.networks.nets import AutoencoderKL

    arguments = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "num_res_blocks": (2, 2, 2),
        "attention_levels": (False, False, False),
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
    }
    if not maisi:
        return AutoencoderKL(channels=WIDTHS, **arguments)
    return AutoencoderKlMaisi(
        num_channels=WIDTHS,
        **arguments,
        num_splits=1,
        norm_float16=True,
        save_mem=False,
        print_info=False,
    )


def output(network: nn.Module, z: Tensor, t: Tensor) -> Tensor:
    """A peer's U-Net on a state; the guided-diffusion ones return the tensor alone."""
    if getattr(network, "with_conditioning", False):
        # the numbers of the context, as channels beside the state and as its only token
        numbers = torch.zeros(len(z), 4, device=z.device)
        channels = numbers[:, :, None, None, None].expand(-1, -1, *z.shape[2:])
        return network(torch.cat([z, channels], dim=1), timesteps=t, context=numbers[:, None])
    found = network(z, timesteps=t)
    return found[0] if isinstance(found, tuple) else found
