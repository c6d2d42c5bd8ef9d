"""Autoencoders that localize: losses and maps against closed forms, and runs from end to end."""

import itertools
import math

import nibabel as nib
import pytest
import torch
from test_resume import digests
from tiny_app import base, program, run
from tiny_runs import tiny, write_data
from torch import nn

from volumediff.anomaly import method_files
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.lent import BorrowedAutoencoder, Lent
from volumediff.anomaly.methods.rebuilder import Rebuilder
from volumediff.anomaly.reconstruction import (
    CriticReconstruction,
    ElboGradient,
    ReconstructionView,
    Resampled,
    Restoration,
    total_variation,
)
from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._dense import Gather, Scatter
from volumediff.autoencoders._variational import Variational
from volumediff.autoencoders.context_vae import VOID, ContextVAE, voided
from volumediff.autoencoders.denoising import Denoising
from volumediff.autoencoders.fanogan import FAnoGAN, gradient_penalty
from volumediff.autoencoders.soft_intro_vae import SoftIntroVAE
from volumediff.autoencoders.token_prior import TokenPrior
from volumediff.autoencoders.vae import VAE
from volumediff.autoencoders.vq import VQ
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._layers import Conv
from volumediff.training.loop import train

__all__ = ["base", "program", "run"]  # fixtures

CELL = (2, 2, 2)
N, K = 8, 2  # voxels and latent elements of the linear models
BETA = 0.05
SMALL = {"shape": (8, 8, 8), "latent_channels": 3, "widths": (4, 8), "blocks": 1, "squeeze": 2}
SPACING = (2.0, 2.0, 2.0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def example(x):
    return Example(x, torch.ones_like(x[:, :1], dtype=torch.bool), SPACING)


# --- linear models ----------------------------------------------------------------------------


def linear(matrix, bias):
    """A convolution of size 1 that computes matrix @ x + bias in double precision."""
    layer = Conv(matrix.shape[1], matrix.shape[0], kernel=(1, 1, 1)).double()
    layer.weight.data = matrix.double()[:, :, None, None, None].clone()
    layer.bias.data = bias.double().clone()
    return layer


def linear_codec(a, offset, log_variance, w, b):
    """x -> (A x + offset, log variance), z -> W z + b."""
    features = torch.cat([a, torch.zeros_like(a)])
    encoder = nn.Sequential(Gather(CELL), linear(features, torch.cat([offset, log_variance])))
    decoder = nn.Sequential(linear(w, b), Scatter(CELL))
    return Codec(encoder, decoder, CELL)


class Linear(Variational):
    """A variational autoencoder of two matrices."""

    def __init__(self, *parts, weight=BETA):
        super().__init__(1, codec=linear_codec(*parts), weight=weight)

    @property
    def players(self):
        return {"autoencoder": self.codec}

    def loss(self, player, x, *, generator):
        raise NotImplementedError


def matrices(seed=0):
    g = generator(seed)
    a = torch.randn((K, N), generator=g, dtype=torch.float64) / 3
    w = torch.randn((N, K), generator=g, dtype=torch.float64) / 3
    offset = torch.randn(K, generator=g, dtype=torch.float64)
    log_variance = torch.randn(K, generator=g, dtype=torch.float64)
    b = torch.randn(N, generator=g, dtype=torch.float64)
    return a, offset, log_variance, w, b


def vector(seed=1):
    return torch.randn(N, generator=generator(seed), dtype=torch.float64)


def test_the_bound_of_a_linear_model_is_its_closed_form():
    a, offset, log_variance, w, b = matrices()
    model, x = Linear(a, offset, log_variance, w, b), vector()
    found = model.bound(x.view(1, 1, *CELL))
    mu = a @ x + offset
    rest = x - w @ mu - b
    kl = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance)
    torch.testing.assert_close(found.distortion[0], 0.5 * rest.square().mean())
    torch.testing.assert_close(found.divergence[0], kl.mean())
    torch.testing.assert_close(
        model.total(found)[0], 0.5 * rest.square().sum() / N + BETA * kl.sum() / K
    )
    # with a generator the latent is a draw of q
    drawn = model.bound(x.view(1, 1, *CELL), generator=generator(5))
    noise = torch.randn((1, K, 1, 1, 1), generator=generator(5)).flatten().double()
    z = mu + (log_variance / 2).exp() * noise
    torch.testing.assert_close(drawn.x_hat.flatten(), w @ z + b)


