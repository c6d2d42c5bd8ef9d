"""Test-time adaptation: what it recovers, what it must not touch, and that it leaves no trace."""

from dataclasses import replace

import pytest
import torch
from anomaly_models import KERNEL, SCHEDULE, SPACING, wiener

from volumediff.anomaly import method_files
from volumediff.anomaly.adaptation import AffineAdaptation
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.scan import Scan
from volumediff.batch import Batch
from volumediff.errors import UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.networks._layers import Norm
from volumediff.networks.unet import UNet
from volumediff.randomness import uniform
from volumediff.recipes.class_conditional import ClassConditional
from volumediff.recipes.inpainting import Inpainting
from volumediff.schedules._base import per_sample
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

SHAPE = (8, 8, 8)
STD = 0.1
SITE = 0.2  # mean of the volumes of the other site; the network knows 0


class Shifted(Network):
    """White volumes x ~ N(m, STD^2), E[x | x_t] in closed form, with m the shift of a norm."""

    def __init__(self):
        super().__init__(1, 1)
        self.norm = Norm(1)
        self.other = torch.nn.Parameter(torch.tensor(STD**2))

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        alpha, sigma = (per_sample(a, z_t) for a in SCHEDULE(t))
        mean, p = self.norm.bias, self.other
        return mean + alpha * p / (alpha**2 * p + sigma**2) * (z_t - alpha * mean)


def shifted():
    return Model(Voxel(), KERNEL, Shifted()).eval().requires_grad_(False)


TRUTH = torch.zeros((1, 1, *SHAPE), dtype=torch.bool)
TRUTH[..., 2:6, 2:6, 2:6] = True
ALL = torch.ones_like(TRUTH)
WHITE = torch.randn(TRUTH.shape, generator=torch.Generator().manual_seed(0))
HEALTHY = SITE + STD * WHITE
SICK = HEALTHY + 0.8 * TRUTH
ADAPT = AffineAdaptation(steps=60, lr=0.02, draws=2, quantile=0.9, dilate_mm=2.0)


def example(x):
    return Example(x, ALL, SPACING)


def mean_after(model, adapt, x, suspected):
    with adapt.adapted(model, example(x), suspected=suspected, key=3):
        return float(model.network.norm.bias)


def test_the_loss_outside_of_a_region_recovers_the_shift():
    model, hidden = shifted(), TRUTH
    outside = float(SICK[~TRUTH].mean())  # what the parameter is fitted to, in closed form
    assert mean_after(model, ADAPT, SICK, hidden) == pytest.approx(outside, abs=0.02)
    assert outside == pytest.approx(SITE, abs=0.01)
    everywhere = mean_after(model, ADAPT, SICK, torch.zeros_like(TRUTH))
    assert everywhere == pytest.approx(float(SICK.mean()), abs=0.03)
    assert everywhere > outside + 0.05


def test_the_hidden_loss_is_the_mean_over_what_is_seen():
    model, key = shifted(), 5
    z_0 = SICK
    t = torch.tensor([1 - uniform(key, "t")], dtype=torch.float64)
    noise = model._noise((key,), (1, *SHAPE), "loss")
    z_t = KERNEL.corrupt(z_0, t, noise)
    errors = (model.network(z_t, t.float()) - z_0).square()[~TRUTH].mean()
    got = model.loss(Batch(SICK, (key,), hidden=TRUTH.float()))
    torch.testing.assert_close(got, errors[None], rtol=1e-5, atol=0)
    whole = model.loss(Batch(SICK, (key,), hidden=torch.zeros_like(SICK)))
    torch.testing.assert_close(whole, model.loss(Batch(SICK, (key,))), rtol=1e-6, atol=0)


def test_the_residual_of_a_lesion_stays_and_is_erased_without_the_restriction():
    # The network of one parameter erases by brightening everything: its map in the lesion falls.
    model = shifted()
    plain = Localizer(route=Scan(levels=(0.8,)))

    def lesion(row, x):
        a = row.find(model, example(x), key=1).map
        return float(a[TRUTH].mean()), float(a[~TRUTH].mean())

    before, background = lesion(plain, SICK)
    kept, quiet = lesion(replace(plain, adapt=ADAPT), SICK)
    erased, loud = lesion(replace(plain, adapt=replace(ADAPT, quantile=1.0)), SICK)
    # At this level the estimate is m to one part in a thousand: the map is |x - m|.
    share = 64 / 512
    assert before == pytest.approx(SITE + 0.8, abs=0.03)
    assert kept == pytest.approx(0.8, abs=0.03)
    assert erased == pytest.approx(0.8 * (1 - share), abs=0.04)
    assert erased < kept - 0.05
    assert quiet < 0.6 * background
    assert quiet < loud


