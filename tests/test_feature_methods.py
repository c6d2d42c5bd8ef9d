"""Methods that learn features, and what reconstructions say together, against brute force."""

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from anomaly_models import KERNEL, SHAPE, SPACING, blob, foreground, wiener
from sklearn.decomposition import PCA as Components
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from tiny_app import base, run

from volumediff.anomaly import ensemble, score
from volumediff.anomaly.fitted import pixel_classifier
from volumediff.anomaly.fitted._base import Fit
from volumediff.anomaly.fitted._source import FeatureSource
from volumediff.anomaly.fitted.fae import FAE
from volumediff.anomaly.fitted.padim import PaDiM
from volumediff.anomaly.fitted.patchcore import PatchCore, k_centers, nearest
from volumediff.anomaly.fitted.pca import PCA
from volumediff.anomaly.fitted.pixel_classifier import PixelClassifier
from volumediff.anomaly.maps.deformed import Deformed
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.calibration import lesions
from volumediff.calibration.fits import Fits
from volumediff.calibration.of_run import load_method
from volumediff.condition import Condition
from volumediff.data._fields import smooth_noise, warp
from volumediff.data.anomalies import TRAINING
from volumediff.errors import DataError, UsageError
from volumediff.features.denoiser import network_features
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.randomness import generator, key, normal, uniform
from volumediff.runs.trained import load_trained
from volumediff.samplers.ddim import DDIM
from volumediff.spaces.voxel import Voxel

__all__ = ["base", "run"]  # fixtures

INSIDE = foreground()


def log_snrs(*times):
    """Of the kernel at some times."""
    return tuple(KERNEL.schedule.log_snr(torch.tensor(times, dtype=torch.float64)).tolist())


SOURCE = FeatureSource(stride=2, log_snrs=log_snrs(0.1))
ANATOMY = 0.25 * smooth_noise((1, *SHAPE), (1.5, 1.5, 1.5), 0, "anatomy")[None]


@cache
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = UNet(1, 1, widths=(4, 8), blocks=1, groups=2)
        for p in made.parameters():  # residual blocks start as their shortcut
            torch.nn.init.normal_(p, std=0.3)
    return Model(Voxel(), KERNEL, made.eval().requires_grad_(False))


def volume(i):
    """A subject: the anatomy that all share, and noise."""
    return torch.where(INSIDE, ANATOMY + 0.02 * normal((1, 1, *SHAPE), i, "subject"), -1.0)


def example(i, **more):
    return Example(volume(i), INSIDE, SPACING, **more)


def learnt(method, count=8):
    examples = (example(i) for i in range(count))  # gone through once
    return replace(method, fit=method.learn(network(), examples, key=3))


def grid_map(method, a, e):
    return method.features.voxels(torch.as_tensor(np.asarray(a), dtype=torch.float32), e)


# --- features ------------------------------------------------------------------------------------


def test_features_are_the_encoders_stages_on_one_grid():
    e = example(0)
    fine, coarse = network_features(network(), Condition(), 0.1)(e.x)
    got = SOURCE(network(), e)
    assert got.shape == (12, 4, 6, 4)
    torch.testing.assert_close(got[:4], torch.nn.functional.avg_pool3d(fine, 2)[0])
    torch.testing.assert_close(got[4:], coarse[0])
    two = FeatureSource(stride=1, log_snrs=log_snrs(0.1, 0.4))(network(), e)
    torch.testing.assert_close(two[:4], fine[0])
    later = network_features(network(), Condition(), 0.4)(e.x)[0]
    torch.testing.assert_close(two[12:16], later[0])
    assert int(SOURCE.inside(e).sum()) == 4 * 6 * 4  # cells at the rim hold foreground, too


def test_noised_features_are_those_of_one_draw_for_all_volumes():
    e = example(0)
    noised = FeatureSource(stride=1, noise=1.0, log_snrs=log_snrs(0.3))
    alpha, sigma = (float(v) for v in KERNEL.schedule(torch.tensor([0.3], dtype=torch.float64)))
    draw = network().noise((key("features"),), (1, *SHAPE))(0)
    x = e.x + sigma / alpha * draw
    clean = FeatureSource(stride=1, log_snrs=log_snrs(0.3))
    torch.testing.assert_close(
        noised(network(), e), clean(network(), replace(e, x=x)), atol=1e-4, rtol=1e-3
    )


# --- PaDiM ---------------------------------------------------------------------------------------


