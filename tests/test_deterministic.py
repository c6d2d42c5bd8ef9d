"""Training that resumes bit for bit: deterministic kernels or a refusal, and IEEE float32."""

from contextlib import suppress

import pretend_cuda
import pytest
import torch
import torch.nn.functional as F

from volumediff.errors import UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._attention import attend
from volumediff.training.deterministic import deterministic


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_everything_is_as_before_afterwards(enabled, warn_only):
    first = state()
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.benchmark = True
    try:
        before = state()
        with deterministic(False):
            assert state() == before
        with suppress(KeyError), deterministic(True):
            assert state() == (True, False, False, False)
            raise KeyError
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(first[0], warn_only=first[1])
        torch.backends.cudnn.benchmark = first[2]


def test_an_operation_without_deterministic_kernel_is_refused_by_name():
    with pretend_cuda.device():
        x = torch.randn(1, 1, 4, 4, 4, device="cuda", requires_grad=True)
        y = F.avg_pool3d(x, 2).sum()
        line = r"deterministic: avg_pool3d_backward has .*set deterministic=false\.$"
        with pytest.raises(UsageError, match=line) as caught, deterministic(True):
            y.backward()
        assert "\n" not in str(caught.value)
        with pytest.raises(RuntimeError, match="something else"), deterministic(True):
            raise RuntimeError("something else")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_is_deterministic_only_where_torch_is_not_told_to_warn(dtype):
    for context, exact in ((deterministic(True), True), (deterministic(False), False)):
        with pretend_cuda.device() as gpu, context:
            q = torch.randn(1, 6, 2, 8, dtype=dtype, device="cuda", requires_grad=True)
            attend(q, q, q).sum().backward()
        assert gpu.attention[0].deterministic is exact
        assert (gpu.nondeterministic.total() == 0) is exact


@pytest.mark.parametrize("size", [1, 3, 6, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_head_size_falls_to_the_kernel_that_stores_the_scores(dtype, size):
    with pretend_cuda.device() as gpu:
        q = torch.randn(1, 5, 2, size, dtype=dtype, device="cuda")
        attend(q, q, q)
    assert gpu.attention[0].kernel != "math"


def products():
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    return [backend.fp32_precision for backend in backends]


@pytest.mark.parametrize(
    ("dtype", "inside"), [("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")]
)
def test_float32_is_what_the_policy_says(dtype, inside):
    before = products()
    with suppress(KeyError), MemoryPolicy(dtype=dtype).arithmetic():
        assert products() == [inside] * 2
        raise KeyError
    assert products() == before
    x = torch.randn(1, 1, 4, 4, 4)
    with pretend_cuda.device() as gpu, MemoryPolicy(dtype=dtype).arithmetic():
        F.conv3d(x.cuda(), x.cuda())
        F.linear(x.cuda(), x[0, 0, 0].cuda())
    assert gpu.rounded.total() == (2 if inside == "tf32" else 0)
    assert MemoryPolicy(dtype="tf32").torch_dtype == torch.float32
