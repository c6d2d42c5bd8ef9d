"""Recipes: what a network is shown and asked for, against what the definitions say."""

from dataclasses import replace

import pytest
import torch
from anomaly_models import SPACES
from tiny_runs import tiny, write_data

from volumediff.anomaly.method_files import read_method
from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.data.corruptions.foreign_patch import ForeignPatch
from volumediff.data.regions import Blobs, Box, Cells, Slabs
from volumediff.errors import UsageError
from volumediff.guidance.dynamic_clipping import DynamicClipping
from volumediff.guidance.sum import Sum
from volumediff.inference.options import SampleOptions
from volumediff.inference.sample import sample
from volumediff.kernels.cold import Cold
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.networks.unet import UNet
from volumediff.recipes._base import Subject
from volumediff.recipes.degradation import Degradation
from volumediff.recipes.healthy import Healthy
from volumediff.recipes.inpainting import Inpainting
from volumediff.recipes.local_noise import LocalNoise
from volumediff.recipes.modality_cycle import ModalityCycle
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.runs.trained import load_trained
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.tasks import build_task
from volumediff.training.loop import train

SPACING = (2.0, 2.0, 2.0)
TERMINAL = Cosine(zero_terminal_snr=True)


def subject(seed=0, shape=(12, 14, 10)):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand((1, *shape), generator=g) * 2 - 1
    foreground = torch.zeros((1, *shape), dtype=torch.bool)
    foreground[:, 2:-2, 2:-2, 2:-2] = True
    donor = torch.rand((1, *shape), generator=g) * 2 - 1
    return Subject(x, None, foreground, {}, SPACING, lambda key: donor)


class Fixed(Network):
    """Remembers its input and says a constant."""

    def __init__(self, channels, value=0.0, image_channels=0):
        super().__init__(channels, channels, image_channels=image_channels)
        self.value, self.seen = value, []

    @property
    def stride(self):
        return 1, 1, 1

    def body(self, x, e):
        self.seen.append(x)
        return torch.full_like(x[:, : self.out_channels], self.value)


def test_a_box_has_its_side_and_blobs_their_share():
    foreground = subject().foreground
    for k in range(20):
        m = Box(side_mm=8.0)(foreground, spacing_mm=(2.0, 4.0, 1.0), key=k)
        d, h, w = (int(m.any(dim=other).sum()) for other in ((0, 2, 3), (0, 1, 3), (0, 1, 2)))
        assert (d, h, w) == (4, 2, 8)
        assert int(m.sum()) == 4 * 2 * 8
        blobs = Blobs(share=(0.1, 0.2), size_mm=(3.0, 6.0))(foreground, spacing_mm=SPACING, key=k)
        assert not (blobs & ~foreground).any()
        assert 0.095 < float(blobs.sum() / foreground.sum()) < 0.205
    shares = [
        Cells(0.3, 4.0)(foreground, spacing_mm=SPACING, key=k).float().mean() for k in range(60)
    ]
    assert float(torch.stack(shares).mean()) == pytest.approx(0.3, abs=0.03)


def test_slabs_have_their_thickness_and_distance():
    foreground = torch.ones(1, 40, 44, 48, dtype=torch.bool)
    axes = set()
    for k in range(12):
        m = Slabs(6.0, 4.0)(foreground, spacing_mm=SPACING, key=k)[0]
        lines = [m.movedim(i, 0).flatten(1) for i in range(3)]
        (axis,) = [i for i, a in enumerate(lines) if bool((a == a[:, :1]).all())]
        runs = torch.unique_consecutive(lines[axis][:, 0], return_counts=True)
        inner = list(zip(runs[0][1:-1].tolist(), runs[1][1:-1].tolist(), strict=True))
        assert set(inner) == {(True, 3), (False, 2)}
        axes.add(axis)
    assert axes == {0, 1, 2}