def test_padim_is_the_mahalanobis_distance_at_every_position():
    method = learnt(PaDiM(features=SOURCE, dimensions=5, ridge=0.02))
    chosen = method.fit.tensors["channels"].numpy()
    assert len(set(chosen.tolist())) == 5
    f = np.stack([SOURCE(network(), example(i)).numpy()[chosen] for i in range(8)]).astype(float)
    e = example(20)
    own = SOURCE(network(), e).numpy()[chosen].astype(float)
    expected = np.zeros(own.shape[1:])
    for p in np.ndindex(*expected.shape):
        rows = f[(slice(None), slice(None), *p)]
        precision = np.linalg.inv(np.cov(rows, rowvar=False) + 0.02 * np.eye(5))
        delta = own[(slice(None), *p)] - rows.mean(0)
        expected[p] = np.sqrt(delta @ precision @ delta)
    got = method.find(network(), e, key=0).map
    torch.testing.assert_close(got, grid_map(method, expected, e), atol=1e-3, rtol=1e-3)
    small = Example(e.x[..., :-3], INSIDE[..., :-3], SPACING)
    with pytest.raises(ValueError, match="align the volume first"):
        method.find(network(), small, key=0)
    with pytest.raises(ValueError, match="expected at least two volumes, got 1"):
        method.learn(network(), [e], key=0)
    with pytest.raises(ValueError, match="align the volumes to one grid, or use patchcore"):
        method.learn(network(), [e, small], key=0)


# --- PatchCore -----------------------------------------------------------------------------------


def test_the_bank_is_the_greedy_k_center_subset():
    rows = normal((60, 7), "rows")
    first = int(uniform(5) * 60)
    chosen = [first]
    for _ in range(11):
        far = [min(float((r - rows[c]).norm()) for c in chosen) for r in rows]
        chosen.append(int(np.argmax(far)))
    assert k_centers(rows, 12, key=5).tolist() == chosen
    assert k_centers(rows, 60, key=5).tolist() == list(range(60))


def test_candidates_are_one_draw_over_all_volumes():
    few = learnt(PatchCore(features=SOURCE, candidates=50, size=50, average=1))
    rows = [SOURCE(network(), example(i)).flatten(1).T for i in range(8)]
    g = [generator(3, "candidates", i) for i in range(8)]
    ranks = [torch.rand(len(r), generator=g[i]) for i, r in enumerate(rows)]
    order = torch.cat(ranks).argsort(stable=True)[:50]
    expected = torch.cat(rows)[order]
    torch.testing.assert_close(few.fit.tensors["bank"], expected)


def test_patchcore_is_the_nearest_neighbour_distance_with_the_papers_score():
    method = learnt(PatchCore(features=SOURCE, size=40, neighbours=4))
    bank = method.fit.tensors["bank"]
    assert bank.shape == (40, 12)
    e = example(20)
    f = SOURCE(network(), e)[None]
    f = torch.nn.functional.avg_pool3d(f, 3, 1, 1, count_include_pad=False)[0]
    rows = f.flatten(1).T.numpy()
    distances, index = NearestNeighbors(n_neighbors=1).fit(bank.numpy()).kneighbors(rows)
    found = method.find(network(), e, key=0)
    expected = grid_map(method, distances.reshape(f.shape[1:]), e)
    torch.testing.assert_close(found.map, expected, atol=1e-4, rtol=1e-4)
    worst = int(distances.argmax())
    star = bank.numpy()[index[worst, 0]]
    near = np.argsort(np.linalg.norm(bank.numpy() - star, axis=1))[:4]
    e_m = np.exp(np.linalg.norm(bank.numpy()[near] - rows[worst], axis=1))
    s = (1 - np.exp(distances[worst, 0]) / e_m.sum()) * distances[worst, 0]
    reported = score.Reported()(found.map, foreground=INSIDE, errors=found.errors)
    assert reported == pytest.approx(s, rel=1e-4)
    with pytest.raises(ValueError, match="score reported: expected a method that reports errors"):
        score.Reported()(found.map, foreground=INSIDE)


def test_the_chunk_of_the_search_does_not_matter():
    rows, bank = normal((37, 12), "rows"), normal((90, 12), "bank")
    whole = nearest(rows, bank, chunk=1000)
    for chunk in (1, 5, 36):
        part = nearest(rows, bank, chunk=chunk)
        assert torch.equal(part[0], whole[0])
        assert torch.equal(part[1], whole[1])


