"""Faults that only a GPU would show, put back on purpose: the pretend device sees each of them."""

from contextlib import nullcontext

import pretend_cuda
import pytest
import torch
import torch.nn.functional as F
from shrunken_configs import shrunken

from volumediff.networks import _resample
from volumediff.networks._attention import attend
from volumediff.networks._norm_act import norm_act
from volumediff.networks._resample import Linear2, Pool
from volumediff.planning.step import training_step
from volumediff.tasks import build_task, resolved
from volumediff.times._base import TimeDensity
from volumediff.training.deterministic import deterministic

BF16 = torch.bfloat16


def test_float32_weights_of_a_norm_beside_bfloat16_data():
    """The first backward pass of the patch pipeline would end with an error of the kernel."""
    plain = torch.ops.aten.native_layer_norm_backward

    def with_ones(grad, x, shape, mean, inverse, weight, bias, mask):
        ones = torch.ones(shape, device=x.device)
        return plain(grad, x, shape, mean, inverse, ones, ones, mask)

    with pretend_cuda.device():
        x = torch.randn(1, 8, 2, 2, 2, dtype=BF16, device="cuda", requires_grad=True)
        scale = torch.ones(1, 8, device="cuda")
        last = x.movedim(1, -1)
        y, mean, inverse = torch.native_layer_norm(last, (8,), None, None, 1e-5)
        with pytest.raises(RuntimeError, match="expected scalar type"):
            with_ones(y, last, (8,), mean, inverse, None, None, [True, False, False])
        found = norm_act(x, scale, scale, kind="voxel", groups=1, eps=1e-5)
        found.sum().backward()  # as it is now
    assert x.grad.dtype == BF16


def test_a_convolution_in_tf32_where_float32_was_asked_for():
    config = resolved(shrunken("autoencoders/kl_64"))
    with pretend_cuda.device() as gpu:  # without the arithmetic of the policy
        task = build_task(config)
        task.module.to("cuda")
        training_step(config, task, device="cuda").run(lambda name: nullcontext())
    assert gpu.rounded.total() > 0


@pytest.mark.parametrize(
    ("layer", "name", "torchs"),
    [
        (Pool(), "mean_of_cells", lambda x, size, *, ceil: F.avg_pool3d(x, 2, ceil_mode=ceil)),
        (
            Linear2(),
            "linear_twice",
            lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear"),
        ),
    ],
)
def test_a_backward_pass_without_deterministic_kernel(monkeypatch, layer, name, torchs):
    monkeypatch.setattr(_resample, name, torchs)
    with pretend_cuda.device() as gpu:
        x = torch.randn(1, 2, 4, 4, 4, device="cuda", requires_grad=True)
        layer(x).sum().backward()
    assert gpu.nondeterministic.total() == 1


def test_attention_of_torch_that_only_warns():
    with deterministic(True), pretend_cuda.device() as gpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
        q = torch.randn(1, 6, 2, 8, dtype=BF16, device="cuda", requires_grad=True)
        attend(q, q, q).sum().backward()
    assert gpu.nondeterministic.total() == 1


def test_heads_that_no_kernel_without_scores_takes():
    with pretend_cuda.device() as gpu:
        q = torch.randn(1, 2, 6, 6, device="cuda")
        F.scaled_dot_product_attention(q, q, q)
        attend(q, q, q)
    assert [choice.kernel for choice in gpu.attention] == ["math", "efficient"]
    assert gpu.attention[0].scores == 2 * 6 * 6


def test_a_step_that_waits_for_its_draws(monkeypatch):
    config = resolved(shrunken("pipelines/wavelet_64"))

    def waits():
        with pretend_cuda.device() as gpu, config.memory.arithmetic():
            task = build_task(config)
            task.module.to("cuda")
            step = training_step(config, task, device="cuda")
            before = gpu.waits.copy()
            step.run(lambda name: nullcontext())
        return (gpu.waits - before).total()

    few, draw = waits(), TimeDensity.draw

    def waiting(self, keys, schedule, *, device="cpu"):
        return draw(self, keys, schedule).to(device)

    monkeypatch.setattr(TimeDensity, "draw", waiting)
    assert waits() > few


def test_an_operand_that_stayed_on_the_cpu():
    config = resolved(shrunken("pipelines/patch_64"))
    with pretend_cuda.device():
        task = build_task(config)
        task.module.to("cuda")
        step = training_step(config, task)  # batches of the CPU
        with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
            step.run(lambda name: nullcontext())
