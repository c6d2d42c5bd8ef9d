"""Every row of configs/anomaly, found in the folder, in every space."""

import re
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from anomaly_models import (
    KERNEL,
    SCHEDULE,
    SHAPE,
    SPACES,
    SPACING,
    States,
    foreground,
    posterior,
    states,
    tiny_autoencoder,
    tiny_binary,
)

from volumediff import config
from volumediff.anomaly import method_files
from volumediff.anomaly.baselines import Baseline
from volumediff.anomaly.fitted._base import FIT, Fitted
from volumediff.anomaly.fitted.atlas_deformed import AtlasDeformed
from volumediff.anomaly.fitted.atlas_z import AtlasZ
from volumediff.anomaly.maps.perceptual import Perceptual
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.fusion import Fusion
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.methods.rebuilder import Rebuilder
from volumediff.anomaly.reconstruction import Restoration
from volumediff.anomaly.routes.cycle import Cycle
from volumediff.anomaly.routes.flow_scan import FlowScan
from volumediff.anomaly.routes.grid import GridRoute
from volumediff.anomaly.routes.masks import Masks
from volumediff.anomaly.routes.shrink import Shrink
from volumediff.calibration import collect_maps
from volumediff.condition import Condition
from volumediff.config import config_path, load, shipped
from volumediff.data.corruptions.coarse import Coarse
from volumediff.data.corruptions.disentangled import Disentangled
from volumediff.data.corruptions.foreign_patch import ForeignPatch
from volumediff.data.corruptions.natural_patch import NaturalPatch
from volumediff.data.corruptions.pasted import Pasted
from volumediff.data.corruptions.poisson_patch import PoissonPatch
from volumediff.data.corruptions.texture_patch import TexturePatch
from volumediff.data.regions import Cells
from volumediff.documentation.method_matrix import inventory, localization
from volumediff.errors import UsageError
from volumediff.kernels.cold import Cold
from volumediff.kernels.discrete import Discrete
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.noise import GaussianNoise, Pyramid, Simplex
from volumediff.recipes.degradation import Degradation
from volumediff.recipes.healthy import Healthy
from volumediff.recipes.inpainting import Inpainting
from volumediff.recipes.local_noise import LocalNoise
from volumediff.recipes.modality_cycle import ModalityCycle
from volumediff.recipes.pseudo_healthy import PseudoHealthy
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.spaces.latent import Latent

ROWS = shipped("anomaly")
# Small enough for 8 voxels.
FIELDS = {GaussianNoise: GaussianNoise(), Simplex: Simplex(2, wavelength=4.0), Pyramid: Pyramid(2)}
# Where no checkpoint of a pipeline can serve a row.
LATENT = "got latents, which are trained with white noise"
IMPOSSIBLE = {(row, "latent"): LATENT for row in ("anoddpm", "andi", "cddpm")}
BITS = "expected a space of bits"
IMPOSSIBLE |= {("bernoulli", space): BITS for space in ("voxel", "wavelet", "slices")}
DETECTORS = ("fpi", "pii", "nsa", "draem", "synthetic", "synthstroke")
MAPS = "got latents, whose autoencoder was made for volumes"
IMPOSSIBLE |= {(name, "latent"): MAPS for name in DETECTORS}
RESTORED = (ForeignPatch, Disentangled, PoissonPatch, Coarse)
DETECTED = (ForeignPatch, PoissonPatch, NaturalPatch, TexturePatch)
# What checkpoints there are.
KINDS = [
    {},
    {"classes": 2},
    {"field": Simplex},
    {"field": Pyramid},
    {"stages": True},
    {"recipe": Inpainting},
    {"recipe": LocalNoise},
    {"recipe": partial(LocalNoise, mask_loss=0.1)},
    {"recipe": ModalityCycle},
    {"bits": True},
    {"recipe": partial(Healthy, reference=True), "field": Simplex},
    *({"recipe": partial(Degradation, c()), "cold": True} for c in RESTORED),
    *({"recipe": partial(SyntheticAnomalies, c())} for c in DETECTED),
    {"recipe": partial(SyntheticAnomalies, Pasted(Path("MASKS")))},
    {"recipe": PseudoHealthy},
]
# Rows of autoencoders need a run of one, or of latents with one of the right kind.
REBUILT = {"cevae": "context_vae", "fanogan": "fanogan", "ra": "soft_intro_vae"}
REBUILT |= {"dae": "denoising", "ltm": "token_prior", "vae": None}
REBUILT |= {"vae_restoration": "variational autoencoder"}
for _row, _kind in REBUILT.items():
    for _space in ("voxel", "wavelet", "slices"):
        IMPOSSIBLE[_row, _space] = f"expected the run of an autoencoder.*space {_space}"
    if _kind:
        IMPOSSIBLE[_row, "latent"] = f"expected .*{_kind}.* got .*kl"
