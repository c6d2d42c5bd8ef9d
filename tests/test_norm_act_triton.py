"""The Triton kernels against the formula in float64, in the interpreter where there is no GPU."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from child_processes import run_program
from test_layers_math import normal, normalised

from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._norm_act import _lacking, fused_refusal, norm_act
from volumediff.networks.unet import UNet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("group", "slice", "voxel")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Spacing of the numbers of a format; the interpreter cuts bfloat16 off instead of rounding.
STEP = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}

missing = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(missing, reason="triton is not installed")
if not missing:
    import triton

    old = tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7)
    if old and DEVICE == "cpu" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        reason = f"the interpreter of triton {triton.__version__} fails with numpy 2.4"
        needs_triton = pytest.mark.skip(reason=reason)

pytestmark = [
    # In lanes outside the data, whose values go nowhere.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
    # Triton 3.9 announces a new default for contracted multiplication and addition.
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]


def formula(x, scale, shift, kind, groups):
    """silu(scale x̂ + shift) from plain operations."""
    u = normalised(x, kind, groups) * scale[:, :, None, None, None] + shift[:, :, None, None, None]
    return u * torch.sigmoid(u)


def inputs(shape, dtype=torch.float32, offset=0.0):
    x = (offset + normal(*shape)).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    scale = 1 + 0.5 * normal(*shape[:2], seed=1, dtype=torch.float32)
    shift = normal(*shape[:2], seed=2, dtype=torch.float32)
    return [v.to(DEVICE).requires_grad_() for v in (x, scale, shift)]


def both(leaves, kind, groups):
    """Value and gradients from the kernels, and from the formula on the same numbers."""
    results = []
    grad = normal(*leaves[0].shape, seed=5).to(leaves[0]).double()
    for exact in (False, True):
        x, scale, shift = (v.detach().double() if exact else v.detach() for v in leaves)
        parts = [v.requires_grad_() for v in (x, scale, shift)]
        if exact:
            y = formula(*parts, kind, groups)
        else:
            y = norm_act(*parts, kind=kind, groups=groups, eps=1e-5, fused=True)
        results.append((y.detach(), *torch.autograd.grad(y, parts, grad.to(y.dtype))))
    return results


def assert_close(leaves, kind, groups, tolerance=1.0):
    """Within the rounding of the dtype, relative to the largest value of each tensor."""
    got, wanted = both(leaves, kind, groups)
    x_dtype = leaves[0].dtype
    for name, g, w in zip(("y", "x", "scale", "shift"), got, wanted, strict=True):
        # Sums over voxels are kept in float32, whatever the data.
        bound = 4 * tolerance * STEP[x_dtype if name in ("y", "x") else torch.float32]
        error = ((g.double() - w).abs().max() / w.abs().max()).item()
        assert error < bound, f"{name}: {error:.1e}"


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_the_formula(kind, dtype):
    assert_close(inputs((2, 8, 3, 5, 7), dtype), kind, 1 if kind == "voxel" else 2)


@needs_triton
@pytest.mark.parametrize(
    ("channels", "groups"), [(29, 29), (29, 1), (2, 1), (24, 8), (300, 50), (257, 1)]
)
def test_any_number_of_channels(channels, groups):
    x, scale, shift = inputs((1, channels, 3, 2, 5))
    assert_close((x, scale, shift), "group", groups)
    assert_close((x, scale, shift), "voxel", 1)


@needs_triton
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 3), (16, 17, 19), (1, 73, 113)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_voxels(kind, size):
    """One voxel; several chunks, the last of them short; and tiles that end within a row."""
    assert_close(inputs((2, 8, *size)), kind, 1 if kind == "voxel" else 2)


@needs_triton
@pytest.mark.parametrize("offset", [30.0, 3000.0])
def test_a_large_mean_costs_no_accuracy(offset):
    """The sum of squares minus the square of the sum would lose the variance altogether."""
    assert_close(inputs((1, 8, 16, 17, 19), offset=offset), "group", 2, tolerance=offset / 3)


@needs_triton
def test_chunks_with_unlike_means():
    """Between chunks the mean moves by far more than the deviation within."""
    x, scale, shift = inputs((1, 8, 20, 32, 32))
    with torch.no_grad():
        x += 100 * torch.arange(20, device=DEVICE)[:, None, None]
        x += 1000 * torch.arange(8, device=DEVICE)[:, None, None, None]
    assert_close((x, scale, shift), "group", 2, tolerance=10)


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout(kind):
    """Channels first, a slab of a larger volume, and an expanded gradient."""
    leaves = inputs((2, 8, 6, 5, 7))
    groups = 1 if kind == "voxel" else 2
    arguments = {"kind": kind, "groups": groups, "eps": 1e-5, "fused": True}
    wanted = norm_act(*leaves, **arguments)
    first = [leaves[0].detach().contiguous(), *leaves[1:]]
    assert torch.equal(norm_act(*first, **arguments), wanted)
    slab = leaves[0].detach()[:, :, 1:4]
    whole = slab.clone(memory_format=torch.channels_last_3d)
    assert torch.equal(
        norm_act(slab, *leaves[1:], **arguments), norm_act(whole, *leaves[1:], **arguments)
    )
    expanded = torch.autograd.grad(wanted.sum(), leaves, retain_graph=True)
    dense = torch.autograd.grad(wanted, leaves, torch.ones_like(wanted))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


@needs_triton
@pytest.mark.parametrize("kind", ["group", "voxel"])
def test_equal_inputs_give_equal_bits(kind):
    leaves = inputs((2, 8, 16, 17, 19), torch.bfloat16)
    groups = 1 if kind == "voxel" else 2
    first, second = (both(leaves, kind, groups)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_triton
def test_offsets_beyond_32_bits():
    """A sample 2³¹ elements behind the first; the memory between them is never touched."""
    apart, shape = 2**31 + 16, (2, 3, 4, 5, 8)
    store = torch.empty(apart + 480, dtype=torch.bfloat16, device=DEVICE)
    x = store.as_strided(shape, (apart, 160, 40, 8, 1)).movedim(-1, 1)
    x.copy_(normal(*x.shape))
    leaves = [x, *inputs((2, 8, 3, 4, 5))[1:]]
    for kind, groups in (("group", 2), ("voxel", 1)):
        got = norm_act(*leaves, kind=kind, groups=groups, eps=1e-5, fused=True)
        near = [x.clone(memory_format=torch.channels_last_3d), *leaves[1:]]
        wanted = norm_act(*near, kind=kind, groups=groups, eps=1e-5, fused=True)
        assert torch.equal(got, wanted)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_more_than_2_to_the_31_elements():
    x = torch.randn(1, 520, 520, 520, 16, device=DEVICE, dtype=torch.bfloat16).movedim(-1, 1)
    scale, shift = (v.to(DEVICE) for v in inputs((1, 16, 1, 1, 1))[1:])
    with torch.no_grad():
        y = norm_act(x, scale, shift, kind="group", groups=16, eps=1e-5, fused=True)
        part = x[:, :, -8:].float()
        mean, var = x.double().mean((2, 3, 4)), x.double().var((2, 3, 4))
        a = scale / (var + 1e-5).sqrt()
        u = part * a[:, :, None, None, None] + (shift - mean * a)[:, :, None, None, None]
    torch.testing.assert_close(
        y[:, :, -8:].double(), torch.nn.functional.silu(u.double()), rtol=2e-2, atol=2e-2
    )


@needs_triton
def test_kernels_keep_only_their_input():
    leaves = inputs((1, 8, 8, 8, 8))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_act(*leaves, kind="group", groups=2, eps=1e-5, fused=True)
    large = [t for t in kept if t.numel() == leaves[0].numel()]
    assert [t.data_ptr() for t in large] == [leaves[0].data_ptr()]


@needs_triton
def test_statistics_of_slabs_make_those_of_the_volume():
    from volumediff.networks._affine_triton import affine_silu
    from volumediff.networks._norm_act_triton import statistics

    x, scale, shift = (v.detach() for v in inputs((2, 12, 9, 8, 7), offset=50.0))
    parts = [statistics(slab, 4) for slab in x.split((4, 4, 1), dim=2)]
    count = sum(p.count for p in parts)
    mean = sum(p.count * p.mean.double() for p in parts) / count
    m2 = sum(p.m2.double() + p.count * (p.mean.double() - mean) ** 2 for p in parts)
    grouped = x.double().unflatten(1, (4, 3)).flatten(2)
    assert count == grouped.shape[-1]
    torch.testing.assert_close(mean, grouped.mean(-1), rtol=1e-6, atol=0)
    variance = grouped.var(-1, unbiased=False)
    torch.testing.assert_close(m2 / count, variance, rtol=1e-5, atol=0)

    inverse = (m2 / count + 1e-5).rsqrt().repeat_interleave(3, dim=1)
    a = scale * inverse
    b = shift - a * mean.repeat_interleave(3, dim=1)
    y = torch.cat([affine_silu(s, a.float(), b.float()) for s in x.split(4, dim=2)], dim=2)
    wanted = formula(x.double(), scale.double(), shift.double(), "group", 4)
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-4)


@needs_triton
def test_policy_runs_a_network_through_the_kernels(monkeypatch):
    from volumediff.networks import _norm_act_triton

    calls = []
    apply = _norm_act_triton.FusedNormAct.apply
    monkeypatch.setattr(
        _norm_act_triton.FusedNormAct, "apply", lambda *a: calls.append(1) or apply(*a)
    )
    torch.manual_seed(0)
    net = UNet(2, 2, widths=(8, 16), blocks=1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net = net.to(DEVICE)
    z = normal(1, 2, 6, 8, 7, dtype=torch.float32).to(DEVICE)
    results = []
    for fused in (False, True):
        MemoryPolicy(channels_last=True, checkpoint=True, fused=fused).apply(net)
        net.zero_grad()
        y = net(z, torch.tensor([0.4], device=DEVICE))
        y.square().mean().backward()
        results.append((y.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])))
        assert bool(calls) is fused
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()
    MemoryPolicy().apply(net)
    calls.clear()
    net(z, torch.tensor([0.4], device=DEVICE))
    assert not calls


def test_shadows_of_tensors_take_the_reference():
    """A planner traces a network that will run fused, on a machine that may have no kernels."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, scale, shift = torch.empty(1, 8, 2, 3, 4), torch.empty(1, 8), torch.empty(1, 8)
        y = norm_act(x, scale, shift, kind="group", groups=2, eps=1e-5, fused=True)
    assert y.shape == x.shape