def ppca(seed=0):
    """Probabilistic PCA with the noise that beta stands for, and its exact posterior."""
    sigma2 = BETA * N / K
    q, _ = torch.linalg.qr(torch.randn((N, K), generator=generator(seed), dtype=torch.float64))
    w = q * torch.tensor([2.0, 0.7], dtype=torch.float64)
    b = vector(seed + 1)
    inverse = torch.linalg.inv(w.T @ w + sigma2 * torch.eye(K, dtype=torch.float64))
    a = inverse @ w.T
    model = Linear(a, -a @ b, (sigma2 * inverse).diagonal().log(), w, b)
    covariance = w @ w.T + sigma2 * torch.eye(N, dtype=torch.float64)
    return model, sigma2, torch.linalg.inv(covariance), b


def weight_of(model, x, sigma_mm=0.0):
    view = ReconstructionView(model, example(x), 0)
    ones = torch.ones_like(x[:, :1])
    return ElboGradient(sigma_mm=sigma_mm).weigh(view, x, ones)


def test_the_gradient_of_the_bound_is_that_of_the_evidence_of_probabilistic_pca():
    model, sigma2, precision, b = ppca()
    x = vector(7)
    with torch.no_grad():  # as methods are run
        got = weight_of(model, x.view(1, 1, *CELL)).flatten()
    torch.testing.assert_close(got, (sigma2 * precision @ (x - b)).abs())
    # and of finite differences
    step = 1e-5
    for i in range(N):
        up, down = x.clone(), x.clone()
        up[i] += step
        down[i] -= step
        with torch.no_grad():
            ends = [model.total(model.bound(v.view(1, 1, *CELL))) for v in (up, down)]
        slope = float(N * (ends[0] - ends[1]) / (2 * step))
        assert abs(slope) == pytest.approx(float(got[i]), rel=1e-5, abs=1e-7)


def test_cevae_multiplies_residual_and_gradient():
    model, _, _, _ = ppca()
    x = vector(3).view(1, 1, *CELL)
    row = Rebuilder(reconstruction=ElboGradient(sigma_mm=0.0))
    found = row.find(model, example(x), key=0)
    residual = (x - model.reconstruct(x)).abs()
    torch.testing.assert_close(found.map, residual * weight_of(model, x))
    assert set(found.trace) == {"elbo_gradient/weight"}


def test_restoration_walks_to_the_most_probable_volume():
    a, offset, log_variance, w, b = matrices()
    model, x = Linear(a, offset, log_variance, w, b), vector()
    # N L(u) = |R u - r|^2 / 2 + (beta N / K) |A u + offset|^2 / 2
    r_matrix, r = torch.eye(N, dtype=torch.float64) - w @ a, w @ offset + b
    scale = BETA * N / K
    hessian = r_matrix.T @ r_matrix + scale * a.T @ a
    best = torch.linalg.solve(hessian, r_matrix.T @ r - scale * a.T @ offset)
    lr = 1 / float(torch.linalg.eigvalsh(hessian)[-1])
    shrink = torch.eye(N, dtype=torch.float64) - lr * hessian
    for steps in (1, 5, 300):
        with torch.no_grad():
            view = ReconstructionView(model, example(x.view(1, 1, *CELL)), 0)
            got = Restoration(steps=steps, lr=lr, tv=0.0)(view).flatten()
        expected = best + torch.linalg.matrix_power(shrink, steps) @ (x - best)
        torch.testing.assert_close(got, expected)
    assert (got - best).norm() < 1e-2 * (x - best).norm()