# --- PCA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.9999999])
def test_pca_is_that_of_all_volumes_at_once(variance):
    method = learnt(PCA(features=SOURCE, variance=variance))
    rows = torch.cat([SOURCE(network(), example(i)).flatten(1).T for i in range(8)]).double()
    kept = min(Components(variance, svd_solver="full").fit(rows.numpy()).n_components_, 11)
    theirs = Components(kept, svd_solver="full").fit(rows.numpy())
    assert method.fit.tensors["components"].shape == (kept, 12)
    e = example(20)
    own = SOURCE(network(), e).flatten(1).T.numpy().astype(float)
    rest = np.linalg.norm(own - theirs.inverse_transform(theirs.transform(own)), axis=1)
    got = method.find(network(), e, key=0).map
    expected = grid_map(method, rest.reshape(4, 6, 4), e)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    assert float(got.max()) > 0


# --- FAE -----------------------------------------------------------------------------------------


def test_the_feature_autoencoder_learns_and_is_reproducible():
    kept = torch.random.get_rng_state()
    method = FAE(features=SOURCE, widths=(8,), steps=20, lr=0.01)
    one = learnt(method)
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert learnt(method).fit.digest == one.fit.digest
    early = learnt(replace(method, steps=1))
    e = example(20)
    before, after = (float(m.find(network(), e, key=0).map.mean()) for m in (early, one))
    assert after < 0.7 * before
    assert learnt(replace(method, volumes=2, steps=1)).fit.volumes == 2


# --- classifier ----------------------------------------------------------------------------------


def sick(i, **more):
    """A bright box somewhere, and its mask."""
    truth = torch.zeros_like(INSIDE)
    d, h, w = (1 + int(uniform(i, "place", axis) * (n - 5)) for axis, n in enumerate(SHAPE))
    truth[..., d : d + 3, h : h + 3, w : w + 3] = True
    return replace(example(i, truth=truth, **more), x=volume(i) + 0.6 * truth)


def test_the_classifier_is_scikit_learns():
    method = PixelClassifier(
        supervision="full", features=SOURCE, hidden=(6, 4), members=2, epochs=3
    )
    fit = method.learn(network(), [sick(i) for i in range(4)], key=3)
    method = replace(method, fit=fit)
    f = [SOURCE(network(), sick(i)) for i in range(4)]
    share = [torch.nn.functional.avg_pool3d(sick(i).truth.float(), 2)[0, 0] for i in range(4)]
    rows = []
    for wanted in (lambda s: s == 0, lambda s: s >= 0.25):
        parts = [wanted(s) for s in share]
        ranks = [torch.rand((4, 6, 4), generator=generator(3, "samples", i)) for i in range(4)]
        drawn = torch.cat([r[m] for r, m in zip(ranks, parts, strict=True)])
        found = torch.cat([v[:, m].T for v, m in zip(f, parts, strict=True)])
        rows.append(found[drawn.argsort(stable=True)])
    labels = np.repeat([0, 1], [len(r) for r in rows])
    x = torch.cat(rows)
    x = ((x - x.mean(0)) / x.std(0)).double().numpy()
    e = sick(20)
    own = SOURCE(network(), e).flatten(1).T
    own = ((own - fit.tensors["mean"]) / fit.tensors["scale"]).double().numpy()
    probability = 0
    for j in range(2):
        net = MLPClassifier((6, 4), random_state=key(3, "member", j) % 2**32)
        for _ in range(3):
            net.partial_fit(x, labels, classes=[0, 1])
        probability = probability + net.predict_proba(own)[:, 1] / 2
    got = method.find(network(), e, key=0).map
    expected = grid_map(method, probability.reshape(4, 6, 4), e)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_the_classifier_wants_masks():
    method = PixelClassifier(supervision="self", features=SOURCE)
    with pytest.raises(ValueError, match="got 0 volumes with 0 lesion cells"):
        method.learn(network(), [example(0)], key=0)
    with pytest.raises(ValueError, match="expected supervision full"):
        PixelClassifier()
    few = PixelClassifier(supervision="self", features=SOURCE, samples=3, members=1, epochs=1)
    assert pixel_classifier.SHARE == 0.25
    assert few.learn(network(), [sick(0), sick(1)], key=0).volumes == 2


# --- reconstructions together --------------------------------------------------------------------


