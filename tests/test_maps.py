"""Maps that compare structures, features and sides, against the same thing done by hand."""

import pytest
import torch
from anomaly_models import KERNEL, SHAPE, SPACES, SPACING, foreground, states, tiny_autoencoder

from volumediff.anomaly._similarity import ssim as similarity
from volumediff.anomaly.maps.asymmetric import Asymmetric
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.maps.perceptual import Perceptual
from volumediff.anomaly.maps.product import Product
from volumediff.anomaly.maps.saturated import Saturated
from volumediff.anomaly.maps.ssim import SSIM
from volumediff.anomaly.maps.ssim_ensemble import SSIMEnsemble
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.scan import Scan
from volumediff.condition import Condition
from volumediff.features.denoiser import network_features
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.randomness import normal
from volumediff.spaces.latent import Latent
from volumediff.spaces.voxel import Voxel

INSIDE = foreground()
ALL = torch.ones_like(INSIDE)


def pair():
    return normal((1, 1, *SHAPE), 1), normal((1, 1, *SHAPE), 2)


def network_in(space, network=UNet):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        k = space.channels(1)
        made = network(k, k, widths=(4, 8), blocks=1, groups=2)
        for p in made.parameters():  # residual blocks start as their shortcut
            torch.nn.init.normal_(p, std=0.3)
    return Model(space, KERNEL, made.eval())


def ask(block, model):
    """Everything that the map and its parts need of a model."""
    for requirement in block.requirements():
        requirement.check(model)


def measured(block, model, x, y, inside=INSIDE):
    ask(block, model)
    bound = block.with_model(model, Condition())
    with torch.no_grad():
        return bound(x, y, foreground=inside, spacing_mm=SPACING)


def test_the_ssim_ensemble_is_the_softmax_of_its_windows():
    x, y = pair()
    sigmas = (2.0, 3.0, 5.0)
    got = SSIMEnsemble(sigmas)(x, y, foreground=INSIDE, spacing_mm=SPACING)
    ssim = torch.stack(
        [similarity(x, y, sigma_mm=s, spacing_mm=SPACING, foreground=INSIDE) for s in sigmas]
    )
    expected = (1 - (torch.softmax(-ssim, 0) * ssim).sum(0)).clamp(min=0) * INSIDE
    torch.testing.assert_close(got, expected)
    # the worst window counts most: more than their mean
    assert float(got.sum()) > float(((1 - ssim.mean(0)).clamp(min=0) * INSIDE).sum())
    one = SSIMEnsemble((2.0,))(x, y, foreground=INSIDE, spacing_mm=SPACING)
    single = SSIM(2.0)(x, y, foreground=INSIDE, spacing_mm=SPACING)
    torch.testing.assert_close(one, single)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_perceptual_distance_is_that_of_the_encoders_stages(distance):
    model = network_in(Voxel())
    x, y = pair()
    time = torch.tensor([0.2], dtype=torch.float64)
    log_snr = float(KERNEL.schedule.log_snr(time))
    got = measured(Perceptual(distance=distance, log_snr=log_snr), model, x, y)
    alpha, _ = KERNEL.schedule(time)
    body = model.network.hourglass
    e = model.network.embedding(torch.tensor([0.2]), Condition())
    expected = torch.zeros_like(x)
    with torch.no_grad():
        stages = []
        for v in (x, y):
            fine = body.encoder[0][0](body.stem(float(alpha) * v), e)
            stages.append((fine, body.encoder[1][0](body.down[0](fine), e)))
        for f, g in zip(*stages, strict=True):
            a = (f - g).square().mean(1, keepdim=True)
            if distance == "cosine":
                dot = (f * g).sum(1, keepdim=True)
                a = 1 - dot / (f.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True))
            size = {"size": SHAPE, "mode": "trilinear", "align_corners": False}
            expected += torch.nn.functional.interpolate(a, **size) / 2
    torch.testing.assert_close(got, expected * INSIDE, atol=1e-5, rtol=1e-4)
    assert float(measured(Perceptual(distance=distance), model, x, x).max()) < 1e-5
    assert float(got[INSIDE].mean()) > 1e-3