# The run of its first pass, and that of its residual segmenter, are not given here.
LENT = {("phanes", space): "first.run: expected the folder of the run" for space in SPACES}
LENT |= {("sadm", space): "map.run: expected the run of a residual segmenter" for space in SPACES}
INSIDE = foreground()
# What rows with a region of the caller's redraw; the others do not look at it.
REGION = torch.zeros_like(INSIDE)
REGION[..., 3:5, 3:5, 3:5] = True
LESION = torch.zeros_like(INSIDE)
LESION[..., 4:6, 4:6, 4:6] = True


@cache
def model_in(
    space, *, classes=0, field=GaussianNoise, stages=False, recipe=Healthy, cold=False, bits=False
):
    made = SPACES[space]() if space != "latent" or not bits else Latent(tiny_binary())
    if space == "latent" and recipe is ModalityCycle:
        made = Latent(tiny_autoencoder(channels=2))
    if stages:
        return unet(made)
    prior = {"means": (-0.2, 0.3), "classes": 2} if classes else {}
    model = states(made, **prior)
    if recipe().mask_loss:
        model.network = Noisy()
    model.noise_field = FIELDS[field]
    model.recipe = recipe()
    if cold:
        model.kernel = Cold(SCHEDULE)
    if bits:
        model.kernel = Discrete(SCHEDULE)
    return model


def unet(space):
    """A network with an encoder to take features of, as it starts to train."""
    k = space.channels(1)
    network = UNet(k, k, widths=(4, 8), blocks=1, groups=2)
    return Model(space, KERNEL, network).eval().requires_grad_(False)


class Noisy(States):
    """Takes what is far from the mean for noise."""

    def forward(self, z_t, t, condition=None):
        odds = z_t.abs().mean(1, keepdim=True) - 0.2
        return torch.cat([super().forward(z_t, t, condition), odds], 1)


def volume(i, channels=1):
    g = torch.Generator().manual_seed(100 + i)
    return 0.2 * torch.randn((1, channels, *SHAPE), generator=g)


def local(method, model, i, calibration, condition):
    return method.localize(
        model,
        volume(i, channels_of(model)),
        foreground=INSIDE,
        spacing_mm=SPACING,
        key=i,
        condition=condition,
        calibration=calibration,
        region=REGION,
    )


def channels_of(model):
    """A modality cycle is between two."""
    return 2 if isinstance(model, Model) and isinstance(model.recipe, ModalityCycle) else 1


def given(method):
    """The method with a classifier, where it borrows one."""
    return method.bind(lambda r: posterior() if r.loan.kind == "classifier" else None)


def refusal(method, model):
    try:
        method.check(model)
    except ValueError as error:
        return str(error)
    return ""


