"""Layers against float64 formulas written out with plain operations."""

import itertools

import pretend_cuda
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from volumediff.networks._block import ResidualBlock
from volumediff.networks._layers import Conv, Linear, Norm, NormAct, PlaneConv
from volumediff.networks._norm_act_local import _from_moments
from volumediff.networks._resample import Down, Nearest, Pool, Up

KINDS = ("group", "slice", "voxel")
LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def normalised(x, kind, groups):
    """Mean 0, variance 1 over the axes of the kind, from the definition."""
    b, c, d, h, w = x.shape
    if kind == "voxel":
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt()
    g = x.reshape(b, groups, c // groups, d, h, w)
    axes = (2, 3, 4, 5) if kind == "group" else (2, 4, 5)
    mean, var = g.mean(axes, keepdim=True), g.var(axes, keepdim=True, unbiased=False)
    return ((g - mean) / (var + 1e-5).sqrt()).reshape(x.shape)


def reference(module, x, film):
    gain, offset = film[:, :, None, None, None].double().chunk(2, dim=1)
    weight = module.norm.weight.detach().double()[:, None, None, None]
    bias = module.norm.bias.detach().double()[:, None, None, None]
    u = normalised(x.double(), module.norm.kind, module.norm.groups)
    u = (u * weight + bias) * (1 + gain) + offset
    return u / (1 + torch.exp(-u))


def norm_act(kind, channels=8, groups=2):
    module = NormAct(channels, norm=kind, groups=groups)
    with torch.no_grad():
        module.norm.weight.copy_(1 + 0.3 * normal(channels, seed=1))
        module.norm.bias.copy_(normal(channels, seed=2))
    return module


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_norm_act_is_its_formula(kind, layout):
    module = norm_act(kind)
    x = (3 + 2 * normal(2, 8, 3, 4, 5)).contiguous(memory_format=layout)
    film = 0.5 * normal(2, 16, seed=3)
    torch.testing.assert_close(module(x, film), reference(module, x, film), rtol=0, atol=1e-12)
    y = module(x.float(), film.float())
    torch.testing.assert_close(y.double(), reference(module, x, film), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "groups"), [*((kind, 2) for kind in KINDS), ("group", 1)])
def test_norm_act_gradients(kind, groups, layout):
    """The hand-written backward pass against finite differences."""
    module = norm_act(kind, channels=4, groups=groups).double()
    x = normal(2, 4, 2, 3, 2).contiguous(memory_format=layout).requires_grad_()
    film = (0.5 * normal(2, 8, seed=3)).requires_grad_()
    weight, bias = module.norm.weight, module.norm.bias

    def function(x, film, weight, bias):
        parameters = {"norm.weight": weight, "norm.bias": bias}
        return torch.func.functional_call(module, parameters, (x, film))

    assert torch.autograd.gradcheck(function, (x, film, weight, bias))


@pytest.mark.parametrize("kind", KINDS)
def test_norm_act_in_bfloat16(kind):
    """Statistics in float32: a mean of 30 standard deviations survives bfloat16 inputs."""
    module = norm_act(kind)
    offset = 0.0 if kind == "voxel" else 30.0
    x = (offset + normal(1, 8, 8, 16, 16)).bfloat16().requires_grad_()
    film = 0.5 * normal(1, 16, seed=3, dtype=torch.float32)
    y = module(x, film)
    assert y.dtype == torch.bfloat16
    expected = reference(module, x.detach(), film)
    error = (y.detach().double() - expected).square().mean().sqrt() / expected.std()
    assert error < 0.01
    exact = x.detach().double().requires_grad_()
    grad = normal(*x.shape, seed=5)
    (wanted,) = torch.autograd.grad(module(exact, film.double()), exact, grad)
    (got,) = torch.autograd.grad(y, x, grad.bfloat16())
    assert (got.double() - wanted).square().mean().sqrt() / wanted.std() < 0.02


def test_norm_act_keeps_only_its_input():
    """Separate operations would keep three tensors of the size of the volume, this keeps one."""
    module = norm_act("group")
    x = normal(1, 8, 8, 8, 8, dtype=torch.float32).requires_grad_()
    film = normal(1, 16, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x, film)
    large = [t for t in kept if t.numel() == x.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()


class Operations(TorchDispatchMode):
    """Names of the operations on tensors of at least so many elements inside the block."""

    def __init__(self, size=0):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if max((a.numel() for a in args if isinstance(a, torch.Tensor)), default=0) >= self.size:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_norm_act_copies_no_dense_volume():
    module = norm_act("group")
    plain, odd = (normal(1, 8, 4, 4, 4, dtype=torch.float32) for _ in range(2))
    odd = odd.as_strided(odd.shape, (7, *odd.stride()[1:]))  # the same volume to the eye
    with torch.no_grad(), Operations(plain.numel()) as seen:
        assert torch.equal(module(odd), module(plain))
    assert not any("clone" in name for name in seen.names)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_norm_agrees(kind):
    norm = Norm(8, kind=kind, groups=2)
    x = normal(2, 8, 3, 4, 5)
    torch.testing.assert_close(norm(x), normalised(x, kind, norm.groups), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (128, 32), (29, 1), (24, 4), (2, 1)])