@pytest.fixture
def asked_anew():
    """What the machine lacks is looked up once; these tests change it."""
    _lacking.cache_clear()
    yield
    _lacking.cache_clear()


def test_refusals_say_why(monkeypatch, asked_anew):
    x = torch.zeros(1, 8, 2, 3, 4)
    if not missing:
        assert "take float32" in fused_refusal(x.double())
        from volumediff.networks import _norm_act_triton

        monkeypatch.setattr(_norm_act_triton, "INTERPRETED", False)
        assert fused_refusal(x) == "its kernels need a GPU"
    _lacking.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    if not missing:
        assert fused_refusal(x) == "triton finds no C compiler"
    _lacking.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fused_refusal(x) == "triton is not installed"
    with pytest.raises(ValueError, match="set channels_last to true"):
        MemoryPolicy(fused=True)


def test_without_a_gpu_the_reference_runs(monkeypatch, asked_anew):
    """What was trained fused on a GPU is read on a CPU too."""
    leaves = [v.detach().cpu() for v in inputs((1, 8, 2, 3, 4))]
    arguments = {"kind": "group", "groups": 2, "eps": 1e-5}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert torch.equal(norm_act(*leaves, **arguments, fused=True), norm_act(*leaves, **arguments))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_kernels_that_cannot_run_fail():
    leaves = [v.double() for v in inputs((1, 8, 2, 3, 4))]
    with pytest.raises(ValueError, match=r"cuda with float64: .* set 'fused' to null or false"):
        norm_act(*leaves, kind="group", groups=2, eps=1e-5, fused=True)


def test_triton_is_imported_only_when_used():
    code = (
        "import sys, torch; before = set(sys.modules); "
        "from volumediff.networks._layers import NormAct; from volumediff.networks import unet; "
        "NormAct(8)(torch.zeros(1, 8, 2, 2, 2)); "
        "print([m for m in set(sys.modules) - before if m.split('.')[0] == 'triton'])"
    )
    assert run_program([sys.executable, "-c", code]).stdout.strip() == "[]"


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path):
    """For compute capability 8.0, without such a device."""
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = Path(__file__).with_name("compile_kernels.py")
    out = run_program([sys.executable, script, "80"], environment=environment)
    assert out.stdout == "13 kernels\n"
