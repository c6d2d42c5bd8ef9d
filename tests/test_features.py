"""Features of denoisers: what is watched is what the network computes, and where it stands."""

import pytest
import torch
import torch.nn.functional as F
from anomaly_models import KERNEL, SPACES

from volumediff.condition import Condition
from volumediff.features.denoiser import feature_maps, feature_rows, seen_levels
from volumediff.features.grids import FeatureMap, feature_map, upright
from volumediff.features.taps import tap_channels, tap_names, watched
from volumediff.kernels.cold import Cold
from volumediff.kernels.gaussian import Gaussian
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.randomness import key, normal
from volumediff.spaces.voxel import Voxel

SHAPE = (8, 12, 8)
NETWORKS = {
    "unet": (UNet, {"blocks": 2, "groups": 2, "attention_levels": (1,)}),
    "pseudo3d": (Pseudo3D, {"blocks": 1, "groups": 2}),
    "guided": (Guided, {"blocks": 1}),
    "guided_convolutions": (Guided, {"blocks": 1, "resampling": "convolution"}),
    "monai_unet": (MonaiUNet, {"blocks": 1, "groups": 2, "head_size": 4}),
}


def model_of(network="unet", space="voxel", *, widths=(4, 8), **more):
    made_of, arguments = NETWORKS[network]
    where = Voxel() if space == "voxel" else SPACES[space]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        k = where.channels(1)
        made = made_of(k, k, widths=widths, **{**arguments, **more})
        for p in made.parameters():  # residual blocks start as their shortcut
            torch.nn.init.normal_(p, std=0.3)
    return Model(where, KERNEL, made.eval().requires_grad_(False))


def volume(i=0, shape=SHAPE):
    return normal((1, 1, *shape), i, "volume")


def centres(shape):
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def held(model, z_t, t, names):
    """Every level by hooks of the test's own, in a pass that nothing ends."""
    found, taps = {}, model.network.taps
    handles = [
        taps[n].module.register_forward_hook(lambda m, i, o, n=n: found.update({n: o.clone()}))
        for n in names
    ]
    out = model.denoise(z_t, torch.tensor([t], dtype=torch.float64)).x0
    for handle in handles:
        handle.remove()
    return found, out