def test_total_variation_by_hand_and_what_it_does():
    x = torch.randn(1, 1, 3, 2, 4, dtype=torch.float64)
    by_hand = 0.0
    for place in itertools.product(range(3), range(2), range(4)):
        for axis in range(3):
            other = [p + (i == axis) for i, p in enumerate(place)]
            if other[axis] < x.shape[2 + axis]:
                by_hand += abs(float(x[0, 0][tuple(other)] - x[0, 0][place]))
    assert float(total_variation(x)) == pytest.approx(by_hand)
    model, _, _, _ = ppca()
    volume = vector(9).view(1, 1, *CELL)
    rough = [
        float(total_variation(volume - Restoration(steps=60, lr=0.05, tv=tv)(view)))
        for tv in (0.0, 0.1, 1.0)
        for view in [ReconstructionView(model, example(volume), 0)]
    ]
    assert rough[0] > 1.05 * rough[1] > 1.1 * rough[2]


# --- losses -----------------------------------------------------------------------------------


def test_a_vae_loses_its_bound():
    model, x = VAE(1, **SMALL, weight=0.5), torch.randn(1, 1, 8, 8, 8)
    got = model.loss("autoencoder", x, generator=generator(2))
    bound = model.bound(x, generator=generator(2))
    torch.testing.assert_close(got["loss"], (bound.distortion + 0.5 * bound.divergence)[0])
    assert model.posterior(x)[0].shape == (1, 3, 1, 1, 1), "one vector per volume"


def test_context_losses_by_hand():
    x = torch.rand(1, 1, 8, 8, 8)
    model = ContextVAE(1, **SMALL, context=0.25, side=0.5)
    got = model.loss("autoencoder", x, generator=generator(2))["loss"]
    source = generator(2)
    bound = model.bound(x, generator=source)
    hidden = voided(x, source, boxes=3, side=0.5)
    filled = 0.5 * (model.reconstruct(hidden) - x).square().mean()
    torch.testing.assert_close(got, 0.75 * model.total(bound)[0] + 0.25 * filled)
    plain = VAE(1, **SMALL)
    plain.load_state_dict(model.state_dict())
    model.context = 0.0
    torch.testing.assert_close(
        model.loss("autoencoder", x, generator=generator(4))["loss"],
        plain.loss("autoencoder", x, generator=generator(4))["loss"],
    )


def test_boxes_are_void_and_no_larger_than_asked():
    x = torch.rand(1, 2, 12, 8, 6)
    sizes = set()
    for seed in range(40):
        hidden = voided(x, generator(seed), boxes=1, side=0.5)
        void = hidden[0, 0] == VOID
        assert torch.equal(hidden[0, 1] == VOID, void), "in all channels"
        torch.testing.assert_close(hidden[0, :, ~void], x[0, :, ~void])
        box = [int(void.any(dim=[b for b in range(3) if b != a]).sum()) for a in range(3)]
        assert void.sum() == math.prod(box), "one box"
        assert all(0 < s <= most for s, most in zip(box, (6, 4, 3), strict=True))
        sizes.add(tuple(box))
    assert len(sizes) > 20
    assert max(s[0] for s in sizes) == 6


def soft(reversed_weight=0.0):
    """A soft-introspective VAE of two matrices."""
    model = SoftIntroVAE(1, **(SMALL | {"shape": CELL}), negative=0.7, again=0.3, weight=BETA)
    parts = matrices(4)
    codec = linear_codec(*parts)
    model.codec["encoder"], model.codec["decoder"] = codec.encoder, codec.decoder
    model.stride, model.reversed = CELL, reversed_weight
    return model, parts


