"""The contract of every state space, found in the folder, and what is special to each."""

import inspect
import typing

import pytest
import torch
from torch import nn

from volumediff import config
from volumediff.autoencoders import Autoencoder
from volumediff.autoencoders.binary import Binary
from volumediff.autoencoders.kl import KL
from volumediff.autoencoders.vq import VQ
from volumediff.spaces import StateSpace
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

CHANNELS = 2
# even, odd, deeper than high, one slice, 29 slices, smaller than every stride
SHAPES = [(8, 4, 12), (5, 7, 3), (20, 4, 6), (1, 9, 6), (29, 6, 4), (1, 1, 1)]


def randomised(module: nn.Module) -> nn.Module:
    """Weights without zeros, so that dependence shows; fresh blocks are identities."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise, alpha=0.3 / max(1, parameter[0].numel()) ** 0.5)
    return module


def autoencoder(cls=KL, **options) -> Autoencoder:
    options = {"widths": (4, 8), "strides": ((2, 2, 2),), "blocks": 1, "norm": "voxel"} | options
    return randomised(cls(CHANNELS, latent_channels=3, **options))


PLANAR = {"strides": ((1, 2, 2),), "planar": True}
# These encoders see 10 voxels to each side where they halve (conv 1, block 2, down 1, and block 2
# and conv 1 on the coarse grid): five latent voxels; and 6 along an axis that keeps its size.
REACH = 6

VARIANTS = {
    "wavelet": [
        {"wavelet": "db2"},
        {"levels": 2},
        {"wavelet": "coif1", "axes": "hw"},
        {"axes": "d", "levels": 2},
    ],
    "latent": [
        {"autoencoder": lambda: autoencoder(), "reach": REACH},
        {"autoencoder": lambda: autoencoder(VQ, codes=16), "reach": REACH},
        {"autoencoder": lambda: autoencoder(strides=((1, 2, 2),)), "reach": REACH},
        {"autoencoder": lambda: autoencoder(**PLANAR), "reach": REACH},
    ],
    "slices": [
        {"inner": Voxel, "axis": "h"},
        {"inner": lambda: Wavelet(axes="hw"), "axis": "w"},
        {"inner": lambda: Wavelet("db2", 2, "w"), "axis": "d"},
        {"inner": lambda: Latent(autoencoder(**PLANAR), reach=REACH), "axis": "h"},
    ],
}


def example(cls: type) -> dict:
    """Arguments that a constructor requires."""
    hints = typing.get_type_hints(cls.__init__)
    made = {StateSpace: Voxel, Autoencoder: autoencoder}
    required = inspect.signature(cls).parameters.values()
    arguments = {p.name: made[hints[p.name]] for p in required if p.default is p.empty}
    return arguments | ({"reach": REACH} if "reach" in hints else {})


def cases() -> dict[str, tuple[type, dict]]:
    found = {}
    for name in config.available("space"):
        cls = config.component("space", name)
        for i, arguments in enumerate([example(cls), *VARIANTS.get(name, [])]):
            found[f"{name}-{i}"] = cls, arguments
    return found


CASES = cases()


def build(case: str) -> StateSpace:
    cls, arguments = CASES[case]
    return cls(**{k: v() if callable(v) else v for k, v in arguments.items()}).double()


@pytest.fixture(params=CASES)
def space(request) -> StateSpace:
    return build(request.param)


def volumes(*shape: int, number: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, CHANNELS, *shape, generator=generator, dtype=torch.float64)
    # channels of different mean and spread, so that normalization has something to do
    return x * torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1) + 1


# --- every space ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(space, shape):
    space.fit([volumes(*shape, seed=3), volumes(*shape, seed=4)])
    x = volumes(*shape)
    z = space.encode(x)
    assert z.shape == (2, space.channels(CHANNELS), *space.grid(shape))
    x_hat = space.decode(z, shape)
    assert x_hat.shape == x.shape
    if space.exact:
        torch.testing.assert_close(x_hat, x, rtol=1e-12, atol=1e-12)
        x = x.float()
        torch.testing.assert_close(space.decode(space.encode(x), shape), x, rtol=1e-6, atol=1e-5)


def test_decode_alone_gives_the_padded_volume(space):
    x = volumes(5, 7, 3)
    x_hat = space.decode(space.encode(x))
    assert x_hat.shape[2:] == space.padded((5, 7, 3))
    if space.exact:
        torch.testing.assert_close(x_hat[:, :, :5, :7, :3], x, rtol=1e-12, atol=1e-12)


def test_unit_variance_after_fit(space):
    data = [volumes(8, 4, 12, seed=i, number=1 + i) for i in range(3)]
    space.fit(iter(data))
    z = torch.cat([space.encode(x) for x in data])
    # shift and scale are stored in float64 here; float32 in use, which rounds by 1e-7
    ones = torch.ones(z.shape[1], dtype=z.dtype)
    torch.testing.assert_close(z.var((0, 2, 3, 4), correction=0), ones, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), 0 * ones, rtol=0, atol=1e-6)


def test_fit_survives_a_large_mean():
    # 1e4 with deviation 1e-2: sums of float32 squares would lose it altogether
    space = Voxel()
    x = 1e4 + 1e-2 * torch.randn(4, 1, 8, 8, 8, dtype=torch.float64)
    space.fit(x.split(1))
    assert float(space.scale) == pytest.approx(float(x.std(correction=0)), rel=1e-6)


def test_normalisation_is_saved(request):
    for case in CASES:
        fitted, fresh = build(case), build(case)
        fitted.fit([volumes(8, 4, 12)])
        fresh.load_state_dict(fitted.state_dict())
        x = volumes(4, 4, 4, seed=5)
        assert torch.equal(fresh.encode(x), fitted.encode(x)), case


def test_isometry(space):
    # |A x| = |x| and <A x, A y> = <x, y>: a rescaled transform with the matching inverse, which
    # makes a perfect round trip, fails here
    if not space.exact:
        pytest.skip("a learned code is no isometry")
    x, y = volumes(8, 4, 12), volumes(8, 4, 12, seed=1)
    a, b = space.analysis(x), space.analysis(y)
    torch.testing.assert_close(a.square().sum(), x.square().sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close((a * b).sum(), (x * y).sum(), rtol=1e-10, atol=0)


def test_noise_is_white(space):
    # The map on all basis fields is a matrix N; white noise needs N N^T = 1 exactly.
    shape = (4, 4, 8)
    size = CHANNELS * 4 * 4 * 8
    basis = torch.eye(size, dtype=torch.float64).view(size, CHANNELS, *shape)
    rows = space.noise(basis).flatten(1).T
    torch.testing.assert_close(
        rows @ rows.T, torch.eye(rows.shape[0], dtype=torch.float64), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_drawn_on_the_padded_volume(space, shape):
    padded = space.padded(shape)
    assert space.grid(padded) == space.grid(shape)
    assert space.noise(volumes(*padded)).shape == space.encode(volumes(*shape)).shape
    if padded != shape:
        with pytest.raises(ValueError, match=r"multiples of .* draw it on space.padded"):
            space.noise(volumes(*shape))


def test_noise_of_a_sample_does_not_depend_on_its_batch(space):
    field = volumes(8, 4, 4, number=3)
    together = space.noise(field)
    for i in range(3):
        torch.testing.assert_close(space.noise(field[i : i + 1])[0], together[i])
    assert torch.equal(space.noise(field), together)


@pytest.mark.parametrize("case", ["voxel-0", "wavelet-0", "wavelet-2", "wavelet-4", "latent-0"])
def test_noise_of_a_crop_is_a_crop_of_the_noise(case):
    # Haar and latent cells are disjoint, so that fields drawn for the full volume can be sliced.
    space, field = build(case), volumes(16, 8, 12)
    s0, _, s2 = space.stride
    whole = space.noise(field)
    part = space.noise(field[:, :, 4:12, :, 8:])
    torch.testing.assert_close(part, whole[:, :, 4 // s0 : 12 // s0, :, 8 // s2 :])


@pytest.mark.parametrize("shape", [(32, 4, 6), (5, 6, 4), (4, 5, 30)])
def test_mask_covers_every_state_voxel_that_depends_on_it(space, shape):
    x = volumes(*shape, number=1)
    z = space.encode(x)
    generator = torch.Generator().manual_seed(0)
    corners = [(0, 0, 0), tuple(n - 1 for n in shape)]
    places = [
        tuple(int(torch.randint(n, (), generator=generator)) for n in shape) for _ in range(10)
    ]
    for place in corners + places:
        m = torch.zeros(1, 1, *shape, dtype=torch.float64)
        m[:, :, *place] = 0.3
        perturbed = x.clone()
        perturbed[:, :, *place] += torch.tensor([0.7, -1.1], dtype=torch.float64)
        changed = (space.encode(perturbed) - z).abs().amax(1, keepdim=True) > 1e-9
        mask = space.mask(m)
        assert mask.shape == (1, 1, *space.grid(shape))
        assert set(mask.unique().tolist()) <= {0.0, 0.3}
        assert not (changed & (mask == 0)).any()
        if space.exact:
            # and no more than these: every coefficient of the mask changes
            assert torch.equal(changed, mask > 0)


def test_mask_is_the_maximum(space):
    shape = (8, 4, 12)
    ones = torch.ones(1, 1, *shape)
    assert torch.equal(space.mask(ones), torch.ones(1, 1, *space.grid(shape)))
    assert not space.mask(0 * ones).any()
    a, b = torch.rand(2, 1, 1, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        space.mask(torch.maximum(a, b)), torch.maximum(space.mask(a), space.mask(b))
    )


def test_bfloat16(space):
    space = space.float()
    x = volumes(8, 4, 12).float()
    space.fit([x])
    exact = space.encode(x)
    z = space.encode(x.bfloat16())
    x_hat = space.decode(z, (8, 4, 12))
    noise = space.noise(x.bfloat16())
    assert z.dtype == x_hat.dtype == noise.dtype == torch.bfloat16
    # 8 bits of mantissa; an untrained network passes through half a dozen layers of rounding
    error = (z.float() - exact).square().mean().sqrt()
    assert error < (0.01 if space.exact else 0.06)


def test_gradients_reach_the_state(space):
    z = space.encode(volumes(4, 4, 4)).requires_grad_()
    (gradient,) = torch.autograd.grad(space.decode(z).square().sum(), z)
    assert gradient.abs().amax((2, 3, 4)).min() > 0


@pytest.mark.parametrize("case", CASES)
def test_builds_on_the_meta_device(case):
    expected = build(case).grid((5, 6, 29))
    cls, arguments = CASES[case]
    with torch.device("meta"):
        space = cls(**{k: v() if callable(v) else v for k, v in arguments.items()})
    assert space.encode(torch.empty(1, CHANNELS, 5, 6, 29, device="meta")).shape[2:] == expected
    assert space.grid((5, 6, 29)) == expected


# --- errors -----------------------------------------------------------------------------------


def test_fit_says_what_is_wrong():
    with pytest.raises(ValueError, match="at least one volume, got none"):
        Voxel().fit([])
    with pytest.raises(ValueError, match="not finite"):
        Voxel().fit([torch.full((1, 1, 2, 2, 2), torch.nan)])
    with pytest.raises(ValueError, match="constant volumes only"):
        Voxel().fit([torch.ones(1, 1, 2, 2, 2)])


def test_images_with_other_channels_take_the_statistics_of_their_band():
    # fitted on channels with deviation 1 and 3: an image condition is scaled by their mean, 2
    x = torch.randn(8, 2, 4, 4, 4) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    space = Wavelet()
    space.fit([x])
    bands = space.scale.view(8, 2)
    image = torch.randn(1, 3, 4, 4, 4)
    z = space.encode(image)
    expected = space.analysis(image).unflatten(1, (8, 3))
    expected = expected - space.shift.view(8, 2).mean(1).view(1, 8, 1, 1, 1, 1)
    expected = expected / bands.mean(1).view(1, 8, 1, 1, 1, 1)
    torch.testing.assert_close(z, expected.flatten(1, 2))
    torch.testing.assert_close(space.decode(z), image)


def test_details_of_a_single_slice_keep_their_scale():
    # one slice is repeated: its details through the plane are zero, and must not be blown up
    space = Wavelet()
    space.fit([torch.randn(1, 1, 1, 8, 8) for _ in range(3)])
    assert torch.equal(space.scale[4:], torch.ones(4))
    assert (space.scale[:4] != 1).all()


# --- latent -----------------------------------------------------------------------------------


def test_latents_are_never_clipped():
    space = Latent(autoencoder()).double()
    space.fit([volumes(8, 8, 8)])
    z = 3 * torch.randn(1, 3, 4, 4, 4, dtype=torch.float64)
    raw = z * space.scale.view(1, -1, 1, 1, 1) + space.shift.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(space.decode(z), space.autoencoder.decode(raw))
    assert z.abs().max() > 6


def test_bits_stay_bits():
    space = Latent(autoencoder(Binary)).double()
    assert space.binary
    assert not Latent(autoencoder()).binary
    x = volumes(8, 8, 8)
    z = space.encode(x)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(space.decode(z), space.autoencoder.decode(z), rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected states with a scale, got bits"):
        space.fit([x])
    planar = Latent(autoencoder(Binary, **PLANAR))
    assert Slices(planar).binary


def test_the_autoencoder_is_frozen():
    model = autoencoder()
    space = Latent(model, digest="abc")
    assert not any(p.requires_grad for p in space.parameters())
    assert not model.training
    assert space.digest == "abc"
    x = torch.randn(1, CHANNELS, 4, 4, 4, requires_grad=True)
    assert not space.encode(x).requires_grad


def test_coarse_noise_stays_coarse_in_latents():
    # a constant field is the first row of every channel: sqrt(cell) times the mean, nothing else
    space = Latent(autoencoder())
    z = space.noise(
        torch.ones(1, CHANNELS, 4, 4, 4)
    )  # the mean rows of both channels, then others
    torch.testing.assert_close(z[:, :2], torch.full_like(z[:, :2], 8**0.5))
    torch.testing.assert_close(z[:, 2:], torch.zeros_like(z[:, 2:]), rtol=0, atol=1e-6)


def test_default_reach_holds_nearly_all_of_the_effect():
    # group normalization couples everything a little; random weights gave 0.98 to 0.99
    space = Latent(autoencoder(norm="group"))
    x = volumes(24, 24, 24, number=1).float()
    m = torch.zeros(1, 1, 24, 24, 24)
    m[:, :, 8:12, 8:12, 8:12] = 1
    energy = (space.encode(x + m) - space.encode(x)).square().sum(1, keepdim=True)
    assert (energy * space.mask(m)).sum() > 0.94 * energy.sum()


def test_latent_errors():
    with pytest.raises(ValueError, match="at most 8 latent channels"):
        Latent(KL(1, latent_channels=9, widths=(4, 4), strides=((2, 2, 2),)))
    with pytest.raises(ValueError, match="at least 1 latent voxel, got 0"):
        Latent(autoencoder(), reach=0)
    with pytest.raises(ValueError, match="trained on 2 channels, got 1"):
        Latent(autoencoder()).channels(1)


# --- slices -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "number"), [("d", 2), ("h", 3), ("w", 4)])
def test_slices_come_first(axis, number):
    x = volumes(3, 5, 4)
    z = Slices(Voxel(), axis).encode(x)
    assert torch.equal(z[:, :, 2], x.select(number, 2))


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("slices")])
def test_slices_are_independent(case):
    space, x = build(case), volumes(6, 6, 6)
    axis = {"d": 2, "h": 3, "w": 4}[CASES[case][1].get("axis", "w")]
    changed = x.clone()
    changed.select(axis, 3).add_(1)
    difference = (space.encode(changed) - space.encode(x)).abs().amax((0, 1, 3, 4))
    assert (difference > 0).tolist() == [i == 3 for i in range(6)]


@pytest.mark.parametrize(
    "inner",
    [
        lambda: Wavelet(),
        lambda: Latent(autoencoder()),
        lambda: Latent(autoencoder(strides=((1, 2, 2),))),
    ],
)
def test_slices_refuse_an_inner_space_that_mixes_them(inner):
    with pytest.raises(ValueError, match="use voxel, wavelet with axes: hw, or the latent of a"):
        Slices(inner())