def test_groups_divide_and_hold_two_channels(channels, groups):
    assert Norm(channels).groups == groups
    # one voxel and one sample: a group of a single number would be normalised to zero
    x = normal(1, channels, 1, 1, 1)
    assert Norm(channels)(x).abs().max() > 0.1


def test_groups_may_be_allowed_to_hold_one_channel():
    for channels, groups, expected in ((29, 29, 29), (87, 29, 29), (64, 32, 32), (10, 4, 2)):
        assert Norm(channels, groups=groups, least=1).groups == expected


@pytest.mark.parametrize("size", [(4, 6, 8), (3, 1, 5)])
def test_pool_and_nearest_are_means_and_repeats(size):
    x = normal(1, 2, *size)
    pooled = Pool()(x)
    assert pooled.shape[2:] == tuple(-(-n // 2) for n in size)
    for i, j, k in itertools.product(*(range(n) for n in pooled.shape[2:])):
        cell = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2]
        torch.testing.assert_close(pooled[:, :, i, j, k], cell.mean((2, 3, 4)))
    y = Nearest()(pooled, x.shape[2:])
    assert y.shape == x.shape
    for i, j, k in itertools.product(*(range(n) for n in size)):
        assert torch.equal(y[..., i, j, k], pooled[..., i // 2, j // 2, k // 2])


@pytest.mark.parametrize("resample", [Pool(), Nearest()])
def test_a_resampling_block_starts_as_its_resampled_shortcut(resample):
    block = ResidualBlock(4, 4, groups=2, resample=resample).double()
    x = normal(1, 4, 4, 4, 4)
    torch.testing.assert_close(block(x), resample(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layers_follow_the_input_dtype(dtype):
    x = normal(1, 4, 3, 4, 5, dtype=dtype)
    block = ResidualBlock(4, 6, embedding=3)
    y = block(x, normal(1, 3, dtype=torch.float32))
    assert y.dtype == dtype
    assert all(p.dtype == torch.float32 for p in block.parameters())
    assert Linear(4, 2)(x.movedim(1, -1)).dtype == dtype


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((1, 3, 5), (1, 2, 2))])
def test_convolution_by_hand(kernel, stride):
    """One output voxel as the sum over its neighbourhood."""
    conv = Conv(2, 3, kernel=kernel, stride=stride)
    x = normal(1, 2, 4, 7, 9)
    y = conv(x)
    assert y.shape[2:] == tuple(-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True))
    at = (1, 1, 2)
    start = [i * s for i, s in zip(at, stride, strict=True)]
    padded = F.pad(x, [p for k in reversed(conv.halo) for p in (k, k)])
    window = padded[0, :, *(slice(i, i + k) for i, k in zip(start, kernel, strict=True))]
    expected = (conv.weight.double() * window).sum((1, 2, 3, 4)) + conv.bias.double()
    torch.testing.assert_close(y[0, :, *at], expected)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 7), (4, 6, 1)])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_up_undoes_the_size_of_down(size, factor):
    x = normal(1, 2, *size)
    small = Down(2, 3, factor=factor)(x)
    assert small.shape[2:] == tuple(-(-n // f) for n, f in zip(size, factor, strict=True))
    up = Up(3, 2, factor=factor)
    y = up(small, size)
    assert y.shape == x.shape
    index = [torch.arange(n) // f for n, f in zip(size, factor, strict=True)]
    values = torch.einsum("oi,bidhw->bodhw", up.conv.weight[:, :, 0, 0, 0].double(), small)
    values = values + up.conv.bias.double()[:, None, None, None]
    expected = values[:, :, index[0]][:, :, :, index[1]][:, :, :, :, index[2]]
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("conv", [Conv, PlaneConv])
def test_halo_is_exact(conv):
    """The output at a voxel depends on inputs up to `halo` away, and on none beyond."""
    block = ResidualBlock(2, 2, norm="voxel", conv=conv)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(normal(*p.shape))
    x = normal(1, 2, 9, 9, 9).requires_grad_()
    block(x)[0, :, 4, 4, 4].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero() - 4
    assert touched.abs().amax(0).tolist() == list(block.halo)


def test_block_starts_as_its_shortcut():
    x, e = normal(2, 4, 3, 4, 5), normal(2, 6)
    assert torch.equal(ResidualBlock(4, 4, embedding=6)(x, e), x)
    block = ResidualBlock(4, 5, embedding=6)
    torch.testing.assert_close(block(x, e), block.shortcut(x))


def test_film_starts_as_the_identity_and_additive_does_not():
    x, e = normal(2, 4, 3, 4, 5), normal(2, 6)
    for mode, same in (("film", True), ("additive", False)):
        block = ResidualBlock(4, 4, embedding=6, mode=mode)
        torch.nn.init.normal_(block.conv2.weight)
        assert torch.allclose(block(x, e), block(x, -3 * e)) is same


def test_even_kernels_and_plane_strides_are_refused():
    with pytest.raises(ValueError, match="odd"):
        Conv(1, 1, kernel=(2, 3, 3))
    with pytest.raises(ValueError, match="through-plane"):
        PlaneConv(1, 1, stride=(2, 2, 2))


def test_plane_convolution_is_two_convolutions():
    layer = PlaneConv(2, 3)
    torch.nn.init.normal_(layer.through_plane.weight)
    x = normal(1, 2, 4, 5, 6)
    weight = torch.einsum(
        "omd,mihw->oidhw",
        layer.through_plane.weight[..., 0, 0].double(),
        layer.in_plane.weight[:, :, 0].double(),
    )
    torch.testing.assert_close(layer(x)[:, :, 1:-1], F.conv3d(x, weight, padding=1)[:, :, 1:-1])


@pytest.mark.parametrize(
    "shape", [(1, 9, 9), (2, 9, 9), (3, 9, 9), (4, 9, 9), (6, 1, 1), (2, 2, 2)]
)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_volumes_have_right_gradients_in_bfloat16(shape, kernel, stride):
    # torch.nn.functional.conv3d alone fails some of these in channels-last layout.
    conv = Conv(8, 8, kernel=(kernel, 3, 3), stride=(stride,) * 3)
    x = torch.randn(1, 8, *shape, generator=torch.Generator().manual_seed(kernel))
    conv(x).square().sum().backward()
    expected, conv.weight.grad = conv.weight.grad, None
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
    thin = x.bfloat16().contiguous(memory_format=torch.channels_last_3d)
    conv(thin).float().square().sum().backward()
    error = (conv.weight.grad - expected).norm() / expected.norm()
    assert float(error) < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_the_normalisation_of_gpus(dtype, last):
    """Its formula, on the CPU: statistics are not rounded, the layout stays."""
    layout = torch.channels_last_3d if last else torch.contiguous_format
    x = (normal(2, 12, 5, 4, 3) + 4).to(dtype).contiguous(memory_format=layout)
    y, mean, inverse = _from_moments(x, 3, 1e-5)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    g = x.double().unflatten(1, (3, 4)).flatten(2)
    tolerance = {"rtol": 1e-4 if dtype != torch.float64 else 1e-12, "atol": 0}
    variance = g.var(2, correction=0)
    torch.testing.assert_close(mean.double(), g.mean(2), **tolerance)
    torch.testing.assert_close(inverse.double(), (variance + 1e-5).rsqrt(), **tolerance)
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(
        y.double(), normalised(x.double(), "group", 3), rtol=step, atol=step
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_group_norm_of_gpus_without_triton(dtype, groups, layout):
    """On a pretend device, which takes the operations of a GPU: forward and backward."""
    module = norm_act("group", groups=groups)
    film = 0.5 * normal(2, 16, seed=3)
    x = (3 + 2 * normal(2, 8, 3, 4, 5)).to(dtype).contiguous(memory_format=layout)
    grad = normal(*x.shape, seed=5)
    exact = x.double().requires_grad_()
    wanted = reference(module, exact, film)
    (of_x,) = torch.autograd.grad(wanted, exact, grad)
    with pretend_cuda.device():
        module.to("cuda")
        there = x.cuda().requires_grad_()
        y = module(there, film.to(torch.promote_types(dtype, torch.float32)).cuda())
        (got,) = torch.autograd.grad(y, there, grad.to(dtype).cuda())
        assert got.stride() == there.stride() == y.stride()
        y, got = y.detach().cpu().double(), got.cpu().double()
        module.to("cpu")
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype]
    for ours, theirs in ((y, wanted.detach()), (got, of_x)):
        assert (ours - theirs).norm() < step * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_slice_of_a_volume_with_channels_last(dtype):
    """Its strides differ from those of a volume of one slice."""
    x = normal(1, 8, 3, 5, 4).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    module = norm_act("slice")
    whole, part = module(x), module(x.narrow(2, 2, 1))
    torch.testing.assert_close(part, whole.narrow(2, 2, 1), rtol=0, atol=0)


class Contracts(TorchDispatchMode):
    """What layer norm's kernels of accelerators take: one dtype for x, gradient and weight.

    PyTorch, aten/src/ATen/native/cuda/layer_norm_kernel.cu, LayerNormBackwardKernelImplInternal:
    `gamma` is read as x is, mean and 1/σ in the accumulation type.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_layer_norm_backward.default:
            grad, x, _, mean, inverse, weight, bias, _ = args
            self.dtypes = {t.dtype for t in (grad, x, weight, bias) if t is not None}
            self.statistics = {mean.dtype, inverse.dtype}
        return func(*args, **(kwargs or {}))


def test_voxel_norm_in_bfloat16_keeps_the_contract_of_gpu_kernels():
    """On `meta`, whose layer norm has the statistics of GPUs: float32, whatever x is."""
    module = norm_act("voxel").to("meta")
    x = torch.empty(1, 8, 3, 5, 4, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with Contracts() as seen:
        module(x).sum().backward()
    assert seen.statistics == {torch.float32}
    assert seen.dtypes == {torch.bfloat16}