def quick(method):
    """The row with few steps: what is tested is that the blocks fit, not what they find."""
    if isinstance(method, Fitted) and hasattr(method, "features"):
        small = {"steps": 2, "volumes": 3, "members": 1, "epochs": 1, "size": 20}
        taken = {name: n for name, n in small.items() if name in {f.name for f in fields(method)}}
        features = replace(method.features, stride=2)
        return replace(method, features=features, **taken)
    if isinstance(method, Rebuilder) and isinstance(method.reconstruction, Restoration):
        return replace(method, reconstruction=replace(method.reconstruction, steps=2))
    if not isinstance(method, Localizer):
        return method
    sampler = method.sampler and replace(method.sampler, steps=2)
    route = method.route
    if isinstance(route, GridRoute):  # a box is larger than the tests' volumes
        route = replace(route, box_mm=14.0, overlap_mm=2.0)
    if isinstance(route, Masks | Cycle):
        route = replace(route, count=2, region=Cells(0.5, 6.0))
    if isinstance(route, Shrink):
        route = replace(route, passes=2)
    if isinstance(route, FlowScan):
        route = replace(route, log_snrs=route.log_snrs[::4])
    ensemble = replace(method.ensemble, log_snrs=method.ensemble.log_snrs[:2])
    first = method.first and quick(method.first)
    return replace(method, route=route, sampler=sampler, first=first, ensemble=ensemble)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_in_every_space_or_says_why_not(name, space):
    method = quick(method_files.read_method(name))
    if given(method) is not method:
        reason = refusal(method, model_in(space))
        assert re.search("classifier: expected .*, got none; give its run", reason)
        method = given(method)
        assert not refusal(method, model_in(space))
    reasons = [refusal(method, model_in(space, **kind)) for kind in KINDS]
    for reason in filter(None, reasons):
        assert re.search(r"expected .*got .*; (use|train)|expected .*got one without", reason)
        assert "\n" not in reason
    why = (IMPOSSIBLE | LENT).get((name, space))
    if why is not None:
        assert all(reasons)
        assert any(re.search(why, reason) for reason in reasons)
        return
    assert "" in reasons, reasons
    model = model_in(space, **KINDS[reasons.index("")])
    c = channels_of(model)
    examples = [Example(volume(i, c), INSIDE, SPACING, region=REGION) for i in range(5)]
    if isinstance(method, Fitted):
        learns = method.supervision in ("full", "self")
        seen = [replace(e, truth=LESION) for e in examples] if learns else examples
        with pytest.raises(ValueError, match="expected statistics fitted on a run's volumes"):
            method.residual(model, examples[0], key=0)
        method = replace(method, fit=method.learn(model, iter(seen), key=0))
    if isinstance(method, Fusion):

        def provide(request):
            if request.loan.kind == FIT.kind:
                return request.component.learn(model, iter(examples), key=0)
            return None

        method = method.bind(provide)
    calibration = collect_maps.fit(method, model, examples, seed=0)
    sick = [Example(volume(9, c), INSIDE, SPACING, truth=LESION, region=REGION)]
    calibration = collect_maps.validate(calibration, method, model, sick, seed=0)
    got = local(method, model, 20, calibration, Condition())
    assert got.map.shape == (1, 1, *SHAPE)
    assert bool(torch.isfinite(got.map).all())
    lowest = min(0.0, float(got.map[INSIDE].min()))
    assert bool((got.map[~INSIDE] == lowest).all()), "air is never the most abnormal"
    assert got.mask is not None
    assert not bool(got.mask[~INSIDE].any())
    assert got.pseudo_healthy is None or bool(torch.isfinite(got.pseudo_healthy).all())
    values = [torch.isfinite(v.float()).all() for v in got.trace.values()]
    assert all(bool(v) for v in values)
    # the score and the calibration's scores are of one kind
    assert min(calibration.scores) - 1e3 < got.score < max(calibration.scores) + 1e3
    if isinstance(method, Baseline):
        none = local(method, None, 20, calibration, Condition())
        assert torch.equal(none.map, got.map)