def test_the_distance_is_that_of_the_full_covariance_of_every_slice():
    x, volumes = normal((1, 2, 3, 4, 2), "x"), normal((5, 2, 3, 4, 2), "volumes")
    inside = normal((1, 1, 3, 4, 2), "inside") > -0.7
    expected = np.zeros((3, 4, 2))
    for w in range(2):
        m = np.repeat(inside[0, :, ..., w].numpy(), 2, axis=0)
        rows = np.stack([v[..., w].numpy()[m] for v in volumes]).astype(float)
        covariance = np.cov(rows, rowvar=False) + 0.03 * np.eye(int(m.sum()))
        delta = x[0, ..., w].numpy()[m] - rows.mean(0)
        each = np.zeros((2, 3, 4))
        each[m] = np.linalg.inv(covariance) @ delta * delta
        expected[..., w] = np.sqrt(np.abs(each.sum(0)))
    got = ensemble.Mahalanobis(ridge=0.03).distance(x, volumes, foreground=inside)
    np.testing.assert_allclose(got[0, 0].numpy(), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="expected at least 2 runs"):
        ensemble.Mahalanobis(seeds=1)


def test_the_merged_map_is_weighed_by_the_distance(monkeypatch):
    seen = []
    own = ensemble.Mahalanobis.distance

    def spy(self, x, volumes, *, foreground):
        seen.append((x, volumes))
        return own(self, x, volumes, foreground=foreground)

    monkeypatch.setattr(ensemble.Mahalanobis, "distance", spy)
    row = Localizer(
        route=Diffuse(level=0.5), sampler=DDIM(steps=1), ensemble=ensemble.MeanEnsemble(seeds=3)
    )
    plain = row.find(wiener(), example(0), key=1)
    row = replace(row, ensemble=ensemble.Mahalanobis(seeds=3))
    weighed = row.find(wiener(), example(0), key=1)
    ((x, volumes),) = seen
    assert torch.equal(x, volume(0))
    assert volumes.shape == (3, 1, *SHAPE)
    torch.testing.assert_close(volumes.mean(0, keepdim=True), weighed.healthy)
    factor = own(ensemble.Mahalanobis(seeds=3), x, volumes, foreground=INSIDE)
    torch.testing.assert_close(weighed.map, plain.map * factor)


# --- deformation ---------------------------------------------------------------------------------


def bent(displacement, *, lesion=0.0):
    """Mean residual in the background and in a lesion, before and after the deformation."""
    grid = (24, 24, 20)
    moving = 0.3 * smooth_noise((1, *grid), (3.0, 3.0, 3.0), 1, "texture")
    inside = torch.zeros((1, 1, *grid), dtype=torch.bool)
    inside[..., 3:-3, 3:-3, 3:-3] = True
    place = torch.zeros_like(inside)
    place[..., 9:13, 10:14, 8:12] = True
    x = (warp(moving, displacement(grid)) + lesion * place[0])[None]
    found = []
    for block in (L1(), Deformed(L1())):
        a = block(x, moving[None], foreground=inside, spacing_mm=(2.0, 2.0, 2.0))
        assert not bool(a[~inside].any())
        found.append((float(a[inside & ~place].mean()), float(a[place].mean())))
    return found


def shifted(grid):
    return torch.tensor([0.8, 0.0, -0.5]).view(3, 1, 1, 1).expand(3, *grid)


def warped(grid):
    return 0.6 * smooth_noise((3, *grid), (6.0, 6.0, 6.0), 2, "warp")


@pytest.mark.parametrize("displacement", [shifted, warped])
def test_a_small_displacement_is_forgiven_and_a_lesion_is_not(displacement):
    before, after = bent(displacement)
    assert after[0] < 0.2 * before[0]
    before, after = bent(displacement, lesion=0.5)
    assert after[0] < 0.3 * before[0]
    assert after[1] > 0.75 * before[1]


def test_the_displacement_is_bounded_and_reproducible():
    def far(grid):
        return torch.tensor([3.0, 0.0, 0.0]).view(3, 1, 1, 1).expand(3, *grid)

    before, after = bent(far)
    assert after[0] > 0.1 * before[0], "a displacement of 6 mm is more than the limit of 4 mm"
    assert bent(warped) == bent(warped)


# --- stored fits ---------------------------------------------------------------------------------


