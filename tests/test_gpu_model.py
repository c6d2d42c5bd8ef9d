"""The model of a GPU's work, by hand counts of kernels, bytes and operations."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from volumediff.networks._norm_act import norm_act
from volumediff.networks.guided import Guided

MODEL = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gpu_model.py"))
modelled, GPU, H200, Autocast = (MODEL[n] for n in ("modelled", "GPU", "H200", "Autocast"))


def kernels(work):
    """(name, bytes, FLOP) of every launch, and forgets them."""
    found = [(k.name, k.size, k.flop) for k in work.kernels]
    work.kernels.clear()
    return found


def test_a_convolution_and_its_gradients():
    with modelled() as work:
        layer = nn.Conv3d(4, 8, 3, padding=1, device="cuda")
        x = torch.empty(1, 4, 6, 6, 6, device="cuda", requires_grad=True)
        assert kernels(work)  # of the weights' first values
        y = layer(x)
        inputs, outputs, weights, bias = 4 * 4 * 216, 4 * 8 * 216, 4 * 8 * 4 * 27, 4 * 8
        flop = 2 * 27 * 4 * 8 * 216
        assert kernels(work) == [
            ("convolution", inputs + weights + outputs, flop),
            ("bias", 2 * outputs + bias, 0),
        ]
        y.backward(torch.empty_like(y))
        assert kernels(work) == [
            ("convolution_backward input", outputs + weights + inputs, flop),
            ("convolution_backward weight", outputs + inputs + weights, flop),
            ("bias gradient", outputs + bias, 0),
        ]


def test_what_is_read_and_written():
    with modelled() as work:
        x, y = (torch.empty(2, 3, 5, device="cuda") for _ in range(2))
        size = 4 * 30
        column = torch.empty(2, 3, 1, device="cuda")
        assert kernels(work) == []
        assert x.device.type == "cuda"
        assert x.transpose(0, 1).flatten(1)[:1].shape == (1, 10)
        assert [b for _, b, _ in kernels(work)] == [2 * size]  # a copy: the views are free
        _ = x[:1].view(15).expand(4, 15)
        assert kernels(work) == []
        _ = x * x  # read once
        x.add_(y)
        x.copy_(y)
        x.zero_()
        torch.add(x, y, out=y)
        _ = torch.zeros_like(x)
        _ = x * column.expand(2, 3, 5)
        counted = [b // 4 for _, b, _ in kernels(work)]
        assert counted == [60, 90, 60, 30, 90, 30, 66]
        assert x.sum().item() == 0.5
        _ = torch.zeros(3) + 1  # on the CPU
        assert [n for n, _, _ in kernels(work)] == ["sum"]


def test_lists_of_tensors_launch_in_chunks():
    with modelled() as work:
        many = [torch.empty(3, device="cuda") for _ in range(111)]
        large = [torch.empty(65536 * 320 + 1, device="cuda")]
        torch._foreach_mul_(many, 2.0)
        torch._foreach_mul_(many[:110], 2.0)
        torch._foreach_add_(many[:65], many[:65])
        torch._foreach_mul_(large, 2.0)
        assert [n for n, _, _ in kernels(work)] == ["_foreach_mul"] * 3 + ["_foreach_add"] * 2 + [
            "_foreach_mul"
        ] * 2


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_adam(fused):
    with modelled() as work:
        parameters = [nn.Parameter(torch.empty(7, 11, device="cuda")) for _ in range(2)]
        optimizer = torch.optim.AdamW(parameters, fused=fused or None)
        for _ in range(2):
            work.kernels.clear()
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
        found = kernels(work)
    size = 2 * 4 * 77
    if fused:
        assert [n for n, _, _ in found] == ["_foreach_add", "_fused_adamw"]
        # Reads weight, gradient and both moments, writes all but the gradient; steps ride along.
        assert 7 * size <= found[1][1] <= 7 * size + 32
    else:
        # Decay 2, first moment 3, second 2 + 3, its root 2, corrected 2, + eps 2, update 4.
        assert [b // size for _, b, _ in found] == [2, 3, 2, 3, 2, 2, 2, 4]


def test_group_norm_of_torch():
    with modelled() as work:
        x = torch.empty(1, 8, 4, 4, 4, device="cuda", requires_grad=True)
        layer = nn.GroupNorm(2, 8, device="cuda")
        work.kernels.clear()
        y = layer(x)
        forward = kernels(work)
        y.backward(torch.empty_like(y))
        backward = kernels(work)
    volume = 4 * 512
    assert [round(b / volume) for _, b, _ in forward] == [1, 0, 2]
    assert [round(b / volume) for _, b, _ in backward] == [2, 0, 0, 3, 0]


def test_attention_stores_no_scores():
    tokens, size = 512, 16
    with modelled() as work:
        q, k, v = (
            torch.empty(
                1, 2, tokens, size, device="cuda", dtype=torch.bfloat16, requires_grad=True
            )
            for _ in range(3)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        forward = kernels(work)
        y.backward(torch.empty_like(y))
        backward = kernels(work)
    volume = 2 * 2 * tokens * size
    assert len(forward) == 1
    assert forward[0][2] == 2 * 2 * 2 * tokens**2 * size
    assert forward[0][1] < 5 * volume
    assert len(backward) == 3
    assert sum(f for _, _, f in backward) == 2.5 * forward[0][2]


def test_triton_kernels_are_launches_of_their_own_wrappers():
    with modelled() as work:
        x = torch.empty(1, 8, 32, 32, 32, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        scale, shift = (torch.empty(1, 8, device="cuda", requires_grad=True) for _ in range(2))
        work.kernels.clear()
        y = norm_act(x, scale, shift, kind="group", groups=2, eps=1e-5, fused=True)
        forward = kernels(work)
        y.backward(torch.empty_like(y))
        backward = kernels(work)
    volume = 2 * 8 * 32**3
    names = ["triton moments", "triton merge_moments", "triton apply"]
    assert [n for n, _, _ in forward] == names
    assert [round(b / volume, 1) for _, b, _ in forward] == [1, 0, 2]
    assert [n for n, _, _ in backward] == [
        *("triton gradient_sums", "triton merge_sums", "triton gradient")
    ]
    assert [round(b / volume, 1) for _, b, _ in backward] == [2, 0, 3]
    assert "triton" not in sys.modules or hasattr(sys.modules["triton"], "__version__")


@pytest.mark.parametrize("kind", ["group", "slice", "voxel"])
@pytest.mark.parametrize(
    ("dtype", "last", "fused", "launched"),
    [
        (torch.bfloat16, True, None, True),
        (torch.float32, True, None, True),
        (torch.bfloat16, False, None, False),
        (torch.float64, True, None, False),
        (torch.bfloat16, True, False, False),
        (torch.bfloat16, False, True, True),
    ],
)
def test_triton_kernels_run_on_a_gpu_where_they_read_volumes_in_place(
    kind, dtype, last, fused, launched
):
    layout = torch.channels_last_3d if last else torch.contiguous_format
    with modelled() as work:
        x = torch.empty(1, 8, 4, 32, 32, device="cuda", dtype=dtype)
        x = x.contiguous(memory_format=layout)
        coefficients = torch.promote_types(dtype, torch.float32)
        scale, shift = (torch.empty(1, 8, device="cuda", dtype=coefficients) for _ in range(2))
        work.kernels.clear()
        norm_act(
            x, scale, shift, kind=kind, groups=1 if kind == "voxel" else 2, eps=1e-5, fused=fused
        )
        names = [n for n, _, _ in kernels(work)]
    assert any("triton" in name for name in names) is launched
    if launched and last:
        assert not any("clone" in n or "copy" in n for n in names if kind != "slice")


def test_group_norm_without_triton_takes_few_launches_and_passes():
    with modelled() as work:
        x = torch.empty(1, 64, 32, 32, 32, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        scale, shift = (torch.empty(1, 64, device="cuda", requires_grad=True) for _ in range(2))
        work.kernels.clear()
        y = norm_act(x, scale, shift, kind="group", groups=32, eps=1e-5, fused=False)
        forward = kernels(work)
        y.backward(torch.empty_like(y))
        backward = kernels(work)
    volume = 2 * 64 * 32**3
    assert round(sum(b for _, b, _ in forward) / volume) == 6
    assert round(sum(b for _, b, _ in backward) / volume) <= 14
    assert len(forward) <= 16
    assert len(backward) <= 20


def test_convolutions_keep_channels_last_as_those_of_gpus_do():
    with modelled():
        layer = nn.Conv3d(4, 4, 3, padding=1, device="cuda")
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
        y = layer(torch.empty(1, 4, 8, 8, 8, device="cuda"))
        assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_operations_of_a_network_are_those_that_torch_counts():
    def step(network, z):
        network(z, torch.full((1,), 0.5, device=z.device)).sum().backward()

    def build():
        return Guided(2, 2, widths=(4, 8), groups=2)

    with FlopCounterMode(display=False) as counter:
        step(build(), torch.zeros(1, 2, 8, 8, 8))
    with modelled() as work:
        with torch.device("cuda"):
            network, z = build(), torch.zeros(1, 2, 8, 8, 8)
        work.kernels.clear()
        step(network, z)
    assert work.flop == counter.get_total_flops()
    assert work.convolutions().flop < work.flop
    assert work.launches == sum(n for n, _ in work.by_name(H200).values())


def test_the_slower_half_decides():
    kernel = MODEL["Kernel"]
    gpu = GPU(half=100.0, tf32=50.0, single=10.0, bandwidth=20.0, launch=0.5)
    assert kernel("add", size=40).seconds(gpu) == 2.5
    assert kernel("convolution", 20, flop=100).seconds(gpu) == 2.5  # TF32
    assert kernel("mm", 20, flop=100).seconds(gpu) == 10.5
    assert kernel("convolution", 60, flop=100, dtype=torch.float16).seconds(gpu) == 3.5


def test_autocast_casts_weights_once():
    with modelled() as work:
        layer = nn.Conv3d(4, 4, 3, padding=1, device="cuda")
        norm = nn.GroupNorm(2, 4, device="cuda")
        x = torch.empty(1, 4, 8, 8, 8, device="cuda")
        work.kernels.clear()
        with Autocast(torch.float16):
            y = norm(layer(layer(x)))
        assert y.dtype == torch.float32
        names = [n for n, _, _ in kernels(work)]
    assert names.count("_to_copy") == 4  # x, weight, bias, and what is normalised
    assert names.count("convolution") == 2