def test_the_matrix_of_rows_and_pipelines_is_the_one_that_runs():
    spaces = {"patch": "voxel", "wavelet": "wavelet", "latent": "latent", "pseudo3d": "slices"}
    found = inventory()
    matrix = found["localization"]
    assert set(matrix) == set(ROWS)
    assert all(set(cells) == {*spaces, "autoencoder"} for cells in matrix.values())
    refused = {
        (row, spaces[pipeline])
        for row, cells in matrix.items()
        for pipeline, text in cells.items()
        if pipeline in spaces and text != "ok"
    }
    assert refused == set(IMPOSSIBLE)
    assert "expected gaussian in a latent space" in matrix["andi"]["latent"]
    served = {row for row, cells in matrix.items() if cells["autoencoder"] == "ok"}
    kinds = (Rebuilder, Baseline, AtlasZ, AtlasDeformed)
    assert served == {r for r in ROWS if isinstance(method_files.read_method(r), kinds)}
    assert "got one of the autoencoder vae" in matrix["ddpm"]["autoencoder"]
    assert found["localization needs"]["anoddpm"] == ["noise=simplex"]
    assert found["localization needs"]["anofpdm"] == ["recipe=class_conditional"]
    assert found["localization needs"]["ddpm"] == []
    assert found["localization needs"]["cevae"] == ["context_vae_64"]
    assert found["localization needs"]["phanes"] == ["first.run=soft_intro_vae_64"]
    assert found["localization needs"]["sadm"] == ["map.run=siamese_64"]
    assert found["localization needs"]["wolleb"] == ["--classifier"]
    bits = found["localization needs"]["bernoulli"]
    assert bits == ["kernel=discrete", "space.autoencoder=binary"]
    assert f"{BITS} for discrete, got wavelet" in matrix["bernoulli"]["wavelet"]


def test_a_row_that_nothing_serves_has_its_reason_in_the_matrix(monkeypatch):
    row = replace(method_files.read_method("features"), map=Perceptual(of="autoencoder"))
    monkeypatch.setattr(method_files, "read_method", lambda name: row)
    one = {"anomaly": ["ddpm"]}
    monkeypatch.setattr(config, "shipped", lambda folder: one.get(folder) or shipped(folder))
    cells = localization.__wrapped__()["ddpm"]
    assert cells["latent"] == "ok"
    assert "expected a latent space with an autoencoder, got voxel" in cells["patch"]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_what_it_needs_and_finds(name):
    tree = load(config_path("anomaly", name))
    assert {"supervision", "scope", "threshold", "score"} <= set(tree)
    method = method_files.read_method(name)
    assert method.supervision == tree["supervision"]
    assert len(method.scope) > 5


def test_the_methods_of_the_first_release_are_there():
    wanted = {"ddpm", "ddim_inversion", "cfg_inversion", "autoddpm", "thor", "scan"}
    wanted |= {"anoddpm", "andi", "pddpm", "ssim_ensemble", "graham_ood", "itermask3d", "anofpdm"}
    wanted |= {"ddib", "diff_scm", "class_contrast", "healthy_inpainting", "inpaint_given"}
    wanted |= {"padim", "patchcore", "pca_features", "fae", "mahalanobis", "morphaeus"}
    wanted |= {"diffusion_features", "diffusion_features_synthetic"}
    wanted |= {"sadm", "wolleb", "wolleb_ddpm", "hu", "saliency", "dif_fuse", "pinaya"}
    assert wanted | {"intensity", "smoothing", "atlas", "prevalence"} <= set(ROWS)


def test_a_row_with_labels_refuses_a_model_without():
    method = method_files.read_method("cfg_inversion")
    with pytest.raises(ValueError, match="guidance classifier_free: expected a class-conditional"):
        method.check(model_in("voxel"))
    method.check(model_in("voxel", classes=2))


