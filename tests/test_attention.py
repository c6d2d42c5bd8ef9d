"""Attention backends against the softmax written out."""

import math
import sys

import pytest
import torch

from volumediff.networks import _attention, _context_attention
from volumediff.networks._attention import Attention, attend, available_backends
from volumediff.networks._context_attention import ContextAttention

REASONS = available_backends("cpu")


def tokens(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn((3, 2, 40, 4, 32), generator=generator).to(dtype).unbind(0)


def context_attention():
    return ContextAttention(8, (3, 4), heads=2, groups=2)


def softmax_attention(q, k, v):
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return (scores @ v).transpose(1, 2)


@pytest.mark.parametrize("backend", [n for n, reason in REASONS.items() if not reason])
def test_backend_is_exact(backend):
    q, k, v = tokens()
    y = attend(q, k, v, backend=backend)
    torch.testing.assert_close(y.double(), softmax_attention(q, k, v), rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_rows_are_padded_exactly(size):
    """Heads of any size are padded to whole 16 bytes: equal values, equal gradients."""
    found = []
    for function in (attend, softmax_attention):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 7, 3, size, requires_grad=True) for _ in range(3))
        y = function(q, k, v).float()
        y.square().sum().backward()
        found.append((y.detach(), q.grad, k.grad, v.grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", [n for n, reason in REASONS.items() if reason])
def test_forced_backend_that_cannot_run_says_why(backend):
    q, k, v = tokens()
    with pytest.raises(ValueError, match=f"'{backend}' cannot run on cpu .* use 'auto'"):
        attend(q, k, v, backend=backend)


def test_auto_flash_and_math_run_everywhere():
    assert not any(REASONS[name] for name in ("auto", "math", "flash"))


def test_other_errors_pass_through():
    q, k, v = tokens()
    with pytest.raises(RuntimeError, match="same dtype"):
        attend(q, k.double(), v, backend="math")


def test_xformers_is_not_imported_for_other_backends():
    assert "xformers" not in sys.modules


def test_layer_is_the_formula():
    layer = Attention(8, groups=2, head_size=4)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, 2, 3, 4, dtype=torch.float64)
    flat = layer.norm(x).flatten(2).transpose(1, 2)
    qkv = flat @ layer.qkv.weight.double().T + layer.qkv.bias.double()
    q, k, v = (p.reshape(2, 24, 2, 4) for p in qkv.split(8, dim=-1))
    y = softmax_attention(q, k, v).reshape(2, 24, 8) @ layer.out.weight.double().T
    expected = x + y.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_plane_attention_never_mixes_slices():
    layer = Attention(8, norm="slice", groups=2, plane=True)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(1, 8, 5, 3, 4, dtype=torch.float64)
    whole = layer(x)
    for i in range(5):
        torch.testing.assert_close(layer(x[:, :, i : i + 1]), whole[:, :, i : i + 1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_layer_starts_as_the_identity(layout):
    x = torch.randn(1, 8, 3, 4, 5).contiguous(memory_format=layout)
    assert torch.equal(Attention(8)(x), x)


def test_doctor_sees_every_backend():
    assert set(REASONS) == {"auto", *_attention.KERNELS, "xformers"}


@pytest.mark.parametrize("attention", [Attention(8, groups=2), context_attention()])
def test_some_planes_ask_all_of_them(attention, monkeypatch):
    """As one of several processes that share a volume: the same planes, and no more asked for."""
    x = torch.randn(2, 8, 5, 3, 2, dtype=torch.float64)
    told = (torch.randn(2, 7, dtype=torch.float64),) if attention.conditioned else ()
    attention = attention.double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    whole, asked = attention(x, *told), []
    for module in (_attention, _context_attention):
        monkeypatch.setattr(
            module, "attend", lambda q, *kv, **how: (asked.append(q.shape[1]), attend(q, *kv))[1]
        )
    for lo, hi in ((0, 2), (2, 5), (1, 4)):
        some = attention(x, *told, planes=(lo, hi))
        torch.testing.assert_close(some, whole[:, :, lo:hi], rtol=1e-12, atol=1e-12)
    assert asked == [6 * n for n in (2, 3, 3)]