# --- taps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_every_level_is_named_once_and_has_its_channels(network):
    model = model_of(network)
    names = tap_names(model.network, ["decoder", "middle", "encoder"])
    assert names == ("encoder.0", "encoder.1", "middle", "decoder.1", "decoder.0")
    found, _ = held(model, model.encode(volume()), 0.3, names)
    assert tap_channels(model.network, names) == tuple(found[n].shape[1] for n in names)
    grids = [tuple(found[n].shape[2:]) for n in names]
    d = SHAPE[0] if network == "pseudo3d" else SHAPE[0] // 2
    low = (d, SHAPE[1] // 2, SHAPE[2] // 2)
    assert grids == [SHAPE, low, low, low, SHAPE]


@pytest.mark.parametrize("network", NETWORKS)
def test_watching_changes_nothing_and_sees_what_the_network_computes(network):
    model = model_of(network)
    z, t = model.encode(volume()), 0.3
    names = tap_names(model.network, ["encoder", "middle", "decoder"])
    time = torch.tensor([t], dtype=torch.float64)
    before = model.denoise(z, time).x0
    expected, during = held(model, z, t, names)
    seen = {}
    seen_levels(model, z, t, Condition(), names, lambda n, level: seen.update({n: level.clone()}))
    assert list(seen) == list(names), "in the order in which they run"
    assert all(torch.equal(seen[n], expected[n]) for n in names)
    assert torch.equal(before, during)
    assert torch.equal(before, model.denoise(z, time).x0)
    assert not any(part._forward_hooks for part in model.modules())


def test_the_pass_ends_at_the_last_level_that_is_asked_for():
    model, ran = model_of(), []
    model.network.hourglass.decoder[0][0].register_forward_hook(lambda *_: ran.append(1))
    see = lambda *_: None  # noqa: E731
    seen_levels(model, model.encode(volume()), 0.3, Condition(), ["encoder.0"], see)
    assert not ran
    seen_levels(model, model.encode(volume()), 0.3, Condition(), ["decoder.0"], see)
    assert ran


def test_hooks_go_where_a_run_fails():
    model = model_of()
    part = model.network.hourglass.stem

    def run():
        part(volume())
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        watched({"stem": part, "head": model.network.hourglass.head}, run, lambda *_: None)
    assert not part._forward_hooks


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["decodr"], "expected some of encoder.0, encoder.1, middle, decoder.1, .* got decodr"),
        (["encoder.7"], "got encoder.7"),
        (["decoder", "decoder.0"], "levels that differ, got decoder, decoder.0"),
        ([], "levels that differ, got none"),
    ],
)
def test_levels_that_are_not_there_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        tap_names(model_of().network, wanted)


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (4, 1, 2)])
def test_features_at_voxels_are_those_of_dense_interpolation(stride):
    shape = (8, 12, 4)
    grid = [n // s for n, s in zip(shape, stride, strict=True)]
    level = normal((1, 5, *grid), "level")
    got = FeatureMap(level[0].movedim(0, -1).contiguous(), stride).at(centres(shape))
    dense = F.interpolate(level, size=shape, mode="trilinear", align_corners=False)
    torch.testing.assert_close(got, dense[0].flatten(1).T, rtol=1e-5, atol=1e-5)
    # the library's points, whose coordinates are relative to the size and run w, h, d
    where = (2 * centres(shape) + 1) / torch.tensor(shape) - 1
    sampled = F.grid_sample(
        level, where.flip(-1)[None, None, None], padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(got, sampled[0, :, 0, 0].T, rtol=1e-5, atol=1e-5)


def test_points_between_voxels_are_interpolated():
    rows = torch.arange(4.0).view(4, 1, 1, 1)
    got = FeatureMap(rows, (2, 1, 1)).at(torch.tensor([[0.5, 0, 0], [1.5, 0, 0], [7, 0, 0]]))
    assert got[:, 0].tolist() == [0.0, 0.5, 3.0]


def test_half_precision_is_interpolated_in_float32():
    level = normal((3, 3, 3, 2), "level").bfloat16()
    points = torch.tensor([[0.3, 1.2, 2.0], [1.7, 0.1, 0.4]])
    got = FeatureMap(level, (1, 1, 1)).at(points)
    assert got.dtype == torch.float32
    assert torch.equal(got, FeatureMap(level.float(), (1, 1, 1)).at(points))


@pytest.mark.parametrize("space", SPACES)
def test_every_space_has_features_with_the_axes_of_the_volume(space):
    network = "pseudo3d" if space == "slices" else "unet"
    model = model_of(network, space)
    names = tap_names(model.network, ["encoder", "decoder"])
    x = volume()
    maps = feature_maps(model, x, Condition(), levels=["encoder", "decoder"], t=0.2)
    z = model.encode(x)
    time = torch.tensor([0.2], dtype=torch.float64)
    noise = model.noise((key("features"),), (1, *SHAPE))(0)
    expected, _ = held(model, model.kernel.corrupt(z, time, noise), 0.2, names)
    for name, found in zip(names, maps, strict=True):
        level = upright(model.space, expected[name])
        assert torch.equal(found.values, level[0].movedim(0, -1))
        dense = F.interpolate(level, size=SHAPE, mode="trilinear", align_corners=False)
        torch.testing.assert_close(
            found.at(centres(SHAPE)), dense[0].flatten(1).T, rtol=1e-5, atol=1e-5
        )
    # a corner that changes moves the features there
    y = x.clone()
    y[..., :2, 10:, 6:] += 3.0
    other = feature_maps(model, y, Condition(), levels=["decoder.0"], t=0.2)[0]
    change = (other.at(centres(SHAPE)) - maps[-1].at(centres(SHAPE))).square().sum(1)
    d, h, w = (float((change * p).sum() / change.sum()) for p in centres(SHAPE).T)
    assert d < 3.4
    assert h > 6.5
    assert w > 3.55  # even would be 3.5


def test_strides_are_whole_at_any_size():
    space = SPACES["wavelet"]()
    assert feature_map(space, torch.zeros(1, 2, 2, 1, 3), (5, 3, 9)).stride == (4, 4, 4)
    assert feature_map(space, torch.zeros(1, 2, 3, 2, 5), (5, 3, 9)).stride == (2, 2, 2)
    assert feature_map(Voxel(), torch.zeros(1, 2, 5, 2, 3), (5, 3, 9)).stride == (1, 2, 4)


def differences(norm):
    """How features of a crop differ from those of the volume, far from its border."""
    model = model_of(norm=norm, attention_levels=(), blocks=1)
    z = volume(1, (72, 8, 8))
    points = centres((4, 8, 8)) + torch.tensor([34.0, 0, 0])  # 25 planes reach the last level
    found = []
    for first, last in ((0, 72), (6, 66)):
        rows = []

        def see(name, level, first=first, last=last, rows=rows):
            inside = feature_map(model.space, level, (last - first, 8, 8))
            rows.append(inside.at(points - torch.tensor([float(first), 0, 0])))

        names = tap_names(model.network, ["encoder", "middle", "decoder"])
        seen_levels(model, z[:, :, first:last], 0.3, Condition(), names, see)
        found.append(torch.cat(rows, 1))
    return float((found[0] - found[1]).abs().max() / found[0].std())


def test_a_crop_has_the_features_of_the_volume_where_nothing_is_normalized_over_it():
    assert differences("voxel") < 1e-5
    assert differences("group") > 1e-3, "statistics over the volume are those of another volume"


# --- times and noise -----------------------------------------------------------------------------


def test_rows_are_read_level_by_level_and_time_by_time():
    model, x, points = model_of(), volume(), centres(SHAPE)[::7]
    told = {"levels": ["encoder.1", "decoder"], "points": points}
    rows = feature_rows(model, x, Condition(), times=(0.2, 0.6), **told)
    assert rows.shape == (len(points), 2, 8 + 8 + 4)
    for i, t in enumerate((0.2, 0.6)):
        maps = feature_maps(model, x, Condition(), levels=told["levels"], t=t)
        assert torch.equal(rows[:, i], torch.cat([m.at(points) for m in maps], 1))
    assert not torch.allclose(rows[:, 0], rows[:, 1])
    some = feature_rows(model, x, Condition(), times=(0.2, 0.6), **{**told, "points": points[3:9]})
    assert torch.equal(some, rows[3:9]), "points do not see each other"


def test_the_noise_is_the_same_for_all_volumes(monkeypatch):
    model, seen = model_of(), []
    corrupt = Gaussian.corrupt

    def spy(self, z, t, noise):
        seen.append(noise)
        return corrupt(self, z, t, noise)

    monkeypatch.setattr(Gaussian, "corrupt", spy)
    told = {"levels": ["middle"], "times": (0.2, 0.4), "points": centres((1, 1, 1))}
    for i in range(2):
        feature_rows(model, volume(i), Condition(), **told)
    assert len(seen) == 4
    assert all(torch.equal(noise, seen[0]) for noise in seen)
    assert 0.8 < float(seen[0].std()) < 1.2


def test_restoring_models_see_the_volume_itself():
    model = model_of()
    model.kernel = Cold(KERNEL.schedule)
    points = centres(SHAPE)[:5]
    got = feature_rows(
        model, volume(), Condition(), levels=["decoder.0"], times=(0.1,), points=points
    )
    expected, _ = held(model, model.encode(volume()), 0.1, ["decoder.0"])
    assert torch.equal(got[:, 0], expected["decoder.0"][0].flatten(1).T[:5])


def test_models_with_classes_are_asked_as_healthy_ones():
    model, seen = model_of(classes=2), []
    forward = model.network.forward
    model.network.forward = lambda z, t, c: seen.append(c.label) or forward(z, t, c)
    feature_rows(
        model, volume(), Condition(), levels=["middle"], times=(0.3,), points=centres((1, 1, 1))
    )
    assert seen[0].tolist() == [0]


def test_recomputation_and_layout_change_nothing():
    plain, other = model_of(), model_of()
    MemoryPolicy(checkpoint=True, channels_last=True).apply(other)
    told = {"levels": ["encoder", "decoder"], "times": (0.3,), "points": centres(SHAPE)[::11]}
    rows = [feature_rows(m, volume(), Condition(), **told) for m in (plain, other)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_kept_does_not_change_while_the_network_goes_on(network):
    """Guided networks work in place on what their blocks end with."""
    model, x = model_of(network), volume()
    names = tap_names(model.network, ["encoder", "middle", "decoder"])
    maps = feature_maps(model, x, Condition(), levels=names, t=0.3)
    noise = model.noise((key("features"),), (1, *SHAPE))(0)
    z_t = model.kernel.corrupt(x, torch.tensor([0.3], dtype=torch.float64), noise)
    expected, _ = held(model, z_t, 0.3, names)
    for name, found in zip(names, maps, strict=True):
        assert torch.equal(found.values, expected[name][0].movedim(0, -1)), name