def hand(x, f_noise, parts):
    """r and k of a vector, with the noise of its latent, and its reconstruction."""
    a, offset, log_variance, w, b = parts
    mu = a @ x + offset
    again = w @ (mu + (log_variance / 2).exp() * f_noise) + b
    kl = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).mean()
    return 0.5 * (again - x).square().mean(), kl, again


def test_introspective_losses_by_hand():
    model, parts = soft()
    _, _, _, w, b = parts
    x = vector(6)
    for player in ("encoder", "decoder"):
        got = model.loss(player, x.view(1, 1, *CELL), generator=generator(8))["loss"]
        source = generator(8)
        draws = [torch.randn((1, K, 1, 1, 1), generator=source).flatten().double() for _ in "1234"]
        r, k, x_hat = hand(x, draws[0], parts)
        made = w @ draws[1] + b
        total = r + BETA * k if player == "encoder" else r
        for f, noise in ((made, draws[2]), (x_hat, draws[3])):
            r_f, k_f, _ = hand(f, noise, parts)
            if player == "encoder":
                total = total + 0.25 * torch.exp(-2 * (r_f + 0.7 * k_f))
            else:
                total = total + 0.5 * BETA * k_f + 0.5 * 0.3 * r_f
        torch.testing.assert_close(got, total)
    model.eval()
    evaluated = model.loss("encoder", x.view(1, 1, *CELL), generator=generator(8))["loss"]
    torch.testing.assert_close(evaluated, r + BETA * k)


def test_reversed_features_by_hand():
    model = SoftIntroVAE(1, **SMALL)
    x, y = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 1, 8, 8, 8)
    encode = model.codec["encoder"]
    got = model._difference(x, y, encode)
    convolutions = encode[0]
    blocks = [i for i, m in enumerate(convolutions) if type(m).__name__ == "ResidualBlock"]
    expected = 0.0
    for i in blocks:
        f, g = (convolutions[: i + 1](v).flatten() for v in (x, y))
        cosine = (f @ g) / (f.norm() * g.norm())
        expected = expected + 0.5 * (f - g).square().mean() + 1 - cosine
    assert len(blocks) == 2
    torch.testing.assert_close(got[0], expected)
    plain = model.loss("decoder", x, generator=generator(1))["loss"]
    model.reversed = 2.0
    more = model.loss("decoder", x, generator=generator(1))["loss"]
    x_hat = model.bound(x, generator=generator(1)).x_hat
    torch.testing.assert_close(more - plain, 2 * model._difference(x, x_hat, encode)[0])