def test_a_fit_is_stored_and_made_again_for_other_weights_or_arguments(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    trained = load_trained(tmp_path / "run", device="cpu")
    row = PaDiM(features=SOURCE, dimensions=4)
    said = []
    first = row.bind(Fits(trained, said.append))
    folder = tmp_path / "run" / "calibration" / "fits"
    files = list(folder.glob("padim-*"))
    assert len(files) == len(said) == 1
    learn = PaDiM.learn
    with monkeypatch.context() as patch:
        patch.setattr(PaDiM, "learn", lambda *_, **__: pytest.fail("fitted again"))
        again = replace(row, score=score.Max()).bind(Fits(trained))
    assert again.fit.digest == first.fit.digest
    for name, tensor in first.fit.tensors.items():
        assert torch.equal(again.fit.tensors[name], tensor)
    assert PaDiM.learn is learn
    assert first.fingerprint == replace(row, fit=again.fit).fingerprint != row.fingerprint
    row.bind(Fits(replace(trained, digest="0" * 64)))
    replace(row, dimensions=3).bind(Fits(trained))
    assert len(list(folder.glob("padim-*"))) == 3
    files[0].write_bytes(b"no")
    with pytest.raises(DataError, match="damaged: its header is cut"):
        row.bind(Fits(trained))
    with pytest.raises(UsageError, match="expected volumes with masks of lesions, got 0 volumes"):
        load_method(trained, "diffusion_features")


def test_a_stored_fit_is_verified(tmp_path):
    fit = Fit({"a": normal((3, 2), 1), "n": torch.arange(3)}, 5)
    path, owner = tmp_path / "fits" / "a.safetensors", {"method": "padim", "weights": "1"}
    fit.save(path, owner=owner)
    again = Fit.load(path, owner=owner)
    assert repr(again) == repr(fit)
    assert again.volumes == 5
    assert torch.equal(again.tensors["a"], fit.tensors["a"])
    with pytest.raises(DataError, match=r"expected a fit for .*'weights': '2'"):
        Fit.load(path, owner={**owner, "weights": "2"})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="does not match its SHA-256"):
        Fit.load(path, owner=owner)
    other = Fit({"a": fit.tensors["a"], "n": torch.arange(3) + 1}, 5)
    assert other.digest != fit.digest


def test_lesions_to_learn_from_are_those_of_the_training_family(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    trained = load_trained(tmp_path / "run", device="cpu")
    words = ["fitted.members=1", "fitted.epochs=1", "fitted.features.stride=1"]
    families = []
    own = lesions.insert

    def spy(*arguments, family, **options):
        families.append(family.shape)
        return own(*arguments, family=family, **options)

    monkeypatch.setattr(lesions, "insert", spy)
    method = load_method(trained, "diffusion_features_synthetic", words)
    assert set(families) == {TRAINING.shape}
    assert method.fit.volumes == len(trained.cases("train"))


# --- all of them find a planted lesion -----------------------------------------------------------

LESION = blob() & INSIDE
# Of 12 features of random weights 0.995 keeps nearly all; the others are slow as they ship.
SMALL = {
    "pca_features": {"variance": 0.9},
    "fae": {"steps": 100},
    "diffusion_features": {"members": 1},
    "diffusion_features_synthetic": {"members": 1},
}


@pytest.mark.parametrize(
    "name",
    [
        *("padim", "patchcore", "pca_features", "fae"),
        *("diffusion_features", "diffusion_features_synthetic"),
        *("mahalanobis", "morphaeus"),
    ],
)
def test_a_planted_lesion_ranks_above_the_background(name):
    x = volume(20) + 0.7 * LESION
    method = replace(read_method(name), post=())
    if isinstance(method, Localizer):
        model = wiener(mean=torch.where(INSIDE, ANATOMY, -1.0), std=0.1, correlation=1.0)
        if method.sampler.steps > 5:
            method = replace(method, sampler=replace(method.sampler, steps=5))
    else:
        model = network()
        stride = 2 if isinstance(method, FAE) else 1
        method = replace(method, features=replace(method.features, stride=stride))
        method = replace(method, **SMALL.get(name, {}))
        learns = method.supervision in ("full", "self")
        seen = [sick(i) if learns else example(i) for i in range(8)]
        method = replace(method, fit=method.learn(model, seen, key=0))
    found = method.find(model, Example(x, INSIDE, SPACING), key=0)
    auroc = roc_auc_score(LESION[INSIDE].numpy(), found.map[INSIDE].numpy())
    assert auroc > 0.8, auroc