def test_rows_compose(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# test\n"
        "first: ddpm\n"
        "route: {name: diffuse, level: 0.1}\n"
        "editing: {name: stitch, threshold: 0.2}\n"
        "sampler: {name: ddim, steps: 3}\n"
        "map: {name: product, maps: [l1, {name: saturated, map: l2, quantile: 0.5}]}\n"
        "post: [{name: smooth, sigma_mm: 1}, erode]\n"
    )
    method = method_files.read_method(
        str(path), overrides=["sampler.steps=5", "editing.resampling=2"]
    )
    assert isinstance(method, Localizer)
    assert method.first == method_files.read_method("ddpm")
    assert method.sampler.steps == 5
    assert method.editing.resampling == 2
    assert [type(p).__name__ for p in method.post] == ["Smooth", "Erode"]
    assert method.map.maps[1].quantile == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("route: identity\nnoise: {name: simplex}", "noise: expected a name, .*the checkpoint's"),
        ("reconstruction: single_pas", "reconstruction.name = 'single_pas'.*mean 'single_pass'"),
        ("reconstruction: single_pass\nsampler: ddim", "sampler: no key of a method; "),
        ("reconstruction: single_pass\nautoencoder: {name: vae}", "autoencoder: expected a name"),
        ("reconstruction: single_pass\nensemble: {name: mean, seeds: 2}", "expected seeds: 1"),
        ("reconstruction: {name: restoration, lr: 0}", "expected steps >= 1, lr > 0"),
        (
            "route: identity\nfirst: {row: ra, rum: x}",
            "first.rum: no key .* row, run.*mean 'run'",
        ),
        ("route: identity\nnoise: simplx", "noise.name = 'simplx'.*Did you mean 'simplex'"),
        (
            "route: {name: diffuse, level: 0.5}\nguidance: {name: chain, terms: dynamic_clipping}",
            "guidance.terms: expected a list of guidance components, got 'dynamic_clipping'",
        ),
        (
            "route: {name: diffuse, level: 0.5}\n"
            "guidance: {name: sum, terms: [{name: classifier_free, classes: 2}]}",
            r"guidance.terms\[0\].classes: is derived, not configured",
        ),
        ("rout: 1", "rout: no key of a method; .*Did you mean 'route'"),
        ("supervision: weak", "expected one of the keys .*route.*baseline.* or method"),
        ("supervision: strong\nroute: identity", "supervision: expected none or unsupervised"),
        ("route: {name: diffuse}", "route: expected exactly one of level and log_snr"),
        ("route: {name: difuse, level: 1}", "route.name = 'difuse'.*Did you mean 'diffuse'"),
        ("route: identity\nmap: {name: ssim, sigma: 2}", "map.sigma: SSIM takes sigma_mm"),
        ("route: identity\npost: median", "post: expected a list of post components"),
        ("route: identity\nsampler: {name: ddim, steps: 2}", "route identity: has no reverse"),
        ("route: identity\nfirst: 3", "first: expected the name of a method"),
        (
            "route: {name: diffuse, level: 0.5}\nsampler: {name: ddim, steps: 2}\n"
            "guidance: {name: classifier_free, classes: 3}",
            "guidance.classes: is derived, not configured",
        ),
        ("fitted: {name: atlas_z, fit: x}", "fitted.fit: is derived, not configured"),
        ("fitted: {name: padim, features: {stride: 0}}", "features: .*at least one voxel, got 0"),
        ("fitted: pixel_classifier", "expected supervision full .* or self"),
        ("baseline: {name: smothing}", "baseline.name = 'smothing'.*Did you mean 'smoothing'"),
        ("baseline: prevalence\nroute: identity", "route: no key of a method"),
        ("detector: posterior_mean\nroute: identity", "route: no key of a method"),
        ("detector: {name: posterior_mean, seds: 2}", "detector.seds: .*Did you mean 'seeds'"),
        ("detector: posterior_mean\ncorruption: fpi", "corruption.name = 'fpi': choose from"),
    ],
)
def test_mistakes_in_rows_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        method_files.read_method(str(path))
    assert "\n" not in str(caught.value)