class Flat(nn.Module):
    """The critic <w, x>."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return (x * self.w).flatten(1).sum(1)


def test_the_penalty_of_a_linear_critic():
    w = torch.randn(1, 4, 4, 4)
    critic = Flat(w)
    real, fake = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
    got = gradient_penalty(critic, real, fake, generator())
    torch.testing.assert_close(got, ((w.norm() - 1) ** 2).expand(2))
    # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|
    (slope,) = torch.autograd.grad(got.mean(), critic.w)
    torch.testing.assert_close(slope, 2 * (w.norm() - 1) * w / w.norm())
    # between the two volumes: the slope of |x|^2 / 2 there is x
    between = gradient_penalty(_Square(), real[:1], fake[:1], generator(3))
    u = torch.rand((), generator=generator(3))
    expected = ((u * real[0] + (1 - u) * fake[0]).norm() - 1) ** 2
    torch.testing.assert_close(between[0], expected)


class _Square(nn.Module):
    def forward(self, x):
        return 0.5 * x.square().flatten(1).sum(1)


def test_adversarial_losses_by_hand():
    model, x = FAnoGAN(1, **SMALL, penalty=3.0, features=0.5), torch.randn(1, 1, 8, 8, 8)
    z = torch.randn((1, 3, 1, 1, 1), generator=generator(2))
    fake = model.generator(z)
    judged = model.critic(fake)[0]
    got = model.loss("generator", x, generator=generator(2))["loss"]
    torch.testing.assert_close(got, -judged)
    source = generator(2)
    torch.randn((1, 3, 1, 1, 1), generator=source)
    steep = gradient_penalty(model.critic, x, fake, source)[0]
    got = model.loss("critic", x, generator=generator(2))["loss"]
    torch.testing.assert_close(got, judged - model.critic(x)[0] + 3 * steep)
    y, see = model.reconstruct(x), model.critic.features
    error, features = (x - y).square().mean(), (see(x) - see(y)).square().mean()
    got = model.loss("encoder", x, generator=generator())["loss"]
    torch.testing.assert_close(got, error + 0.5 * features)
    got = model.eval().loss("encoder", x, generator=generator())["loss"]
    torch.testing.assert_close(got, error)
    view = ReconstructionView(model, example(x), 0)
    flat = torch.zeros_like(x)
    a = CriticReconstruction(features=2.0).weigh(view, y, flat)
    features = (see(x) - see(y)).square().mean(1, keepdim=True)
    up = nn.functional.interpolate(features, size=(8, 8, 8), mode="trilinear")
    torch.testing.assert_close(a, 2 * up)


def test_a_denoiser_without_noise_is_an_autoencoder_of_the_foreground():
    x = torch.rand(1, 2, 8, 8, 8) * 1.5 - 0.5
    x[..., :3] = -1.0  # air
    model = Denoising(2, widths=(4, 8), groups=2, sigma=0.0)
    nn.init.normal_(model.hourglass.head.weight, std=0.1)  # it starts as zero
    got = model.loss("network", x, generator=generator())["loss"]
    inside = (model.reconstruct(x) - x)[..., 3:]
    torch.testing.assert_close(got, inside.square().sum() / x.numel())
    # with noise: only the foreground is noisy, and it deviates by sigma
    model.sigma, model.noise = 0.4, type(model.noise)(2)
    seen = []
    model.hourglass.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for seed in range(60):
        model.loss("network", x, generator=generator(seed))
    noise = torch.stack(seen) - x
    assert not bool(noise[..., :3].any())
    assert float(noise[..., 3:].std()) == pytest.approx(0.4, rel=0.05)
    assert not torch.equal(seen[0], seen[1])


# --- codes ------------------------------------------------------------------------------------


def prior(codes=3, shape=(8, 4, 2)):
    """A prior of 4 x 2 x 1 codes of a vocabulary of three."""
    inner = VQ(1, latent_channels=2, codes=codes, widths=(4, 4), strides=(CELL,), blocks=1)
    return TokenPrior(1, autoencoder=inner, shape=shape, width=8, layers=2, heads=2).eval()


@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one():
    model = prior(shape=(4, 4, 2))
    everything = torch.tensor(list(itertools.product(range(3), repeat=4)))
    surprise = model.surprise(everything)
    assert float((-surprise.sum(1)).exp().sum()) == pytest.approx(1, abs=1e-5)
    # p(s_i | s_<i) by brute force: sums over all that may follow
    p = (-surprise.sum(1)).exp()
    for i in range(4):
        for s in everything[::20]:
            before = (everything[:, :i] == s[:i]).all(1)
            now = before & (everything[:, i] == s[i])
            expected = float(p[now].sum() / p[before].sum())
            row = int((everything == s).all(1).nonzero())
            assert float((-surprise[row, i]).exp()) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_codes_are_drawn_again_given_those_before():
    model = prior()
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]])
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    assert torch.equal(model.redraw(tokens, nothing, generator=generator()), tokens)
    where = nothing.clone()
    where[0, [1, 4]] = True
    counts, expected = torch.zeros(3, 3), torch.zeros(3, 3)
    for seed in range(150):
        drawn = model.redraw(tokens, where, generator=generator(seed))
        assert torch.equal(drawn[~where], tokens[~where])
        counts[drawn[0, 1], drawn[0, 4]] += 1 / 150
    for first, second in itertools.product(range(3), repeat=2):
        s = tokens.clone()
        s[0, 1] = first
        p = model.surprise(s)[0, 1]
        s[0, 4] = second
        expected[first, second] = torch.exp(-p - model.surprise(s)[0, 4])
    torch.testing.assert_close(counts, expected, atol=0.12, rtol=0)


@torch.no_grad()
def test_unlikely_codes_are_found_and_mapped_where_they_are():
    model, x = prior(), torch.randn(1, 1, 8, 4, 2)
    latents = model.autoencoder.encode(x)[0].flatten(1).T
    model.autoencoder.codec["codebook"].vectors.copy_(latents[[0, 3, 6]])
    tokens = model.tokens(x)
    assert len(tokens.unique()) > 1
    torch.testing.assert_close(model.volume(tokens, (8, 4, 2)), model.reconstruct(x))
    surprise = model.surprise(tokens)
    theta = float((-surprise).exp().median()) + 1e-6
    row = Rebuilder(reconstruction=Resampled(threshold=theta, sigma_mm=0.0))
    found = row.find(model, example(x), key=3)
    cells = found.trace["resampled/mask"]
    unlikely = ((-surprise) < math.log(theta)).view(4, 2, 1)
    assert 0 < int(unlikely.sum()) < 8
    for d, h, w in itertools.product(range(8), range(4), range(2)):
        assert bool(cells[0, 0, d, h, w]) == bool(unlikely[d // 2, h // 2, w // 2])
    torch.testing.assert_close(found.map, (x - found.healthy).abs() * cells)
    with pytest.raises(ValueError, match=r"volumes of at most \(8, 4, 2\) voxels, got \(10, 4, 2"):
        model.tokens(torch.zeros(1, 1, 10, 4, 2))


def test_draws_are_an_ensemble():
    model, x = prior(), torch.randn(1, 1, 8, 4, 2)
    slot = Resampled(threshold=0.9, sigma_mm=0.0)
    ensemble = method_files.read_method("ltm").ensemble
    with torch.no_grad():
        found = Rebuilder(reconstruction=slot, ensemble=ensemble).find(model, example(x), key=5)
        again = Rebuilder(reconstruction=slot, ensemble=ensemble).find(model, example(x), key=5)
    assert torch.equal(found.map, again.map)
    masks = [found.trace[f"run-{i}/resampled/mask"] for i in range(5)]
    assert all(torch.equal(m, masks[0]) for m in masks), "what is unlikely is not random"
    assert found.errors.shape == (5,)
    assert bool(found.uncertainty.any())
    with pytest.raises(ValueError, match="ensemble: expected seeds: 1"):
        Rebuilder(ensemble=ensemble)


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VAE, SoftIntroVAE, FAnoGAN, Denoising])
def test_slabs_change_nothing(kind):
    options = {"widths": (4, 8), "groups": 2} if kind is Denoising else SMALL
    model, x = kind(1, **options), torch.randn(1, 1, 8, 8, 8)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    results = []
    for policy in (MemoryPolicy(), MemoryPolicy(slab=4)):
        policy.apply(model)
        with torch.no_grad():
            found = [model.reconstruct(x)]
        player, part = next(iter(model.players.items()))
        model.zero_grad()
        model.loss(player, x, generator=generator(1))["loss"].backward()
        results.append(found + [p.grad.clone() for p in part.parameters()])
    for whole, slabs in zip(*results, strict=True):
        torch.testing.assert_close(slabs, whole, rtol=1e-3, atol=1e-5)


def test_reversed_features_need_one_piece():
    model = SoftIntroVAE(1, **SMALL, reversed=1.0)
    MemoryPolicy(slab=4).apply(model)
    with pytest.raises(ValueError, match=r"reversed: expected an encoder .* use memory.slab=null"):
        model.loss("decoder", torch.zeros(1, 1, 8, 8, 8), generator=generator())


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cevae", r"autoencoder: expected the run of a contextvae, got one of a vae; use"),
        ("fanogan", r"autoencoder: expected the run of a fanogan, got one of a vae; use"),
        ("ddpm", r"expected the run of a diffusion model, got one of the autoencoder vae; use"),
        ("features", r"expected the run of a diffusion model, got one of the autoencoder vae"),
        ("phanes", r"expected the run of a diffusion model, got one of the autoencoder vae"),
    ],
)
def test_a_vae_serves_no_other_row(name, message):
    with pytest.raises(ValueError, match=message):
        method_files.read_method(name).check(VAE(1, **SMALL))


def test_a_gradient_needs_a_bound_in_one_piece():
    row = Rebuilder(reconstruction=Restoration())
    with pytest.raises(ValueError, match=r"expected a variational .*got denoising; use"):
        row.check(Denoising(1, widths=(4, 8), groups=2))
    model = VAE(1, **SMALL)
    row.check(model)
    MemoryPolicy(slab=4).apply(model)
    with pytest.raises(ValueError, match=r"runs in one piece.*use memory.slab=null"):
        row.check(model)


def test_a_first_pass_has_its_own_run():
    method = method_files.read_method("phanes", overrides=["first.run=there"]).bind(lent)
    assert isinstance(method.first, Lent)
    assert method.first.row == method_files.read_method("ra")
    assert method.fingerprint != method_files.read_method("phanes").fingerprint
    with pytest.raises(ValueError, match=r"first: autoencoder: expected the run of a soft"):
        method.first.check(None)


def lent(request):
    assert (request.name, request.run) == ("first.run", "there")
    return BorrowedAutoencoder(VAE(1, **SMALL), "0123456789abcdef" * 4)


# --- from end to end --------------------------------------------------------------------------

PARTS = {
    "vae": "{name: vae, latent_channels: 3, widths: [4, 8], squeeze: 2}",
    "context_vae": "{name: context_vae, latent_channels: 3, widths: [4, 8], squeeze: 2}",
    "soft_intro_vae": "{name: soft_intro_vae, latent_channels: 3, widths: [4, 8], squeeze: 2, "
    "reversed: 0.1}",
    "fanogan": "{name: fanogan, latent_channels: 3, widths: [4, 8], squeeze: 2}",
    "denoising": "{name: denoising, widths: [4, 8], groups: 2, cell: 2}",
    "vq": "{name: vq, latent_channels: 2, codes: 8, widths: [4, 8], strides: [[2, 2, 2]], "
    "blocks: 1}",
}


ENOUGH = "threshold.min_volumes=4"


def autoencoder_words(spec):
    return ["task=autoencoder", f"autoencoder={spec}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=8)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of one step, each trained once when it is asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def of(name, spec=None):
        run = folder / name
        if not run.exists():
            words = autoencoder_words(spec or PARTS[name])
            split = "data.split={validation: 0.2, calibration: 0.5}"
            train(tiny(data, run, *words, split, "optim.steps=1"))
        return run

    return of


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("vae", "vae", []),
        ("vae", "vae_restoration", ["reconstruction.steps=2"]),
        ("context_vae", "cevae", []),
        ("soft_intro_vae", "ra", []),
        ("fanogan", "fanogan", []),
        ("denoising", "dae", ["post=[]"]),
    ],
)
def test_a_row_of_an_autoencoder_from_training_to_files(
    runs, data, program, tmp_path, kind, row, words
):
    out = tmp_path / "out"
    files = sorted(data.glob("*.nii.gz"))[:1]
    code, _, said = program(
        "localize", files[0], "--run", runs(kind), "-o", out, "--method", row, *words, ENOUGH
    )
    assert code == 0, said
    name = files[0].name.removesuffix("_T1w.nii.gz")
    maps = sorted(out.rglob("*.nii.gz"))
    assert any("map" in p.name for p in maps), maps
    grids = {nib.load(p).shape[:3] for p in maps}
    assert grids == {nib.load(files[0]).shape}, name
    assert list((runs(kind) / "calibration" / row).glob("*.safetensors"))


def test_codes_from_training_to_files(runs, data, program, tmp_path):
    spec = f"{{name: token_prior, autoencoder: {runs('vq')}, width: 8, layers: 1, heads: 2}}"
    run = runs("token_prior", spec)
    assert (run / "borrowed" / "autoencoder" / "weights.safetensors").is_file(), (
        "the run stands alone"
    )
    file = sorted(data.glob("*.nii.gz"))[0]
    words = ["ensemble.seeds=2", "reconstruction.threshold=0.2"]
    code, _, said = program(
        "localize", file, "--run", run, "-o", tmp_path / "out", "--method", "ltm", *words, ENOUGH
    )
    assert code == 0, said
    code, _, said = program(
        "localize", file, "--run", runs("vq"), "-o", tmp_path / "vq", "--method", "ltm"
    )
    assert code == 2
    assert "expected the run of a tokenprior, got one of a vq" in said


def test_a_first_pass_by_another_run(run, runs, base, program, tmp_path):
    window = "{name: window, center: 100, width: 200, foreground: nonzero}"
    words = autoencoder_words(PARTS["soft_intro_vae"])
    words += [f"data.preprocessing.intensity={window}", "optim.steps=1"]
    first = tmp_path / "first"
    train(tiny(base / "data", first, *words))
    file = sorted((base / "data").glob("*.nii.gz"))[0]
    rest = ["sampler.steps=2", "threshold=best", "editing.resampling=1"]
    method = ["--method", "phanes"]
    code, _, said = program("localize", file, "--run", run, "-o", tmp_path / "a", *method, *rest)
    assert code == 2
    assert "first.run: expected the folder of the run" in said
    given = [*method, *rest, f"first.run={first}"]
    code, _, said = program("localize", file, "--run", run, "-o", tmp_path / "a", *given)
    assert code == 0, said
    assert any("inpaint" in p.name for p in (tmp_path / "a").rglob("*.nii.gz"))
    other = [*method, *rest, f"first.run={runs('soft_intro_vae')}"]
    code, _, said = program("localize", file, "--run", run, "-o", tmp_path / "b", *other)
    assert code == 2
    assert "expected a run on the same volumes" in said
    wrong = [*method, *rest, f"first.run={run}"]
    code, _, said = program("localize", file, "--run", run, "-o", tmp_path / "b", *wrong)
    assert code == 2
    assert "expected the run of an autoencoder" in said


def test_commands_for_diffusion_refuse_autoencoders_and_the_other_way(
    run, runs, data, program, tmp_path
):
    file = sorted(data.glob("*.nii.gz"))[0]
    code, _, said = program("localize", file, "--run", runs("vae"), "-o", tmp_path / "a")
    assert code == 2
    assert "expected the run of a diffusion model, got one of the autoencoder vae" in said
    code, _, said = program("sample", "--run", runs("vae"), "-o", tmp_path / "b")
    assert code == 2
    assert "trains an autoencoder, expected the run of a diffusion model" in said
    code, _, said = program(
        "localize", file, "--run", run, "-o", tmp_path / "c", "--method", "vae"
    )
    assert code == 2
    assert "states of the space voxel; train configs/autoencoders/vae_64.yaml" in said


def test_players_that_take_turns_resume_bit_by_bit(data, tmp_path):
    words = autoencoder_words(PARTS["fanogan"])
    train(tiny(data, tmp_path / "run", *words, "optim.steps=1"))
    train(tiny(data, tmp_path / "run", *words, "optim.steps=3"))
    straight = train(tiny(data, tmp_path / "straight", *words, "optim.steps=3"))
    assert digests(tmp_path / "run") == digests(straight)
