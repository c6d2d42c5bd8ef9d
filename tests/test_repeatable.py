"""Resampling with gradients in one order equals torch's, forward and backward."""

import pretend_cuda
import pytest
import torch
import torch.nn.functional as F

from volumediff.networks._repeatable import linear_twice, mean_of_cells
from volumediff.networks._resample import Linear2, Pool

LAST = torch.channels_last_3d


def both(ours, theirs, x):
    """Values and gradients of two functions."""
    found = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape, dtype=y.dtype))
        found.append((y.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize(
    ("shape", "size", "ceil"),
    [
        ((2, 3, 5, 6, 7), (2, 2, 2), True),
        ((2, 3, 5, 6, 7), (2, 2, 2), False),
        ((1, 4, 1, 6, 8), (1, 2, 2), True),
        ((1, 2, 7, 8, 4), (3, 3, 3), True),
        ((1, 2, 7, 8, 4), (3, 3, 3), False),
    ],
)
def test_means_of_cells(shape, size, ceil, layout):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    ours, theirs = both(
        lambda x: mean_of_cells(x, size, ceil=ceil),
        lambda x: F.avg_pool3d(x, size, size, ceil_mode=ceil),
        x,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 7), (1, 2, 1, 1, 3), (1, 1, 2, 2, 2)])
def test_linear_interpolation_to_twice_the_size(shape, layout):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    ours, theirs = both(
        linear_twice, lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear"), x
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("layer", [Pool(), Linear2()])
def test_layers_keep_dtype_layout_and_gradient_in_bfloat16(layer):
    x = torch.randn(2, 8, 4, 6, 4).contiguous(memory_format=LAST)
    (y, grad), _ = both(layer, layer, x.bfloat16())
    (_, wide), _ = both(layer, layer, x)
    assert y.dtype == grad.dtype == torch.bfloat16
    assert grad.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(grad.float(), wide, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("layer", [Pool(), Linear2()])
def test_no_nondeterministic_kernel_runs(layer):
    with pretend_cuda.device() as gpu:
        x = torch.randn(1, 2, 3, 4, 5, device="cuda", requires_grad=True)
        layer(x).sum().backward()
    assert gpu.nondeterministic.total() == 0