def test_a_modality_cycle_shows_one_channel_and_hides_a_region_of_it_on_the_way_forth():
    s = subject()
    x = torch.cat([s.x, s.donor(0), 2 + s.x])
    recipe, ways = ModalityCycle(Slabs(6.0, 4.0), source=2, through=0), []
    for key in range(40):
        target = recipe.target(replace(s, x=x), atlas=None, key=key)
        (hint,), m = target.images, target.mask
        assert torch.equal(target.x, x)
        expected = torch.zeros_like(x)
        if bool(m.any()):
            assert torch.equal(m, s.region(recipe.region, key))
            expected[2] = torch.where(m[0] > 0, 0.0, x[2])
        else:
            expected[0] = x[0]
        assert torch.equal(hint, expected)
        ways.append(bool(m.any()))
    assert 10 < sum(ways) < 30, "each half of the time"
    with pytest.raises(ValueError, match=r"expected volumes with the channels 0 and 1, got 1 of"):
        ModalityCycle().target(s, atlas=None, key=0)
    with pytest.raises(ValueError, match="expected two different channels"):
        ModalityCycle(source=1)


@pytest.mark.parametrize("space", [Voxel(), Wavelet()], ids=["voxel", "wavelet"])
def test_local_noise_leaves_the_rest_clean_and_out_of_the_loss(space):
    s = subject()
    recipe = LocalNoise(Box(side_mm=8.0))
    target = recipe.target(s, atlas=None, key=5)
    k = space.channels(1)
    network = Fixed(k, 0.5)
    model = Model(space, Gaussian(TERMINAL, "x0"), network, recipe=recipe)
    loss = model.loss(Batch(target.x[None], (7,), region=target.region[None]))
    z, m = space.encode(s.x[None]), space.mask(target.region[None])
    z_t = network.seen[0]
    outside = (m == 0).expand_as(z)
    assert torch.equal(z_t[outside], z[outside])
    assert not torch.isclose(z_t[~outside], z[~outside]).all()
    # the squared error of x0 inside, over the region's own voxels and all channels
    expected = (0.5 - z)[~outside].square().mean()
    torch.testing.assert_close(loss[0], expected)


class Points(Fixed):
    """Remembers its input, says 1/2 and, in a last channel, the log-odds of its own."""

    def __init__(self, channels, odds):
        super().__init__(channels, 0.5)
        self.out_channels = channels + 1
        self.odds = odds

    def body(self, x, e):
        self.seen.append(x)
        said = torch.full_like(x, self.value)
        return torch.cat([said, self.odds.expand(len(x), 1, *x.shape[2:])], 1)


@pytest.mark.parametrize("name", SPACES)
def test_where_noise_is_costs_a_cross_entropy_on_the_grid_of_the_state(name):
    space, s = SPACES[name](), subject(shape=(16, 20, 16))
    plain = LocalNoise(Box(side_mm=6.0))
    recipe = replace(plain, mask_loss=0.3)
    target = recipe.target(s, atlas=None, key=5)
    batch = Batch(target.x[None], (7,), region=target.region[None])
    k, m = space.channels(1), space.mask(target.region[None])
    assert 0 < float(m.mean()) < 1, "some of the state is noisy, some is clean"
    odds = torch.linspace(-3, 3, m.numel()).view(m.shape)
    kernel = Gaussian(TERMINAL, "x0")
    network = Points(k, odds)
    found = Model(space, kernel, network, recipe=recipe).loss(batch)
    alone = Model(space, kernel, Fixed(k, 0.5), recipe=plain).loss(batch)
    p = 1 / (1 + torch.exp(-odds.double()))
    entropy = -(m * p.log() + (1 - m) * (1 - p).log()).mean()
    torch.testing.assert_close((found - alone)[0].double(), 0.3 * entropy, rtol=1e-4, atol=1e-5)
    # the target is where the state differs from the clean one, and nothing else
    moved = (network.seen[0] != space.encode(target.x[None])).any(1, keepdim=True)
    assert torch.equal(moved, m > 0)


