"""Autoencoders learn, their terms equal closed forms, and each player trains itself alone."""

import inspect

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from volumediff import config
from volumediff.autoencoders import Autoencoder
from volumediff.autoencoders._patchgan import PatchGAN, discriminator_loss, generator_loss
from volumediff.autoencoders._quantised import Codebook, nearest
from volumediff.autoencoders.binary import Binary
from volumediff.autoencoders.kl import KL
from volumediff.autoencoders.vq import VQ

SMALL = {"latent_channels": 3, "widths": (8, 16), "strides": ((2, 2, 2),), "blocks": 1}
# What SMALL leaves open, for autoencoders that take it.
OTHERS = {
    "groups": 4,
    "codes": 64,
    "shape": (8, 8, 8),
    "downsample": (2, 2, 2),
    "squeeze": 4,
    "width": 16,
    "heads": 2,
}
SHAPES = [(8, 4, 12), (5, 7, 3), (1, 9, 6), (29, 4, 4), (1, 1, 1)]


def takes(cls: type, argument: str) -> bool:
    return argument in inspect.signature(cls).parameters


def small(cls: type, channels: int = 1, **options):
    """A small autoencoder of any architecture: of SMALL and OTHERS, what it takes."""
    common = {k: v for k, v in (SMALL | OTHERS).items() if takes(cls, k)}
    if takes(cls, "autoencoder"):
        common["autoencoder"] = small(VQ, channels)
    return cls(channels, **(common | options))


ALL = [config.component("autoencoder", name) for name in config.available("autoencoder")]
CLASSES = [c for c in ALL if issubclass(c, Autoencoder)]


@pytest.fixture(params=CLASSES)
def cls(request) -> type:
    return request.param


@pytest.fixture(params=ALL)
def any_cls(request) -> type:
    """Any reconstructor, with or without a latent grid."""
    return request.param


