"""Group norms of slabs by Triton kernels, in the interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F
from test_layers_math import normal
from test_norm_act_triton import DEVICE, STEP, inputs, needs_triton, pytestmark  # noqa: F401

from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.norm_statistics import Affine, SlabMoments
from volumediff.networks.unet import UNet

SHAPE = (2, 12, 9, 5, 7)


@needs_triton
@pytest.mark.parametrize("dtype", STEP)
def test_silu_of_an_affine_map_and_its_gradients(dtype):
    from volumediff.networks._affine_triton import add_affine, affine_silu, affine_silu_gradient

    x, a, c = (v.detach() for v in inputs(SHAPE, dtype))
    grad = normal(*SHAPE, seed=3).to(x)
    wide = [v.double().requires_grad_() for v in (x, a, c)]
    u = wide[0] * wide[1][:, :, None, None, None] + wide[2][:, :, None, None, None]
    wanted = F.silu(u)
    # planes of a larger volume, as slabs are
    cuts = [slice(0, 4), slice(4, 8), slice(8, 9)]
    parts = [affine_silu(x[:, :, s], a, c) for s in cuts]
    torch.testing.assert_close(
        torch.cat(parts, dim=2).double(), wanted.detach(), rtol=STEP[dtype], atol=1e-5
    )
    gradients = torch.autograd.grad(wanted, wide, grad.double())
    found = [affine_silu_gradient(x[:, :, s], grad[:, :, s], a, c) for s in cuts]
    of_x, of_a, of_c = zip(*found, strict=True)
    torch.testing.assert_close(
        torch.cat(of_x, dim=2).double(), gradients[0], rtol=STEP[dtype], atol=STEP[dtype]
    )
    for sums, exact in zip((of_a, of_c), gradients[1:], strict=True):
        torch.testing.assert_close(sum(sums).double(), exact, rtol=1e-4, atol=1e-3)
    moved = torch.cat([add_affine(None, x[:, :, s], a, c) for s in cuts], dim=2)
    torch.testing.assert_close(moved.double(), u.detach(), rtol=STEP[dtype], atol=1e-5)
    added = add_affine(grad, x, a, c)
    both = u.detach() + grad.double()
    torch.testing.assert_close(added.double(), both, rtol=STEP[dtype], atol=2 * STEP[dtype])


@needs_triton
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_moments_coefficients_and_their_gradients(groups):
    """Against the operations of torch, which other tests hold to closed forms."""
    x, scale, shift = (v.detach() for v in inputs(SHAPE, offset=20.0))
    forms = []
    for fused in (True, False):
        moments = SlabMoments(fused=fused)
        for slab in x.split((4, 4, 1), dim=2):
            moments.update(slab)
        assert moments.fused is fused
        assert moments.count == 9 * 5 * 7
        how = {"groups": groups, "eps": 1e-5, "fused": fused}
        affine = Affine.of(moments.result(), scale, shift, **how)
        of_a, of_c = (normal(*scale.shape, seed=s, dtype=torch.float32) for s in (7, 8))
        of_scale, share = affine.gradients(of_a, of_c, moments.count)
        forms.append((*moments.result(), affine.a, affine.c, of_scale, *share))
    for kernels, plain in zip(*forms, strict=True):
        assert kernels.dtype == plain.dtype
        torch.testing.assert_close(kernels, plain, rtol=2e-5, atol=1e-6)


@needs_triton
def test_a_network_in_slabs_through_the_kernels(monkeypatch):
    from volumediff.networks import _affine_triton

    calls = []
    for name in ("affine_silu", "affine_silu_gradient", "add_affine", "norm_affine_gradient"):
        kept = getattr(_affine_triton, name)
        monkeypatch.setattr(
            _affine_triton,
            name,
            lambda *a, _kept=kept, _name=name, **k: calls.append(_name) or _kept(*a, **k),
        )
    torch.manual_seed(0)
    network = UNet(2, 2, widths=(8, 16), blocks=1)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    network = network.to(DEVICE)
    z = normal(1, 2, 6, 8, 7, dtype=torch.float32).to(DEVICE)
    results = []
    for fused, slab in ((False, None), (True, 2)):
        policy = MemoryPolicy(channels_last=True, checkpoint=slab is not None, slab=slab)
        MemoryPolicy(**{**vars(policy), "fused": fused}).apply(network)
        network.zero_grad()
        y = network(z, torch.tensor([0.4], device=DEVICE))
        y.square().mean().backward()
        results.append((y.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    assert len(set(calls)) == 4
    for plain, slabs in zip(*results, strict=True):
        assert (plain - slabs).norm() < 1e-5 * plain.norm()
