"""MONAI's networks, small and with random weights, and the runs that importers make of them."""

import torch

from volumediff import config
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.settings.run_config import parse
from volumediff.tasks import build_task

UNET = {"name": "monai_unet", "head_size": 4}
WORDS = ("space=voxel", "data.channels=[a,b,c,d]", "network.groups=4")


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In float64, with weights as after training: nothing at its zero or identity start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + noise * 0.5 / max(1, parameter[0].numel()) ** 0.5
    return module.double().eval()


def imported(kind: str | dict, tensors: dict, *words: str) -> torch.nn.Module:
    """The trained module of the run that the tensors stand for."""
    source, importer = ForeignCheckpoint(tensors), config.build("importer", kind)
    task = build_task(parse(config.overridden(importer.config(source), words)))
    shapes = {name: tuple(t.shape) for name, t in task.state().items()}
    if "space.shift" in shapes:
        shapes |= dict.fromkeys(("space.shift", "space.scale"), (task.module.network.in_channels,))
    task.module.double()
    task.load(checked(importer, source, shapes))
    return task.module.eval()


def unet(**options):
    from monai.networks.nets import DiffusionModelUNet

    common = {"channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1}
    common |= {"norm_num_groups": 4, "num_head_channels": 4, "in_channels": 4}
    return randomised(DiffusionModelUNet(3, out_channels=4, **(common | options)))


def maisi_unet(**options):
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import (
        DiffusionModelUNetMaisi,
    )

    common = {"num_channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1}
    common |= {"norm_num_groups": 4, "num_head_channels": 4, "resblock_updown": True}
    return randomised(DiffusionModelUNetMaisi(3, 4, 4, **(common | options)))


def autoencoder(**options):
    from monai.networks.nets import AutoencoderKL

    common = {"channels": (8, 16), "attention_levels": (False, False), "num_res_blocks": 1}
    common |= {"norm_num_groups": 4, "latent_channels": 3}
    common |= {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    return randomised(AutoencoderKL(3, **(common | options)))


def maisi_autoencoder(**options):
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    common = {"num_channels": (8, 16), "attention_levels": (False, False)}
    common |= {"num_res_blocks": (1, 1), "norm_num_groups": 4, "latent_channels": 3}
    common |= {"norm_float16": False, "num_splits": 1, "save_mem": False}
    return randomised(AutoencoderKlMaisi(3, 1, 1, **(common | options)))