@pytest.fixture(params=[c for c in CLASSES if takes(c, "strides")])
def strided(request) -> type:
    """An autoencoder with the package's own codec."""
    return request.param


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(module):
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def smooth_volumes(number: int, size: int) -> torch.Tensor:
    x = torch.randn(number, 1, size // 4, size // 4, size // 4)
    return torch.tanh(2 * torch.nn.functional.interpolate(x, size=[size] * 3, mode="trilinear"))


# --- every autoencoder ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"strides": ((1, 2, 2),), "planar": True}])
def test_any_size(cls, shape, options):
    if not all(takes(cls, name) for name in options):
        pytest.skip("one stride for all axes")
    model = small(cls, 2, **options)
    x = torch.randn(2, 2, *shape)
    z = model.encode(x)
    grid = tuple(-(-n // s) for n, s in zip(shape, model.stride, strict=True))
    assert z.shape == (2, 3, *grid)
    assert model.decode(z, shape).shape == x.shape
    # padding repeats planes, so that the padded volume has the same code
    pads = [g * s - n for g, s, n in zip(grid, model.stride, shape, strict=True)]
    widths = [n for pad in reversed(pads) for n in (0, pad)]
    padded = torch.nn.functional.pad(x, widths, mode="replicate")
    torch.testing.assert_close(model.encode(padded), z)
    assert torch.isfinite(model.loss("autoencoder", x, generator=generator())["loss"])


def test_strides_are_per_axis(strided):
    model = strided(1, **(SMALL | {"widths": (4, 4, 4), "strides": ((1, 2, 2), (2, 2, 1))}))
    assert model.stride == (2, 4, 2)
    assert model.encode(torch.randn(1, 1, 4, 8, 6)).shape == (1, 3, 2, 2, 3)


def test_overfits_a_small_batch(cls):
    x = smooth_volumes(2, 8)
    model = small(cls)
    optimizer = torch.optim.Adam(model.players["autoencoder"].parameters(), lr=5e-3)
    losses = []
    for step in range(120):
        parts = model.loss("autoencoder", x, generator=generator(step))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(float(parts["l1"]))
    assert sum(losses[-5:]) / 5 < losses[0] / 4
    with torch.no_grad():
        error = (model.decode(model.encode(x)) - x).abs().mean()
    assert error < losses[0] / 4


def test_voxel_normalisation_makes_crops_exact(strided):
    options = SMALL | {"norm": "voxel"}
    model = randomised(strided(1, **options))
    x = torch.randn(1, 1, 40, 4, 4)
    whole, part = model.encode(x), model.encode(x[:, :, :32])
    # the encoder sees 10 voxels: 5 latent voxels next to the cut may differ
    torch.testing.assert_close(part[:, :, :11], whole[:, :, :11])
    assert not torch.allclose(part[:, :, 15], whole[:, :, 15])


def test_planar_slices_are_coded_apart(strided):
    model = randomised(strided(1, **(SMALL | {"strides": ((1, 2, 2),), "planar": True})))
    x = torch.randn(2, 1, 5, 6, 8)
    z = model.encode(x)
    x_hat = model.decode(z)
    for i in range(5):
        torch.testing.assert_close(model.encode(x[:, :, i : i + 1]), z[:, :, i : i + 1])
        torch.testing.assert_close(model.decode(z[:, :, i : i + 1]), x_hat[:, :, i : i + 1])


def test_bfloat16_follows_float32(cls):
    model = small(cls)
    x = smooth_volumes(1, 8)
    exact = model.encode(x)
    z = model.encode(x.bfloat16())
    assert z.dtype == torch.bfloat16
    assert (z.float() - exact).square().mean() < 1e-3 * exact.square().mean()
    parts = model.loss("autoencoder", x.bfloat16(), generator=generator())
    parts["loss"].backward()
    assert parts["loss"].dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_wrong_arguments(strided):
    with pytest.raises(ValueError, match="one triple of 1 or 2 between each two of the 2 widths"):
        strided(1, widths=(4, 8), strides=())
    with pytest.raises(ValueError, match=r"1 or 2 .* got \(\(3, 2, 2\),\)"):
        strided(1, widths=(4, 8), strides=((3, 2, 2),))
    with pytest.raises(ValueError, match="planar autoencoder has strides"):
        strided(1, widths=(4, 8), strides=((2, 2, 2),), planar=True)
    model = strided(1, **SMALL)
    with pytest.raises(ValueError, match="player must be one of autoencoder, got 'discriminator'"):
        model.loss("discriminator", torch.zeros(1, 1, 4, 4, 4), generator=generator())


def test_configuration_builds_it(strided):
    name = strided.__name__.lower()
    spec = {"name": name, "widths": [4, 8, 8], "strides": [[1, 2, 2], [2, 2, 2]], "norm": "voxel"}
    model = config.build("autoencoder", spec, channels=2)
    assert model.stride == (2, 4, 4)
    assert model.channels == 2


# --- players ----------------------------------------------------------------------------------


def test_any_reconstructor_keeps_size_and_type_and_draws_nothing(any_cls):
    model = randomised(small(any_cls, 2)).eval()
    for shape in SHAPES:
        x = torch.randn(2, 2, *shape).bfloat16()
        if takes(any_cls, "autoencoder") and shape != (5, 7, 3):
            continue  # its tokens are those of one size
        x_hat = model.reconstruct(x)
        assert x_hat.shape == x.shape
        assert x_hat.dtype == x.dtype
        assert torch.equal(model.reconstruct(x), x_hat)
        assert torch.isfinite(x_hat).all()


def test_players_share_no_parameters_and_cover_all(any_cls):
    options = {"adversarial": 0.1} if takes(any_cls, "adversarial") else {}
    model = small(any_cls, **options)
    parts = model.players.values()
    names = [id(p) for part in parts for p in part.parameters() if p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(set(names)) == len(names) == len(trained)


def test_adversarial_gradient_is_the_one_through_the_discriminator():
    # d loss / d x_hat of the adversarial part, against autograd through the unfrozen discriminator
    model = KL(1, **SMALL, weight=0.0, adversarial=2.0)
    x = torch.randn(1, 1, 4, 4, 4)
    parts = model.loss("autoencoder", x, generator=generator())
    fake, _, _ = model._reconstruct(x, generator())
    expected = (fake - x).abs().mean() - 2 * model.discriminator(fake).mean()
    last = model.codec["decoder"][-1].weight
    got = torch.autograd.grad(parts["loss"], last)
    torch.testing.assert_close(got, torch.autograd.grad(expected, last))
    torch.testing.assert_close(parts["loss"], expected)


def test_hinge_losses_by_hand():
    real = torch.tensor([2.0, 0.5, -1.0]).view(1, 1, 3, 1, 1)
    fake = torch.tensor([-2.0, -0.5, 1.0]).view(1, 1, 3, 1, 1)
    # (0 + .5 + 2) / 3 for each of the two
    assert float(discriminator_loss(real, fake)) == pytest.approx(5 / 3)
    assert float(generator_loss(fake)) == pytest.approx(0.5)


def test_discriminator_learns_texture():
    # same mean and variance, white against smooth: separable by texture alone
    smooth = smooth_volumes(4, 16)
    white = torch.randn_like(smooth) * smooth.std()
    discriminator = PatchGAN(1, widths=(8, 16))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
    for _ in range(40):
        loss = discriminator_loss(discriminator(smooth), discriminator(white))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    test = smooth_volumes(2, 16)
    assert discriminator(test).mean() > 0.5 > -0.5 > discriminator(torch.randn_like(test)).mean()


# --- KL ---------------------------------------------------------------------------------------


def test_divergence_equals_torch_distributions():
    model = KL(1, **SMALL, weight=0.5)
    features = torch.randn(2, 6, 3, 2, 4)
    mean, log_variance = features.chunk(2, dim=1)
    z, penalty, parts = model.bottleneck(features, generator())
    q = Normal(mean, torch.exp(log_variance / 2))
    expected = kl_divergence(q, Normal(torch.zeros(()), torch.ones(()))).mean()
    torch.testing.assert_close(parts["kl"], expected)
    torch.testing.assert_close(penalty, 0.5 * expected)
    torch.testing.assert_close(z, mean + q.scale * torch.randn(mean.shape, generator=generator()))
    assert torch.equal(model.code(features), mean)


def test_sample_has_the_posterior_moments():
    model = KL(1, **SMALL)
    features = torch.cat(
        [torch.full((1, 3, 32, 32, 32), 2.0), torch.full((1, 3, 32, 32, 32), 1.0)], 1
    )
    z, _, _ = model.bottleneck(features, generator())
    assert float(z.mean()) == pytest.approx(2.0, abs=0.03)
    assert float(z.var()) == pytest.approx(torch.e, rel=0.02)


def test_extreme_variances_stay_finite():
    features = torch.cat(
        [torch.zeros(1, 3, 1, 1, 2), torch.tensor([-1e4, 1e4]).expand(1, 3, 1, 1, 2)], 1
    )
    z, penalty, _ = KL(1, **SMALL).bottleneck(features, generator())
    assert torch.isfinite(z).all()
    assert torch.isfinite(penalty)


def test_number_of_generators_is_checked():
    with pytest.raises(ValueError, match="expected 2 generators, one per sample, got 1"):
        KL(1, **SMALL).bottleneck(torch.zeros(2, 6, 1, 1, 1), [generator()])


# --- binary -----------------------------------------------------------------------------------


def test_bits_are_drawn_with_the_probabilities_of_the_encoder():
    model = Binary(1, **SMALL, weight=2.0)
    logits = torch.tensor([-40.0, -1.0, 0.0, 2.0, 40.0]).double()
    features = logits.float().view(1, 5, 1, 1, 1).expand(1, 5, 20, 40, 40)
    z, penalty, parts = model.bottleneck(features, generator())
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    p = torch.sigmoid(logits)
    torch.testing.assert_close((z > 0).double().mean((0, 2, 3, 4)), p, rtol=0, atol=0.01)
    doubt = (p * (1 - p)).mean()
    torch.testing.assert_close(parts["doubt"].double(), doubt, rtol=1e-5, atol=0)
    torch.testing.assert_close(penalty.double(), 2 * doubt, rtol=1e-5, atol=0)
    # certain bits are never drawn wrong
    assert float(z[:, 0].max()) == -1
    assert float(z[:, 4].min()) == 1


def test_gradients_of_bits_are_those_of_their_mean():
    model, features = Binary(1, **SMALL), torch.randn(1, 3, 2, 2, 2).requires_grad_()
    z, _, _ = model.bottleneck(features, generator())
    weight = torch.randn(z.shape)
    (got,) = torch.autograd.grad((weight * z).sum(), features)
    p = torch.sigmoid(features.detach())
    torch.testing.assert_close(got, 2 * weight * p * (1 - p))


def test_latents_are_the_likelier_bits_and_decoding_takes_the_nearest():
    model, features = Binary(1, **SMALL), torch.randn(1, 3, 2, 2, 2)
    z = model.code(features)
    assert torch.equal(z, features.sign())
    soft = (0.3 * z).requires_grad_()
    torch.testing.assert_close(model.decode(soft), model.decode(z), rtol=0, atol=0)
    (slope,) = torch.autograd.grad(model.restore(soft).sum(), soft)
    assert torch.equal(slope, torch.ones_like(slope)), "guidance passes through"


# --- VQ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1, 37, 500, 2**22])
def test_chunked_search_equals_brute_force(entries):
    z, codes = torch.randn(257, 5, dtype=torch.float64), torch.randn(33, 5, dtype=torch.float64)
    expected = (z[:, None] - codes[None]).square().sum(-1).argmin(1)
    assert torch.equal(nearest(z, codes, entries=entries), expected)


class Largest(TorchDispatchMode):
    """The most elements that any result has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, list | tuple) else [out]
        sizes = [t.numel() for t in tensors if isinstance(t, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return out


def test_search_never_makes_the_whole_distance_matrix():
    z, codes = torch.randn(4096, 4), torch.randn(512, 4)
    with Largest() as largest:
        nearest(z, codes, entries=2**14)
    assert largest.numel == 2**14
    with Largest() as largest:
        nearest(z, codes)
    assert largest.numel == 4096 * 512, "the measurement sees the matrix where it is allowed"


def test_gradients_pass_straight_through():
    model = VQ(1, **SMALL, codes=16)
    features = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    z, penalty, parts = model.bottleneck(features, generator())
    weight = torch.randn_like(z)
    codes = model.codec["codebook"].vectors
    rows = features.detach().movedim(1, -1)
    index = torch.cdist(rows.reshape(-1, 3), codes.detach()).argmin(1)
    e = codes.detach()[index].view(rows.shape).movedim(-1, 1)
    torch.testing.assert_close(z, e)
    (passed,) = torch.autograd.grad((z * weight).sum(), features, retain_graph=True)
    torch.testing.assert_close(passed, weight)
    # penalty = |sg(z) - e|^2 + 1/4 |z - sg(e)|^2: the latent feels a quarter of the codes' pull
    pull, push = torch.autograd.grad(penalty, (features, codes))
    torch.testing.assert_close(pull, 0.25 * 2 * (features.detach() - e) / e.numel())
    expected = torch.zeros_like(codes)
    expected.index_add_(0, index, 2 * (e - features.detach()).movedim(1, -1).reshape(-1, 3))
    torch.testing.assert_close(push, expected / e.numel())
    torch.testing.assert_close(parts["quantisation"], (features.detach() - e).square().mean())


def test_a_latent_is_quantised_when_decoded():
    model = VQ(1, **SMALL, codes=16)
    z = torch.randn(1, 3, 2, 2, 2)
    e, _ = model.codec["codebook"](z)
    torch.testing.assert_close(model.decode(z), model.decode(e))
    assert not torch.allclose(model.restore(z), z)
    torch.testing.assert_close(model.restore(e), e)


def alone(sums):
    """The sum over one process."""
    return sums


def test_dead_codes_come_back():
    # 63 of 64 codes start far away; splitting a popular code brings them to the data in rounds
    codebook = Codebook(64, 2, patience=3)
    with torch.no_grad():
        codebook.vectors[1:] += 100
    optimizer = torch.optim.Adam([codebook.vectors], lr=1e-2)
    z = torch.rand(1, 2, 8, 8, 8)
    used = []
    for _ in range(60):
        e, index = codebook(z)
        error = (z - e).square().mean()
        codebook.record(index, error.detach())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        codebook.stepped(alone)
        used.append(len(index.unique()))
    assert used[0] == 1
    assert used[-1] >= 48
    # 64 codes on a unit square: cells of side 1/8 have a mean squared error of 1/6 * 1/64 per axis
    assert float(error.detach()) < 3 * (1 / 8) ** 2 / 12


def test_training_revives_codes():
    model = VQ(1, **SMALL, codes=16, patience=2)
    vectors = model.codec["codebook"].vectors
    with torch.no_grad():
        vectors[1:] += 100
    x = torch.randn(1, 1, 8, 8, 8)
    used = []
    for _ in range(5):
        used.append(float(model.loss("autoencoder", x, generator=generator())["codes"]))
        model.stepped(alone)
    assert used[:2] == [1.0, 1.0]
    assert used[-1] > 4
    assert vectors.detach().abs().max() < 10


def test_samples_count_as_one_batch_in_one_process_and_in_two():
    index, error = torch.arange(12) % 5, torch.tensor(2.0)
    whole, one, other, two = (Codebook(8, 2, patience=3) for _ in range(4))
    whole.record(index, error)
    whole.stepped(alone)
    # the last four latents are of another sample, with another error: (8 * 1 + 4 * 4) / 12 = 2
    samples = (index[:8], torch.tensor(1.0)), (index[8:], torch.tensor(4.0))
    for sample in samples:
        one.record(*sample)
    one.stepped(alone)
    sums = []
    other.record(*samples[1])
    other.stepped(lambda s: sums.append(s) or s)
    two.record(*samples[0])
    two.stepped(lambda s: s + sums[0])
    for name, value in whole.named_buffers():
        torch.testing.assert_close(one.get_buffer(name), value, msg=name)
        torch.testing.assert_close(two.get_buffer(name), value, msg=name)


def test_codes_in_use_stay():
    codebook = Codebook(8, 2, patience=2)
    before = codebook.vectors.detach().clone()
    for _ in range(5):
        codebook.record(torch.arange(8), torch.tensor(1.0))
        codebook.stepped(alone)
    assert torch.equal(codebook.vectors, before)


def test_evaluation_leaves_the_codebook_alone():
    model = VQ(1, **SMALL, codes=16, patience=1)
    x = torch.randn(1, 1, 4, 4, 4)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.eval().loss("autoencoder", x, generator=generator())
    with torch.no_grad():
        model.train().loss("autoencoder", x, generator=generator())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    model.loss("autoencoder", x, generator=generator())
    model.stepped(alone)
    assert model.codec["codebook"].use.any()


def test_training_steps_repeat_exactly():
    # revival included: it is keyed, and its counts belong to the state dict
    def train(model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in steps:
            optimizer.zero_grad()
            x = torch.randn(1, 1, 4, 4, 4, generator=generator(step))
            model.loss("autoencoder", x, generator=generator(step))["loss"].backward()
            optimizer.step()
        return model

    def fresh():
        torch.manual_seed(3)
        return VQ(1, **SMALL, codes=16, patience=2)

    whole = train(fresh(), range(6))
    half = train(fresh(), range(3))
    resumed = VQ(1, **SMALL, codes=16, patience=2)
    resumed.load_state_dict(half.state_dict())
    train(resumed, range(3, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