def test_the_mask_is_a_channel_that_no_kernel_reads():
    odds = torch.randn(1, 1, 4, 4, 4)
    recipe = LocalNoise(mask_loss=1.0)
    model = Model(Voxel(), Gaussian(TERMINAL, "x0"), Points(1, odds), recipe=recipe)
    z, t = torch.randn(2, 1, 4, 4, 4), torch.tensor([0.3, 0.8], dtype=torch.float64)
    found = model.denoise(z, t)
    assert torch.equal(found.x0, torch.full_like(z, 0.5))
    assert torch.equal(found.noisy, odds.expand(2, 1, 4, 4, 4))
    plain = Model(Voxel(), Gaussian(TERMINAL, "x0"), Fixed(1, 0.5), recipe=LocalNoise())
    assert plain.denoise(z, t).noisy is None
    # guidance changes what is predicted of the state and not where noise is
    for guidance in (DynamicClipping(limit=0.1), Sum((DynamicClipping(limit=0.1),))):
        guided = guidance(model.denoise)(z, t, Condition())
        assert not torch.equal(guided.x0, found.x0)
        assert torch.equal(guided.noisy, found.noisy)
    for weight in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="mask_loss: expected a weight >= 0"):
            LocalNoise(mask_loss=weight)
    with pytest.raises(ValueError, match="shown the region"):
        LocalNoise(tell=True, mask_loss=1.0)


def test_a_run_that_predicts_where_noise_is_serves_its_row(tmp_path):
    root = write_data(tmp_path / "data", cases=6)
    told = "recipe={name: local_noise, region: {name: cells, share: 0.5, cell_mm: 12}"
    words = [f"{told}, mask_loss: 1}}", "optim.steps=1", "validation.every=1"]
    run = train(tiny(root, tmp_path / "run", "space=wavelet", *words))
    model = load_trained(run, device="cpu").model
    assert model.recipe == LocalNoise(Cells(0.5, 12.0), mask_loss=1.0)
    assert (model.network.in_channels, model.network.out_channels) == (8, 9)
    read_method("mad_ad").check(model)
    read_method("pddpm").check(model)
    plain = build_task(tiny(root, tmp_path / "plain", f"{told}}}")).module
    assert plain.network.out_channels == 1
    with pytest.raises(ValueError, match=r"route selective: .*train with recipe\.mask_loss=0\.1"):
        read_method("mad_ad").check(plain)


@pytest.mark.parametrize("space", [Voxel(), Wavelet()], ids=["voxel", "wavelet"])
def test_inpainting_tells_the_surroundings_and_nothing_of_the_void(space):
    s, k = subject(), space.channels(1)
    recipe = Inpainting(Box(side_mm=8.0))
    target = recipe.target(s, atlas=None, key=5)
    m = target.mask
    hidden = Subject(
        torch.where(m > 0, torch.randn_like(s.x), s.x), None, s.foreground, {}, SPACING
    )
    again = recipe.target(hidden, atlas=None, key=5)
    assert torch.equal(again.images[0], target.images[0])
    assert torch.equal(target.images[0][m == 0], s.x[m == 0])
    network = Fixed(k, image_channels=sum(space.channels(n) for n in recipe.image_channels(1)) + 1)
    model = Model(space, Gaussian(TERMINAL), network, recipe=recipe)
    model.loss(Batch(target.x[None], (7,), images=(target.images[0][None],), mask=m[None]))
    told = network.seen[0][:, k:]
    torch.testing.assert_close(told[:, :-1], space.encode(target.images[0][None]))
    torch.testing.assert_close(told[:, -1:], space.mask(m[None]))