@pytest.mark.parametrize("space", SPACES)
def test_features_stand_where_the_volume_changes(space):
    network = Pseudo3D if space == "slices" else UNet
    model = network_in(SPACES[space](), network)
    x, _ = pair()
    y = x.clone()
    y[..., 0:2, 8:12, 6:8] += 3.0  # one corner: axes out of order would move it
    got = measured(Perceptual(distance="l2"), model, x, y, ALL)
    d, h, w = (
        float((got.sum(k) * torch.arange(n)).sum() / got.sum())
        for k, n in (((0, 1, 3, 4), 8), ((0, 1, 2, 4), 12), ((0, 1, 2, 3), 8))
    )
    assert d < 3.4
    assert h > 6.0
    assert w > 3.6


def test_the_autoencoder_has_features_too():
    x, y = pair()
    model = network_in(Latent(tiny_autoencoder()))
    block = Perceptual(of="autoencoder")
    got = measured(block, model, x, y)
    assert float(got[INSIDE].min()) > 0
    network = measured(Perceptual(), model, x, y)
    assert not torch.allclose(got, network)


def test_models_without_features_are_refused():
    block = Product((L1(), Saturated(Perceptual())))
    with pytest.raises(ValueError, match="expected a network of residual blocks, got states"):
        ask(block, states())
    with pytest.raises(ValueError, match="expected a latent space with an autoencoder, got voxel"):
        ask(Asymmetric(Perceptual(of="autoencoder")), network_in(Voxel()))
    model = network_in(Voxel())
    MemoryPolicy(slab=2).apply(model)
    with pytest.raises(ValueError, match=r"in slabs; use memory\.slab=null"):
        ask(block, model)
    with pytest.raises(ValueError, match="map perceptual: expected a model, got none"):
        block(*pair(), foreground=INSIDE, spacing_mm=SPACING)


def test_composed_maps_take_what_they_need_from_the_model():
    model = network_in(Voxel())
    inner = Perceptual(distance="l2")
    row = Localizer(
        route=Scan(levels=(0.4,)),
        map=Product((Asymmetric(Saturated(inner)), L1())),
    )
    x, _ = pair()
    got = row.localize(model, x, foreground=INSIDE, spacing_mm=SPACING, key=1)
    healthy = got.pseudo_healthy
    a = measured(Asymmetric(Saturated(inner)), model, x, healthy)
    torch.testing.assert_close(got.map, a * (x - healthy).abs())
    # what is bound is no part of the method
    assert row.fingerprint == Localizer(route=row.route, map=row.map).fingerprint
    assert row.map.maps[0].map.map.features is None


def test_no_hook_stays_behind():
    model = network_in(Voxel())
    network_features(model, Condition(), 0.1)(pair()[0])
    assert not any(part._forward_hooks for part in model.modules())


def test_asymmetry_is_the_excess_over_the_other_side():
    x, zero = torch.zeros((1, 1, 7, 2, 2)), torch.zeros((1, 1, 7, 2, 2))
    inside = torch.zeros_like(x, dtype=torch.bool)
    inside[:, :, 1:6] = True  # the middle is plane 3
    x[0, 0, :, 0, 0] = torch.tensor([9.0, 5, 2, 4, 2, 1, 9])
    block = Asymmetric(L1(), sigma_mm=0.0)
    a = block(x, zero, foreground=inside, spacing_mm=(1.0, 1.0, 1.0))
    assert a[0, 0, :, 0, 0].tolist() == [0, 4, 0, 0, 0, 0, 0]
    # equal on both sides is no finding, however large
    both = x + x.flip(2)
    assert float(block(both, zero, foreground=inside, spacing_mm=SPACING).abs().max()) == 0