def test_every_weight_has_its_old_bits_afterwards_also_after_an_exception():
    model = shifted()
    model.network.norm.bias.data += 0.1
    old = {n: p.clone() for n, p in model.network.named_parameters()}
    row = Localizer(route=Scan(levels=(0.8,)), adapt=ADAPT)
    first = row.find(model, example(SICK), key=1)
    again = row.find(model, example(SICK), key=1)
    assert torch.equal(first.map, again.map)
    assert not torch.equal(first.map, row.find(model, example(SICK), key=2).map)
    seen = {}

    def fails():
        with ADAPT.adapted(model, example(SICK), suspected=TRUTH, key=1):
            seen.update({n: p.clone() for n, p in model.network.named_parameters()})
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fails()
    broken = SICK.clone()
    broken[..., 0, 0, 0] = float("nan")
    with (
        pytest.raises(ValueError, match="expected a finite loss, got nan at step 0"),
        ADAPT.adapted(model, example(broken), suspected=TRUTH, key=1),
    ):
        pass
    assert not torch.equal(seen["norm.bias"], old["norm.bias"])
    assert torch.equal(seen["other"], old["other"]), "normalisations alone"
    for name, p in model.network.named_parameters():
        assert torch.equal(p, old[name]), name
        assert p.grad is None
        assert not p.requires_grad


def unet(space=None, **more):
    space = space or Voxel()
    k = space.channels(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(k, k, widths=(4, 8), blocks=1, groups=2, **more)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
    recipe = ClassConditional("group", ("0", "1")) if more.get("classes") else None
    model = Model(space, KERNEL, network, **({"recipe": recipe} if recipe else {}))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("space", [Voxel, Wavelet])
@pytest.mark.parametrize("classes", [0, 2])
def test_the_loss_of_a_network_falls_outside_and_slabs_change_nothing(space, classes):
    model, key = unet(space(), classes=classes), 7
    adapt = AffineAdaptation(steps=4, lr=0.02, draws=2)
    batch = Batch(SICK, (key,), hidden=TRUTH.float())
    old = {n: p.clone() for n, p in model.network.named_parameters()}

    def loss():
        with adapt.adapted(model, example(SICK), suspected=TRUTH, key=key):
            moved = [n for n, p in model.network.named_parameters() if not torch.equal(p, old[n])]
            return float(model.loss(batch)), moved

    before = float(model.loss(batch))
    after, moved = loss()
    assert after < before
    assert len(moved) > 10
    assert all(old[name].dim() == 1 for name in moved), "scales and shifts alone"
    MemoryPolicy(slab=3).apply(model)
    assert loss()[0] == pytest.approx(after, rel=1e-3)
    for name, p in model.network.named_parameters():
        assert torch.equal(p, old[name])


def test_what_cannot_be_adapted_is_refused(tmp_path):
    row = method_files.read_method(
        "scan", overrides=["adapt=affine", "adapt.steps=3", "normalize=raw"]
    )
    assert row.adapt == AffineAdaptation(steps=3)
    row.check(unet())
    with pytest.raises(ValueError, match="expected a network with normalisations, got wiener"):
        row.check(wiener())
    other = unet()
    other.recipe = Inpainting()
    with pytest.raises(ValueError, match="recipe healthy or class_conditional, got inpainting"):
        row.adapt.needs[0].check(other)
    with pytest.raises(UsageError, match=r"adapt\.stps: AffineAdapt.* takes steps.*mean 'steps'"):
        method_files.read_method("scan", overrides=["adapt={name: affine, stps: 3}"])
    with pytest.raises(UsageError, match=r"no key of a method"):
        method_files.read_method("intensity", overrides=["adapt=affine"])
    with pytest.raises(ValueError, match="expected foreground outside of what is suspected"):
        with AffineAdaptation().adapted(unet(), example(SICK), suspected=ALL, key=0):
            pass
    with pytest.raises(ValueError, match="quantile in"):
        AffineAdaptation(quantile=0.0)
    with pytest.raises(ValueError, match="steps >= 1"):
        AffineAdaptation(steps=0)
    plain = method_files.read_method("scan", overrides=["normalize=raw"])
    assert method_files.read_method("scan", overrides=["normalize=raw", "adapt=null"]) == plain
    assert plain.fingerprint != row.fingerprint
    two = method_files.read_method("autoddpm")
    inner = replace(two, first=replace(two.first, adapt=AffineAdaptation()))
    assert (
        len(
            {
                two.fingerprint,
                inner.fingerprint,
                replace(two, adapt=AffineAdaptation()).fingerprint,
            }
        )
        == 3
    )


def test_the_suspected_region_is_the_top_of_the_map_and_what_is_near():
    a = torch.zeros_like(SICK)
    a[..., 4, 4, 4] = 5.0
    a[..., 0, 0, 0] = 9.0
    inside = ALL.clone()
    inside[..., 0, 0, 0] = False
    got = AffineAdaptation(dilate_mm=2.0).suspected(a, Example(SICK, inside, SPACING))
    expected = torch.zeros_like(ALL)
    expected[..., 3:6, 3:6, 3:6] = True
    assert torch.equal(got, expected)
    assert not bool(AffineAdaptation(quantile=1.0).suspected(a, example(SICK)).any())