def test_a_cold_kernel_walks_the_line_between_volume_and_degraded_volume():
    kernel = Cold(TERMINAL)
    g = torch.Generator().manual_seed(1)
    z_0, z_1 = torch.randn(2, 3, 2, 3, 4, 5, dtype=torch.float64, generator=g)
    t, s = (torch.full((3,), v, dtype=torch.float64) for v in (0.8, 0.3))
    z_t = kernel.corrupt(z_0, t, z_1)
    alpha = float(TERMINAL(t)[0][0])
    torch.testing.assert_close(z_t, alpha * z_0 + (1 - alpha) * z_1)
    # one step with the true z_0 is the state at s, as is the way back
    z_s = kernel.step(kernel.predict(z_0, z_t, t), z_t, t, s, torch.zeros_like(z_t))
    torch.testing.assert_close(z_s, kernel.corrupt(z_0, s, z_1))
    torch.testing.assert_close(kernel.renoise(z_s, s, t, z_1), z_t)
    # the published step: z_t - D(z_0, t) + D(z_0, s), with the same degradation
    torch.testing.assert_close(
        z_s, z_t - kernel.corrupt(z_0, t, z_1) + kernel.corrupt(z_0, s, z_1)
    )
    end = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(kernel.corrupt(z_0, end, z_1), z_1)
    with pytest.raises(ValueError, match="starts from a volume"):
        kernel.prior(z_t)


def test_degradation_trains_between_the_two_ends():
    s = subject()
    recipe = Degradation(ForeignPatch(side=(0.2, 0.2), factor=(1.0, 1.0)))
    target = recipe.target(s, atlas=None, key=4)
    changed = target.end != s.x
    assert changed.any()
    assert not (changed & ~s.foreground).any()
    assert torch.equal(target.end[changed], s.donor(0)[changed])
    network = Fixed(1, 0.25)
    model = Model(Voxel(), Cold(TERMINAL), network, recipe=recipe)
    loss = model.loss(Batch(target.x[None], (7,), end=target.end[None]))
    z_t = network.seen[0][0]
    share = ((z_t - s.x) / (target.end - s.x))[changed]
    assert float(share.std()) < 1e-4
    assert 0 < float(share.mean()) <= 1
    torch.testing.assert_close(loss[0], (0.25 - s.x).square().mean())


def test_synthetic_anomalies_say_how_much_was_changed_and_where():
    s = subject()
    recipe = SyntheticAnomalies(ForeignPatch(), sound=0.0)
    target = recipe.target(s, atlas=None, key=4)
    amount = (target.x + 1) / 2
    changed = target.images[0]
    torch.testing.assert_close(changed, torch.lerp(s.x, s.donor(0), amount))
    assert 0 < float(amount.max()) < 1
    atlas = torch.zeros_like(s.x)
    both = SyntheticAnomalies(ForeignPatch(), atlas=True, sound=0.0).target(s, atlas=atlas, key=4)
    assert torch.equal(both.images[0], atlas)
    assert torch.equal(both.images[1], changed)
    quiet = [SyntheticAnomalies(sound=0.5).target(s, atlas=None, key=k) for k in range(200)]
    still = sum(torch.equal(t.images[0], s.x) for t in quiet)
    assert still == pytest.approx(100, abs=25)
    assert all(bool((t.x == -1).all()) == torch.equal(t.images[0], s.x) for t in quiet)


