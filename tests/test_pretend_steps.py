"""Every shipped configuration makes a step and a pass of inference on the pretend device."""

from contextlib import nullcontext
from dataclasses import replace

import pretend_cuda
import pytest
import torch
from shrunken_configs import shrunken, trained_configs

from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks.unet import UNet
from volumediff.planning.step import inference_step, training_step
from volumediff.tasks import build_task, resolved
from volumediff.training.deterministic import deterministic


def used(config, *, streams=False):
    """A training step, and an inference pass where there is one."""
    config = resolved(config)
    with (
        pretend_cuda.device(streams=streams) as gpu,
        config.memory.arithmetic(),
        deterministic(True),
    ):
        task = build_task(config)
        task.begin_training(None, fresh=True)
        parts = (task.module, task.training_only)
        for part in parts:
            part.to("cuda")
        training_step(config, task, device="cuda").run(lambda name: nullcontext())
        inference_step(config, task, device="cuda").run(lambda name: nullcontext())
        assert {p.device.type for part in parts for p in part.parameters()} == {"cuda"}
    return gpu


@pytest.mark.parametrize("name", trained_configs())
def test_every_shipped_configuration_keeps_the_contracts_of_cuda(name):
    gpu = used(shrunken(name))
    assert gpu.nondeterministic.total() == 0
    assert gpu.rounded.total() == 0
    assert "math" not in {choice.kernel for choice in gpu.attention}


POLICIES = {
    "slabs": {"slab": 8},
    "host": {"slab": 8, "offload": True},
    "recomputed": {"checkpoint": 2},
    "tf32": {"dtype": "tf32"},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pipeline", ["patch", "wavelet", "latent", "pseudo3d"])
def test_pipelines_run_under_every_policy(pipeline, policy):
    config = shrunken(f"pipelines/{pipeline}_256")
    memory = replace(config.memory, **{"checkpoint": False} | POLICIES[policy])
    gpu = used(config.model_copy(update={"memory": memory}), streams=memory.offload)
    assert gpu.nondeterministic.total() == 0
    assert (gpu.rounded.total() > 0) is (policy == "tf32")
    assert gpu.order.races == []


def offloaded(*, batch, attention, **policy):
    """One pass of a network, forward and backward, whose volumes wait in host memory."""
    torch.manual_seed(0)
    levels = (1,) if attention else ()
    network = UNet(1, 1, widths=(8, 8), blocks=1, groups=2, attention_levels=levels)
    x = torch.randn(batch, 1, 16, 16, 16)
    memory = MemoryPolicy(slab=2, offload=True, **policy)
    with pretend_cuda.device(streams=True) as gpu:
        memory.apply(network)
        network.to("cuda")
        given = x.to(memory.torch_dtype).cuda()
        y = network(given, torch.full((batch,), 0.5, device="cuda"))
        y.float().square().mean().backward()
        torch.cuda.synchronize()
    return gpu


LAYOUTS = {
    "planar": {},
    "channels last": {"channels_last": True},
    "bfloat16": {"dtype": "bfloat16", "channels_last": True},
}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_memory_is_read_in_order_and_beside_the_computation(layout, batch, attention):
    gpu = offloaded(batch=batch, attention=attention, **LAYOUTS[layout])
    assert gpu.order.races == []
    assert gpu.order.overlap() <= 1.15
    assert gpu.moved["to host"] > 0
