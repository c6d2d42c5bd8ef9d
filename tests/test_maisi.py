"""MAISI's diffusion models: classes by name, attributes in their units, flows and chains."""

import pytest
import safetensors.torch
import torch
from monai_networks import maisi_autoencoder, maisi_unet, randomised
from tiny_runs import load_run

from volumediff.condition import Condition
from volumediff.config import build, overridden
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.samplers.ddim import DDIM
from volumediff.samples.preparation_record import NAME, RunPreparation
from volumediff.settings.run_config import parse
from volumediff.storage.records import read
from volumediff.tasks import build_task
from volumediff.training.imported import import_run

SMALL = ("network.groups=4", "importer.variant=rflow-mr-brain")


def flow_unet():
    """The layers of config_network_rflow.json, with few channels."""
    return maisi_unet(
        num_class_embeds=128,
        include_fc=True,
        include_spacing_input=True,
        num_channels=(32, 64),
        num_head_channels=(0, 32),
    )


def chain_unet():
    """Those of config_network_ddpm.json."""
    return maisi_unet(
        include_fc=False,
        resblock_updown=False,
        include_spacing_input=True,
        include_top_region_index_input=True,
        include_bottom_region_index_input=True,
        num_channels=(32, 64),
        num_head_channels=(0, 32),
    )


def configured(state, **arguments):
    importer = build("importer", {"name": "maisi", **arguments})
    source = ForeignCheckpoint(state)
    return importer, source, importer.config(source)


def imported(state, **arguments):
    """The model of a state dict, without its autoencoder."""
    importer, source, tree = configured(state, **arguments)
    task = build_task(parse(overridden(tree, ["network.groups=4", "space=voxel", *CHANNELS])))
    shapes = {name: tuple(t.shape) for name, t in task.state().items()}
    shapes |= dict.fromkeys(("space.shift", "space.scale"), (4,))
    task.module.double()
    task.load(checked(importer, source, shapes))
    task.module.dtype = torch.float64
    return task.module.eval(), [a / 0.01 for _, a in importer.scaling(source)]


CHANNELS = ["data.channels=[a,b,c,d]"]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