def test_a_reference_is_told_through_a_bottleneck():
    torch.manual_seed(0)
    network = UNet(1, 1, reference_channels=1, widths=(8, 16), blocks=1, groups=2)
    with torch.no_grad():  # the last layer starts at zero
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    model = Model(Voxel(), Gaussian(TERMINAL), network, recipe=Healthy(reference=True)).eval()
    x = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.full((2,), 0.5, dtype=torch.float64)

    def told(reference):
        with torch.no_grad():
            return model.denoise(x, t, Condition(reference=reference)).v

    a = told(x)
    # cells of 2 voxels have a mean, and nothing else of them is seen
    fine = torch.tensor([1.0, -1.0]).repeat(16).view(1, 1, 32, 1, 1).expand_as(x)
    torch.testing.assert_close(told(x + fine), a, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(told(x + 1.0), a, atol=1e-4)
    # each volume of a batch has its own
    same = told(x[:1].expand_as(x))
    torch.testing.assert_close(same[0], a[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(same[1], a[1], atol=1e-4)
    seen = []
    hook = network.embedding.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    model.loss(Batch(x, (1, 2)))
    hook.remove()
    assert torch.equal(seen[0].reference, x)
    with pytest.raises(ValueError, match="reference of 1 channels, got 0"):
        model.denoise(x, t)


def test_a_run_with_a_reference_trains_and_localizes_and_does_not_sample(tmp_path):
    root = write_data(tmp_path / "data", cases=6)
    words = ("recipe={name: healthy, atlas: true, reference: true}", "optim.steps=2")
    trained = load_trained(train(tiny(root, tmp_path / "run", *words)), which="last")
    row = read_method("cddpm", overrides=["noise=gaussian", "post=[]", "threshold=best"])
    example = next(iter(trained.examples("train")))
    found = row.localize(
        trained.model,
        example.x,
        foreground=example.foreground,
        spacing_mm=example.spacing_mm,
        key=1,
        condition=example.condition,
    )
    assert bool(found.map.isfinite().all())
    with pytest.raises(UsageError, match="models no whole volumes"):
        sample(trained, tmp_path / "out", 1, SampleOptions(("sampler={name: ddim, steps: 2}",)))
    plain = train(tiny(root, tmp_path / "plain", "optim.steps=1"))
    with pytest.raises(ValueError, match=r"train with recipe\.reference=true"):
        row.check(load_trained(plain, which="last").model)


RECIPES = {
    "degradation": ["kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}"],
    "synthetic_anomalies": [],
    "local_noise": [],
    "inpainting": [],
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, tmp_path):
    root = write_data(tmp_path / "data", cases=6)
    words = [f"recipe={{name: {name}, atlas: true}}", *RECIPES[name], "optim.steps=2"]
    run = train(tiny(root, tmp_path / "run", *words))
    assert (run / "checkpoints").is_dir()


def test_a_modality_cycle_trains_on_two_modalities_and_goes_forth_and_back(tmp_path):
    root = write_data(tmp_path / "data", cases=6)
    recipe = "recipe={name: modality_cycle, region: {name: slabs, thickness_mm: 6, gap_mm: 6}}"
    with pytest.raises(UsageError, match=r"expected volumes with the channels 0 and 1, got 1 of"):
        train(tiny(root, tmp_path / "one", recipe, "optim.steps=1"))
    for path in sorted(root.glob("*_T1w.nii.gz")):
        (root / path.name.replace("T1w", "T2w")).write_bytes(path.read_bytes())
    words = [recipe, "data.channels=[T1w,T2w]", "optim.steps=1", "validation.every=1"]
    run = train(tiny(root, tmp_path / "run", *words, "space=wavelet"))
    trained = load_trained(run, device="cpu")
    assert trained.model.recipe == ModalityCycle(Slabs(6.0, 6.0))
    row = read_method(
        "mmccd", overrides=["sampler.steps=2", "route.count=2", "route.region=cells"]
    )
    row.check(trained.model)
    (example,) = trained.examples("validation", limit=1)
    found = row.find(trained.model, example, key=1)
    assert bool(found.map.isfinite().all())
    assert float(found.map.max()) > 0
    assert torch.equal(found.healthy[:, 1], example.x[:, 1])


def test_recipe_and_kernel_must_fit(tmp_path):
    root = write_data(tmp_path / "data", cases=6)
    with pytest.raises(UsageError, match="kernel: expected cold for the recipe degradation"):
        train(tiny(root, tmp_path / "run", "recipe.name=degradation", "optim.steps=1"))
