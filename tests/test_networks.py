"""Networks: conditions, sizes, equivariance, the crop gap, inflation."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from volumediff.condition import Condition
from volumediff.config import available, component
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._embedding import fourier
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D, inflate
from volumediff.networks.unet import UNet

T = torch.tensor([0.3])
SMALL = {"blocks": 1, "groups": 2}


def randomised(net, seed=0, std=0.15):
    """Weights as after training: nothing at its zero or identity start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "norm.weight" not in name:
                p.add_(torch.randn(p.shape, generator=generator) * std)
    return net.double()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=available("network"))
def build(request):
    """A constructor of a small network of every file in the family, from what it takes."""
    cls = component("network", request.param)
    takes = set(inspect.signature(cls).parameters)

    def make(*, inputs=2, widths=(4, 8), **options):
        if "widths" in takes:
            sizes = {"widths": widths}
        else:
            width = min(widths, default=4)
            sizes = {"width": width, "multiples": tuple(n // width for n in widths)}
        return cls(inputs, 3, **{k: v for k, v in SMALL.items() if k in takes}, **sizes, **options)

    make.takes = takes
    return make


def test_starts_at_zero_and_is_deterministic(build):
    z = normal(1, 2, 4, 4, 4)
    assert torch.count_nonzero(build()(z, T)) == 0
    net = randomised(build())
    assert torch.equal(net(z, T), net(z, T))


def test_builds_on_meta(build):
    with torch.device("meta"):
        net = build(widths=(32, 64, 128))
    z = torch.empty(1, 2, 64, 64, 64, device="meta")
    assert net(z, T.to("meta")).shape == (1, 3, 64, 64, 64)


@pytest.mark.parametrize("embedding", ["film", "additive"])
def test_conditions_matter_and_null_class_is_the_last(build, embedding):
    ways = {"embedding": embedding} if "embedding" in build.takes else {}
    net = randomised(build(classes=2, scalars=1, **ways))
    z, age = normal(1, 2, 4, 4, 4), normal(1, 1)

    def output(label, t=T, scalars=age):
        label = None if label is None else torch.tensor([label])
        return net(z, t, Condition(label=label, scalars=scalars))

    assert torch.equal(output(None), output(2))
    others = [output(0), output(1), output(2, t=T + 0.1), output(2, scalars=age + 1)]
    for other in others:
        assert (other - output(2)).abs().max() > 1e-3
    assert net.embedding.label.weight.shape[0] == 3


def test_image_and_coordinates_are_concatenated(build):
    """A network with conditions equals one whose state carries them as channels."""
    net = randomised(build(image_channels=2, coordinates=True))
    wide = build(inputs=7).double()
    wide.load_state_dict(net.state_dict())
    z, image, where = normal(1, 2, 3, 4, 5), normal(1, 2, 3, 4, 5, seed=1), normal(1, 3, 3, 4, 5)
    y = net(z, T, Condition(image=image, coordinates=where))
    assert torch.equal(y, wide(torch.cat((z, image, where), 1), T))


def test_missing_or_surplus_conditions_are_named(build):
    z = normal(1, 2, 4, 4, 4)
    image = Condition(image=z)
    for options, condition, words in (
        ({"coordinates": True}, Condition(), "3 channels of Condition.coordinates, got 0"),
        ({"image_channels": 1}, Condition(), "1 channels of Condition.image, got 0"),
        ({"image_channels": 1}, image, "1 channels of Condition.image, got 2"),
        ({}, image, "leave out Condition.image"),
        ({"scalars": 2}, Condition(), "takes 2 scalars per sample, got none"),
        ({}, Condition(label=torch.tensor([0])), "classes=0"),
        ({}, Condition(scalars=normal(1, 1)), "scalars=0"),
    ):
        with pytest.raises(ValueError, match=words):
            build(**options)(z, T, condition)
    # coordinates are data at hand, not a demand
    build()(z, T, Condition(coordinates=normal(1, 3, 4, 4, 4)))


def test_wrong_levels_are_refused(build):
    if "attention_levels" in build.takes:
        with pytest.raises(ValueError, match="attention_levels"):
            build(attention_levels=(2,))
    with pytest.raises(ValueError, match="at least one level"):
        build(widths=())


def test_fourier_features():
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    features = fourier(t, 4)
    angles = torch.tensor([500.0, 500.0 / 100], dtype=torch.float64)
    torch.testing.assert_close(features[0], torch.tensor([1.0, 1.0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(features[1], torch.cat((angles.cos(), angles.sin())))


def test_skip_keeps_the_variance():
    """Two uncorrelated unit signals added with the factor 1/sqrt 2 have unit variance."""
    net = UNet(1, 1, widths=(4,), blocks=1).double()
    seen = []
    net.hourglass.decoder[0][0].register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    net.hourglass.middle[0].register_forward_hook(lambda m, i, o: normal(*o.shape, seed=1))
    net.hourglass.encoder[0][0].register_forward_hook(lambda m, i, o: normal(*o.shape, seed=2))
    net.hourglass.middle[1].register_forward_hook(lambda m, i, o: i[0])
    net(normal(1, 1, 16, 16, 16), T)
    assert seen[0].var().item() == pytest.approx(1, abs=0.03)


# --- crops -------------------------------------------------------------------------------------

# Reach of one output voxel into the input, in voxels, for widths (4, 8), blocks 1, kernel 3:
# full resolution: stem 1, encoder 2, down 1, decoder 2, head 1; half resolution: encoder, two
# middle blocks and decoder with 2 voxels of size 2 each; 1 by the position within a coarse voxel.
REACH = 7 + 2 * 8 + 1


def crop_gap(norm, trained=False):
    """Largest difference, crop against volume, where the zero padding of neither is seen."""
    net = UNet(1, 1, widths=(4, 8), blocks=1, norm=norm)
    z = normal(1, 1, 80, 6, 6)
    # The intensity differs between the regions of a volume, as between brain and background.
    z[:, :, :40] = 0.2 * z[:, :, :40] - 1
    if trained:
        net = net.double()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for i in range(5):
            start = 2 * i
            loss = (net(z[:, :, start : start + 64], T) - z[:, :, start : start + 64]).square()
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    else:
        net = randomised(net)
    with torch.no_grad():
        whole, crop = net(z, T), net(z[:, :, 4:68], T)
    inside = slice(REACH, 64 - REACH)
    scale = whole.std()
    return ((crop[:, :, inside] - whole[:, :, 4:68][:, :, inside]).abs().max() / scale).item()


@pytest.mark.parametrize("trained", [False, True])
def test_voxel_norm_closes_the_gap_between_crop_and_volume(trained):
    assert crop_gap("voxel", trained) < 1e-5
    assert crop_gap("group", trained) > 0.01


def test_voxel_network_is_equivariant_to_shifts_by_its_stride():
    net = randomised(UNet(1, 1, widths=(4, 8), blocks=1, norm="voxel"))
    z = normal(1, 1, 62, 6, 6)
    stride = net.stride[0]
    a, b = net(z[:, :, : 62 - stride], T), net(z[:, :, stride:], T)
    inside = slice(REACH, 60 - REACH - stride)
    moved = slice(REACH + stride, 60 - REACH)
    torch.testing.assert_close(b[:, :, inside], a[:, :, moved], rtol=0, atol=1e-10)
    # by half the stride the coarse grid falls elsewhere
    c = net(z[:, :, 1:-1], T)
    off = slice(REACH + 1, 60 - REACH)
    assert (c[:, :, off.start - 1 : off.stop - 1] - a[:, :, off]).abs().max() > 1e-3


# --- pseudo-3D ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 2, 29])
@pytest.mark.parametrize("norm", ["group", "voxel"])
def test_inflated_network_is_the_2d_network_slice_by_slice(slices, norm):
    options = {"widths": (4, 8), "blocks": 1, "attention_levels": (1,), "norm": norm}
    flat = randomised(Pseudo3D(2, 2, through_plane=False, **options))
    stack = Pseudo3D(2, 2, **options).double()
    stack.load_state_dict(inflate(flat.state_dict()))
    z = normal(1, 2, slices, 6, 5)
    expected = torch.cat([flat(z[:, :, i : i + 1], T) for i in range(slices)], dim=2)
    torch.testing.assert_close(stack(z, T), expected, rtol=0, atol=1e-12)
    # once the through-plane layers have learned something, slices see each other
    randomised(stack)
    y, z2 = stack(z, T), z.clone()
    z2[:, :, 0] += 1
    if slices > 1:
        assert (stack(z2, T)[:, :, 1] - y[:, :, 1]).abs().max() > 1e-3


def test_flat_network_is_a_2d_network():
    """The in-plane layer of one slice is torch's own 2D convolution."""
    stem = Pseudo3D(2, 2, widths=(4,), blocks=1, through_plane=False).hourglass.stem.double()
    z = normal(1, 2, 1, 6, 5)
    weight = stem.in_plane.weight[:, :, 0]
    expected = F.conv2d(z[:, :, 0], weight, stem.in_plane.bias, padding=1)
    torch.testing.assert_close(stem(z)[:, :, 0], expected)


def test_inflate_refuses_what_it_cannot_inflate():
    with pytest.raises(ValueError, match="already"):
        inflate(Pseudo3D(1, 1, widths=(4,), blocks=1).state_dict())
    with pytest.raises(ValueError, match="through_plane=False"):
        inflate(UNet(1, 1, widths=(4,), blocks=1).state_dict())


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (8, 1, 8), (8, 8, 1), (1, 1, 8), (5, 1, 1), (2, 3, 1)]
)
@pytest.mark.parametrize("network", [Guided, UNet, Pseudo3D, MonaiUNet])
def test_thin_volumes_train_in_bfloat16_and_channels_last(network, shape):
    # Shapes with which torch's own bfloat16 kernels refuse, give wrong gradients, or crash.
    generator = torch.Generator().manual_seed(0)
    net = network(2, 2, widths=(8, 16), blocks=1, groups=4)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    z_t, t = torch.randn(2, 2, *shape, generator=generator), torch.tensor([0.3, 0.8])

    def gradients(dtype, channels_last):
        MemoryPolicy(dtype, channels_last, False).apply(net)
        net.zero_grad()
        net(z_t.to(getattr(torch, dtype)), t, Condition()).float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    expected = gradients("float32", False)
    error = (gradients("bfloat16", True) - expected).norm() / expected.norm()
    assert float(error) < 0.1


def test_heads_of_coarser_levels_stand_beside_the_output(build):
    """Every f-th voxel of theirs is the pointwise map of what a level of the decoder ends with."""
    net = build(widths=(4, 8, 8))
    net.deepen(2)
    net = randomised(net)
    z = normal(1, 2, 7, 6, 9)
    y = net(z, T)
    assert y.shape == (1, 9, 7, 6, 9)
    net.eval()
    assert torch.equal(net(z, T), y[:, :3]), "nothing looks at them in inference"
    net.train()
    sides = net.hourglass.sides if hasattr(net, "hourglass") else net.sides
    for level, head in enumerate(sides.heads, start=1):
        d, h, w = (f**level for f in net.anatomy.factor)
        coarse = y[:, 3 * level : 3 * level + 3, ::d, ::h, ::w]
        grown = F.interpolate(coarse, scale_factor=[float(d), float(h), float(w)])
        assert torch.equal(grown[:, :, :7, :6, :9], y[:, 3 * level : 3 * level + 3])
        with torch.no_grad():
            head.bias += 1
        changed = net(z, T)
        assert torch.allclose(changed[:, 3 * level : 3 * level + 3], grown[..., :7, :6, :9] + 1)
        assert torch.equal(changed[:, :3], y[:, :3])
        y = changed
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"expected 1 to 2 heads .* got {count}"):
            net.deepen(count)


@pytest.mark.parametrize("policy", [{"slab": 2}, {"checkpoint": True}, {"offload": True}])
def test_heads_of_coarser_levels_in_slabs(build, policy):
    net = build(widths=(4, 8, 8))
    net.deepen(2)
    net = randomised(net)
    z = normal(1, 2, 8, 6, 7)
    results = []
    for each in (MemoryPolicy(), MemoryPolicy(**policy)):
        each.apply(net)
        net.zero_grad()
        y = net(z, T)
        y.square().sum().backward()
        features = net.features(z, T)
        results.append([y, features, *(p.grad for p in net.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_the_deepest_features_are_what_the_decoder_begins_with(build):
    net = randomised(build(widths=(4, 8, 8)))
    z = normal(1, 2, 8, 4, 8)
    f = net.features(z, T)
    anatomy, (d, h, w) = net.anatomy, net.stride
    assert f.shape == (1, anatomy.channels, 8 // d, 4 // h, 8 // w)
    f.square().sum().backward()
    reached = {p for p in net.parameters() if p.grad is not None}
    assert reached == {p for part in anatomy.descent for p in part.parameters()}
