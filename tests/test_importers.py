"""Importers: the same numbers as the published code, and nothing dropped or made up.

Two proofs of the first: `guided_reference`, which always runs, and the published code itself,
where environment variables name checkouts: VOLUMEDIFF_WDM of pfriedri/wdm-3d, VOLUMEDIFF_CWDM of
pfriedri/cwdm, VOLUMEDIFF_FASTWDM3D the folder WDM3D of AliciaDurrer/fastWDM3D, and
VOLUMEDIFF_PATCHDDM of FlorentinBieder/PatchDDM-3D.
"""

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import sys
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch
from guided_reference import forward, haar, inverse_haar, published
from tiny_app import program
from tiny_runs import load_run, phantom, write_data

import volumediff
from volumediff.codings.signed import Signed
from volumediff.condition import Condition
from volumediff.config import build
from volumediff.data.seen import Seen
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, checked
from volumediff.importers._files import read
from volumediff.networks._layers import NormAct
from volumediff.recipes._base import Subject
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.runs.trained import load_trained
from volumediff.samples.seen_record import seen_by
from volumediff.segmentation.label_ensembles import members
from volumediff.segmentation.method_files import load_segmenter
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.settings.run_config import parse, saved_config
from volumediff.storage import checkpoint
from volumediff.tasks import build_task
from volumediff.training.imported import import_run
from volumediff.training.loop import train

__all__ = ["program"]  # a fixture

RAS = "RAS"
WDM = {"inputs": 8, "outputs": 8, "widths": (8, 16, 8), "blocks": 2, "pooled": True}
PATCH = {"inputs": 8, "outputs": 1, "widths": (5, 15, 10), "blocks": 2, "pooled": False}
CWDM = {
    "inputs": 32,
    "outputs": 8,
    "widths": (8, 16, 8),
    "blocks": 2,
    "pooled": True,
    "joined": True,
}
FAST = {"inputs": 24, "outputs": 8, "widths": (8, 16, 8), "blocks": 2, "pooled": True}
TINY = {"wdm": WDM, "cwdm": CWDM, "fastwdm3d": FAST, "patchddm": PATCH}
FULL = {
    "fastwdm3d-128": {**FAST, "widths": (64, 128, 128, 128, 256), "blocks": 4},
    "cwdm-224": {**CWDM, "widths": (64, 128, 128, 256, 256)},
    "wdm-128": {**WDM, "widths": (64, 128, 128, 256, 256)},
    "wdm-256": {**WDM, "widths": (64, 128, 128, 256, 256, 256)},
    "patchddm": {**PATCH, "widths": (29, 87, 116, 116, 116, 116, 116)},
}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kind_of(name):
    return name.partition("-")[0]


def imported(kind, state, *, axes="LPS", **network):
    """The model of a state dict, through the importer and the run's own assembly."""
    importer = build("importer", {"name": kind, "axes": axes})
    source = ForeignCheckpoint(state)
    tree = importer.config(source)
    tree["network"] |= network
    task = build_task(parse(tree))
    task.load(checked(importer, source, task.shapes()))
    return task.module.eval()


def precise(model):
    """The same model in float64."""
    model.dtype = torch.float64
    return model.double()


def flipped(x, axes):
    """A volume or state turned from the given axes to R, A, S."""
    return x.flip([dim for dim, a, b in zip((2, 3, 4), axes, RAS, strict=True) if a != b])


def grid(*shape):
    """The coordinates that the published code appends to its images."""
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def cumulative(k):
    """The product of 1 - beta up to step k of the published linear schedule."""
    return float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[k])


# --- against the reference ---------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RPI"])
@pytest.mark.parametrize("k", [0, 1, 500, 999])
def test_wdm_denoises_volumes_as_the_published_formulas_do(axes, k):
    state = published(**WDM)
    model = precise(imported("wdm", state, axes=axes, groups=4))
    x, noise = normal(1, 1, 16, 16, 16), normal(1, 1, 16, 16, 16, seed=1)
    # as published: the low band of the volume is divided, that of the noise is not; gives x0
    alpha = cumulative(k)
    noisy = haar(noise)
    noisy[:, 0] *= 3
    z_k = alpha**0.5 * haar(x) + (1 - alpha) ** 0.5 * noisy
    expected = inverse_haar(forward(state, z_k, k, groups=4))
    # ours: volumes, noise fields and results in our orientation, our space unchanged
    t = torch.tensor([(k + 1) / 1000], dtype=torch.float64)
    z_t = model.kernel.corrupt(
        model.encode(flipped(x, axes)), t, model.space.noise(flipped(noise, axes))
    )
    found = model.decode(model.denoise(z_t, t).x0)
    torch.testing.assert_close(flipped(found, axes), expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RPI"])
@pytest.mark.parametrize("k", [0, 500, 999])
def test_cwdm_denoises_a_contrast_as_the_published_formulas_do(axes, k):
    state = published(**CWDM)
    model = precise(imported("cwdm", state, axes=axes, groups=4))
    assert model.recipe.diffused(4) == (0,), "t1n is the one that is drawn"
    # as published: intensities from 0 to 1, the low band of every contrast divided
    u = normal(1, 4, 16, 16, 16).sigmoid()
    noise = normal(1, 8, 8, 8, 8, seed=1)
    alpha = cumulative(k)
    z_k = alpha**0.5 * haar(u[:, :1]) + (1 - alpha) ** 0.5 * noise
    given = [haar(u[:, i : i + 1]) for i in (1, 2, 3)]
    expected = inverse_haar(forward(state, torch.cat([z_k, *given], dim=1), k, groups=4))
    # ours: intensities from -1 to 1, in our orientation; the state is theirs but for the signs
    x = flipped(2 * u - 1, axes)
    noisy = flipped(2 * inverse_haar(z_k) - 1, axes)
    t = torch.tensor([(k + 1) / 1000], dtype=torch.float64)
    condition = model.told(Condition(), x[:, 1:].split(1, dim=1))
    found = model.decode(model.denoise(model.encode(noisy), t, condition).x0)
    torch.testing.assert_close((flipped(found, axes) + 1) / 2, expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RPI"])
@pytest.mark.parametrize("k", [0, 1])
def test_fastwdm3d_fills_a_void_as_the_published_formulas_do(axes, k):
    state = published(**FAST)
    model = precise(imported("fastwdm3d", state, axes=axes, groups=4))
    # as published: all bands divided by sqrt 8; the void is -1 in the volume and 1 in the mask
    x = normal(1, 1, 16, 16, 16).tanh()
    m = torch.zeros_like(x)
    m[..., 3:9, 4:11, 6:13] = 1
    voided, mask = torch.where(m > 0, -1.0, x), 2 * m - 1

    def bands(volume):
        z = haar(volume)
        z[:, 0] *= 3
        return z / 8**0.5

    noise = normal(1, 8, 8, 8, 8, seed=1)
    # the SDE's signal on the published grid of three times, divided by the first
    s = np.linspace(0, 1, 3) * (1 - 1e-3) + 1e-3
    kept = np.exp(2 * (-0.25 * s**2 * 19.9 - 0.5 * s * 0.1))
    alpha = float((kept / kept[0])[k + 1])
    z_k = alpha**0.5 * bands(x) + (1 - alpha) ** 0.5 * noise
    found = forward(state, torch.cat([z_k, bands(voided), bands(mask)], dim=1), k, groups=4)
    found[:, 0] /= 3
    expected = inverse_haar(found * 8**0.5)
    t = torch.tensor([(k + 1) / 2], dtype=torch.float64)
    signal, _ = model.kernel.schedule(t)
    np.testing.assert_allclose(float(signal), alpha**0.5, rtol=1e-12)
    state_k = z_k * 8**0.5
    state_k[:, 0] /= 3
    z_t = model.encode(flipped(inverse_haar(state_k), axes))
    hints = model.recipe.hints(flipped(x, axes), flipped(m, axes))
    ours = model.decode(model.denoise(z_t, t, model.told(Condition(), hints)).x0)
    torch.testing.assert_close(flipped(ours, axes), expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAI"])
@pytest.mark.parametrize("k", [0, 500, 999])
@pytest.mark.parametrize("places", [0, 3])
def test_patchddm_denoises_masks_as_the_published_formulas_do(axes, k, places):
    state = published(**{**PATCH, "inputs": 5 + places})
    model = precise(imported("patchddm", state, axes=axes))
    image, noisy = normal(1, 4, 8, 16, 12), normal(1, 1, 8, 16, 12, seed=1)
    parts = [image, *([grid(8, 16, 12)] if places else []), noisy]
    eps = forward(state, torch.cat(parts, dim=1), k, groups=5)
    alpha = cumulative(k)
    expected = (noisy - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    t = torch.tensor([(k + 1) / 1000], dtype=torch.float64)
    condition = Condition(image=model.encode(flipped(image, axes)))
    found = model.denoise(flipped(noisy, axes), t, condition)
    torch.testing.assert_close(flipped(found.eps, axes), eps, rtol=0, atol=1e-6)
    torch.testing.assert_close(flipped(found.x0, axes), expected, rtol=0, atol=1e-6 * alpha**-0.5)
    assert eps.std() > 0.1


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_patchddm_segments_as_the_published_chain_does(axes):
    """The row, with the imported weights, against the published network and DDIM's formula."""
    state = published(**{**PATCH, "inputs": 8})
    model = precise(imported("patchddm", state, axes=axes))
    shape, key = (8, 16, 12), 7
    image = normal(1, 4, *shape)
    ours = flipped(image, axes)
    found = load_segmenter("patchddm", ["samples=1", "sampler.steps=4"]).segment(
        model, ours, foreground=torch.ones_like(ours[:, :1]) > 0, spacing_mm=(1.0,) * 3, key=key
    )
    (draw,) = members(1, (), key=key)
    start = model.noise((draw.key,), (1, *shape))(-1)
    z = flipped(model.kernel.prior(start), axes).double()
    steps = (999, 749, 499, 249, None)
    for k, after in itertools.pairwise(steps):
        eps = forward(state, torch.cat([image, grid(*shape), z], dim=1), k, groups=5)
        alpha, next_alpha = cumulative(k), 1.0 if after is None else cumulative(after)
        x0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        z = next_alpha**0.5 * x0 + (1 - next_alpha) ** 0.5 * eps
    expected = flipped(z, axes).clamp(0, 1)
    torch.testing.assert_close(found.probabilities.double(), expected, rtol=0, atol=1e-4)
    assert 0.1 < float((expected > 0.5).double().mean()) < 0.9, "both answers occur"
    assert torch.equal(found.labels, (expected > 0.5).to(torch.uint8))


def test_groups_are_taken_exactly():
    model = imported("patchddm", published(**PATCH))
    norms = [m for m in model.network.modules() if isinstance(m, NormAct)]
    assert {m.norm.groups for m in norms} == {5}
    # a group of one channel is blind to what is added to it, one of two is not
    x, added = normal(1, 5, 4, 4, 4).float(), torch.arange(5.0)[None, :, None, None, None]
    torch.testing.assert_close(norms[0](x + added), norms[0](x), rtol=0, atol=1e-5)


def test_bands_are_those_of_our_space():
    space = build("space", {"name": "wavelet"})
    x = normal(1, 1, 8, 6, 4)
    expected = haar(x)
    expected[:, 0] *= 3
    torch.testing.assert_close(space.encode(x), expected)
    torch.testing.assert_close(inverse_haar(haar(x)), x)


def test_masks_are_coded_zero_and_one():
    recipe = build(
        "recipe", {"name": "label_diffusion", "coding": {"name": "signed", "absent": 0.0}}
    )
    label = torch.tensor([0, 1, 2], dtype=torch.uint8).reshape(1, 1, 1, 3)
    target = recipe.target(Subject(torch.zeros(4, 1, 1, 3), label), atlas=None, key=0)
    assert target.x.flatten().tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="absent below 1"):
        Signed(absent=1.0)


# --- against the published code -----------------------------------------------------------------


@contextlib.contextmanager
def checkout(variable):
    """Their modules by name, importable inside the block; skips where there are none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no checkout of the published code")
    before = dict(sys.modules)
    sys.path.insert(0, folder)
    # Logging and plotting packages that the networks do not need are replaced where missing.
    sys.modules["torch.utils.tensorboard"] = MagicMock()

    def load(name):
        while True:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or error.name.startswith(("guided_diffusion", "DWT_IDWT")):
                    pytest.fail(f"{variable}={folder} is no such checkout: {error}")
                sys.modules[error.name] = MagicMock()
                for found in [n for n in sys.modules if n.startswith("guided_diffusion")]:
                    del sys.modules[found]

    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield load
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - set(before):
            if sys.modules[name] is not None and name.startswith(("guided_diffusion", "DWT_IDWT")):
                del sys.modules[name]
        for name, module in list(sys.modules.items()):
            if isinstance(module, MagicMock):
                del sys.modules[name]
        sys.modules.update(before)


def theirs(load, *, inputs, outputs, widths, blocks, pooled, groups, joined=False):
    """Their network with the settings of their run.sh."""
    net = load("guided_diffusion.script_util").create_model(
        image_size=128,
        num_channels=widths[0],
        num_res_blocks=blocks,
        channel_mult=",".join(str(w // widths[0]) for w in widths),
        attention_resolutions="",
        num_heads=1,
        use_scale_shift_norm=False,
        num_groups=groups,
        dims=3,
        in_channels=inputs,
        out_channels=outputs,
        bottleneck_attention=False,
        resample_2d=False,
        additive_skips=not joined,
        resblock_updown=pooled,
    )
    net.to(torch.device("cpu"))
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("wdm-128", 32),
        ("wdm-256", 32),
        ("cwdm-224", 32),
        ("fastwdm3d-128", 32),
        ("patchddm", 64),
    ],
)
def test_networks_equal_the_published_code(name, side):
    options = FULL[name]
    groups = 32 if name != "patchddm" else 29
    state = published(**options, std=0.04)
    if options.get("joined"):  # outputs of 6 have a rounding of 1e-5 of their own
        state |= {name: state[name] / 4 for name in ("out.2.weight", "out.2.bias")}
    variable = f"VOLUMEDIFF_{kind_of(name).upper()}"
    with checkout(variable) as load, torch.no_grad():
        net = theirs(load, **options, groups=groups)
        net.load_state_dict(state)
        z = normal(1, options["inputs"], side, side, side, dtype=torch.float32)
        model = imported(kind_of(name), state, axes=RAS)
        steps = 2 if name == "fastwdm3d-128" else 1000
        for k in (0, 437 % steps, steps - 1):
            expected = net(z, torch.tensor([k]))
            t = torch.tensor([(k + 1) / steps])
            if name == "patchddm":
                told = Condition(image=z[:, :4], coordinates=z[:, 4:7])
                found = model.network(z[:, 7:], t, told)
            else:
                image = z[:, 8:] if options["inputs"] > 8 else None
                found = model.network(z[:, :8], t, Condition(image=image))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            assert expected.std() > 0.1


@pytest.mark.parametrize("kind", TINY)
def test_the_reference_is_the_published_code(kind):
    options, groups = TINY[kind], 5 if kind == "patchddm" else 4
    state = published(**options)
    z = normal(1, options["inputs"], 8, 16, 12, dtype=torch.float32)
    with checkout(f"VOLUMEDIFF_{kind.upper()}") as load, torch.no_grad():
        net = theirs(load, **options, groups=groups)
        net.load_state_dict(state)
        for k in (0, 700):
            expected = forward(state, z, k, groups=groups)
            found = net(z, torch.tensor([k])).double()
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_their_transform_is_the_reference():
    x = normal(1, 1, 8, 12, 6, dtype=torch.float32)
    with checkout("VOLUMEDIFF_WDM") as load:
        layer = load("DWT_IDWT.DWT_IDWT_layer")
        bands = list(layer.DWT_3D("haar")(x))
        back = layer.IDWT_3D("haar")(*bands)
    bands[0] = bands[0] / 3
    torch.testing.assert_close(torch.cat(bands, 1).double(), haar(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(back.double(), inverse_haar(haar(x)), rtol=0, atol=1e-6)


# --- architecture from shapes -------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_architecture_is_read_off_the_shapes(name):
    options = FULL[name]
    state = {n: t.to("meta") for n, t in published(**options).items()}
    tree = build("importer", kind_of(name)).config(ForeignCheckpoint(state))
    network = parse(tree).network
    assert tuple(network["widths"]) == options["widths"]
    assert network["blocks"] == options["blocks"]
    assert network["resampling"] == ("block" if options["pooled"] else "convolution")
    shape = tree["data"]["preprocessing"]["shape"]
    sizes = {"wdm-128": [128] * 3, "cwdm-224": [224, 224, 160], "fastwdm3d-128": [160, 192, 160]}
    assert shape == sizes.get(name, [256] * 3)


# --- what does not fit --------------------------------------------------------------------------


def broken(state, *, drop=None, add=None, shape=None):
    """The state dict with one tensor missing, too many, or of another shape."""
    state = dict(state)
    if drop:
        del state[drop]
    if add:
        state[add] = torch.zeros(3)
    if shape:
        state[shape] = torch.cat([state[shape], state[shape]])
    return state


NAMES = (
    "time_embed.2.bias",
    "input_blocks.0.0.bias",
    "input_blocks.2.0.out_layers.0.weight",
    "input_blocks.4.0.skip_connection.weight",
    "middle_block.1.emb_layers.1.bias",
    "output_blocks.7.0.in_layers.2.weight",
    "out.0.bias",
)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_needed_with_its_shape(kind, name):
    state = published(**TINY[kind])
    groups = {} if kind == "patchddm" else {"groups": 4}
    with pytest.raises(DataError, match=f"has no tensor {name}"):
        imported(kind, broken(state, drop=name), **groups)
    with pytest.raises(DataError, match=rf"{name} has shape \(\d.*expected \("):
        imported(kind, broken(state, shape=name), **groups)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("name", ["label_emb.weight", "middle_block.2.norm.weight"])
def test_no_tensor_is_dropped(kind, name):
    state = published(**TINY[kind])
    groups = {} if kind == "patchddm" else {"groups": 4}
    with pytest.raises(DataError, match=f"{name} would be left over"):
        imported(kind, broken(state, add=name), **groups)


def test_other_networks_are_refused_with_a_reason():
    wdm, patch = published(**WDM), published(**PATCH)
    with pytest.raises(DataError, match="8 channels in and 1 out; WDM has 8 subbands"):
        imported("wdm", patch)
    with pytest.raises(DataError, match="8 channels in and 8 out; PatchDDM has"):
        imported("patchddm", wdm)
    odd = dict(wdm)
    name = "output_blocks.0.0.in_layers.0.weight"
    odd[name] = torch.cat([wdm[name]] * 3)
    with pytest.raises(DataError, match="a decoder block of 24 channels where 8, for skips that"):
        imported("wdm", odd)
    with pytest.raises(DataError, match="8 channels in and 8 out; cWDM has 8 subbands of 4"):
        imported("cwdm", wdm)
    with pytest.raises(DataError, match=r"has no tensor input_blocks\.0\.0\.weight"):
        imported("wdm", {"conv.weight": torch.zeros(2, 2)})
    with pytest.raises(UsageError, match=r"expected axes such as LPS.*got 'SLP'"):
        imported("wdm", wdm, axes="SLP")


class Careless(Importer):
    """Gives one tensor as it is told to."""

    def __init__(self, given):
        self.given = given

    def origin(self, source):
        return Origin("nobody", "nowhere", None)

    def config(self, source):
        return {}

    def tensors(self, source, shapes):
        return {**self.given, "a": source.take("x")}


def test_the_result_is_checked_too():
    source = {"x": torch.zeros(2)}
    assert list(checked(Careless({}), ForeignCheckpoint(source), {"a": (2,)})) == ["a"]
    with pytest.raises(DataError, match=r"gives a the shape \(2,\), and the run has \(3,\)"):
        checked(Careless({}), ForeignCheckpoint(source), {"a": (3,)})
    with pytest.raises(DataError, match="holds nothing for b"):
        checked(Careless({}), ForeignCheckpoint(source), {"a": (2,), "b": (2,)})
    with pytest.raises(DataError, match="no place for c"):
        checked(Careless({"c": torch.zeros(1)}), ForeignCheckpoint(source), {"a": (2,)})
    twice = ForeignCheckpoint(source)
    twice.take("x")
    with pytest.raises(DataError, match="x would be used twice"):
        twice.take("x")


# --- files and the command -----------------------------------------------------------------------

SMALL = {**WDM, "widths": (32, 32), "blocks": 1}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "wdm.safetensors"
    safetensors.torch.save_file(published(**SMALL, std=0.05), path)
    return path


def test_an_imported_run_samples(program, file, tmp_path):
    run = tmp_path / "run"
    code, _, text = program("import", "wdm", file, "-o", run)
    assert code == 0, text
    assert "run: imported." in text
    for which in ("best", "last"):
        config, model = load_run(run, which=which)
        assert model.space.scale.tolist() == [3, 1, 1, 1, 1, 1, 1, 1]
        assert model.space.shift.tolist() == [0] * 8
    assert config.output == run
    expected = imported("wdm", safetensors.torch.load_file(file))
    z, t = normal(1, 8, 8, 8, 8, dtype=torch.float32), torch.tensor([0.3])
    assert torch.equal(model.network(z, t), expected.network(z, t))
    code, _, text = program("sample", "--run", run, "-n", "1", "sampler.steps=2", "--seed", "3")
    assert code == 0, text
    image = nib.load(run / "samples" / "sample-0001_image.nii.gz")
    assert image.shape == (16, 16, 16)
    assert np.isfinite(image.get_fdata()).all()
    facts = json.loads((run / "manifest.json").read_text())["sessions"][0]
    assert facts["imported"]["kind"] == "wdm"
    assert len(list(tmp_path.glob(".*"))) == 0


def test_an_imported_run_trains_on(file, tmp_path):
    """Moments start fresh, weights and normalisation do not."""
    data = write_data(tmp_path / "data", cases=4, size=(16, 16, 16))
    words = [f"data.root={data}", "optim.steps=1", "optim.lr=1e-12", "optim.warmup=0"]
    words += ["data.preprocessing.spacing_mm=3.0", "data.split={validation: 0.3, calibration: 0}"]
    run = import_run("wdm", file, tmp_path / "run", overrides=words)
    before = checkpoint.find(run, "last").tensors("weights")
    elsewhere = Seen(unknown=(f"the training of {run}, whose weights were imported (wdm)",))
    assert seen_by(run) == elsewhere
    train(saved_config(run))
    # what the weights saw elsewhere stays unknown, whatever is trained on here
    seen = seen_by(run)
    assert seen.unknown == elsewhere.unknown
    assert [len(r.parts["patient"]) for r in seen.rosters] == [4]
    after = checkpoint.find(run, "last")
    assert after.step == 1
    torch.testing.assert_close(after.tensors("weights"), before, rtol=0, atol=1e-9)


def test_an_imported_run_segments(program, tmp_path, monkeypatch):
    path, data = tmp_path / "patch.safetensors", tmp_path / "data"
    safetensors.torch.save_file(published(**{**PATCH, "widths": (5, 10), "blocks": 1}), path)
    data.mkdir()
    for i, name in enumerate(("t1", "t1ce", "t2", "flair")):
        image = nib.Nifti1Image(phantom(i), np.diag([-1.0, -1, 1, 1]))
        nib.save(image, data / f"sub-01_{name}.nii.gz")
    run = tmp_path / "run"
    words = ["data.preprocessing.shape=[8, 8, 8]", "importer.axes=LPS"]
    code, _, text = program("import", "patchddm", path, "-o", run, *words)
    assert code == 0, text
    trained = load_trained(run, device="cpu")
    assert trained.recipe == LabelDiffusion(coding=Signed(0.0))
    assert trained.config.method == "patchddm", "what segment takes where no other is asked for"
    options = ("samples=1", "sampler.steps=2")
    codes, segment = [], Composed.segment

    def recorded(self, model, *args, **named):
        codes.append(model.recipe.coding.absent)
        return segment(self, model, *args, **named)

    monkeypatch.setattr(Composed, "segment", recorded)
    code, out, text = program("segment", data, "--run", run, "-o", tmp_path / "out", *options)
    assert code == 0, out + text
    (found,) = (tmp_path / "out").rglob("*_dseg.nii.gz")
    assert nib.load(found).shape == (8, 8, 8)
    assert codes == [0.0]


def test_pickles_are_read_only_when_allowed(program, tmp_path):
    state = published(**SMALL)
    path, run = tmp_path / "wdm.pt", tmp_path / "run"
    torch.save(state, path)
    code, _, text = program("import", "wdm", path, "-o", run)
    assert code == 2
    assert "is a pickle, which may hold code" in text
    assert "weights_only_pickle" in text
    assert not run.exists()
    code, _, text = program("import", "wdm", path, "-o", run, "--weights-only-pickle")
    assert code == 0, text
    nested = {"model": {"w": torch.ones(2)}, "epoch": 3}
    torch.save(nested, path)
    found = read(path, weights_only_pickle=True)
    assert found["model.w"].tolist() == [1, 1]
    assert found["epoch"].item() == 3


class Payload:
    """What a malicious file would hold: a call that loading makes."""

    def __reduce__(self):
        return (Path.touch, (Path("payload-was-run"),))


def test_code_in_a_pickle_does_not_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Payload()}, tmp_path / "bad.pt")
    words = ("import", "wdm", "bad.pt", "-o", "run", "--weights-only-pickle")
    code, _, text = program(*words)
    assert code == 1
    assert "bad.pt: cannot be read as a file of tensors" in text
    assert text.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"bad.pt"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected named tensors, got list"),
        ({"a": {"b": "text"}}, "a.b is of type str, expected a tensor"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "other.pth", weights_only_pickle=True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("wdn", "{file}"), 2, "choose from .*wdm.*Did you mean 'wdm'"),
        (("wdm", "missing.pt"), 2, "missing.pt: no such file"),
        (("wdm", "{folder}/x.bin"), 2, "expected .safetensors"),
        (("wdm", "{folder}/x.safetensors"), 1, "no sound safetensors file"),
        (("wdm", "{folder}/x.pt", "--weights-only-pickle"), 1, "cannot be read as a file"),
        (("patchddm", "{file}"), 1, "8 channels in and 8 out"),
        (("wdm", "{file}", "network.groups=3"), 2, "groups must divide all widths"),
        (("wdm", "{file}", "network.group=4"), 2, "Did you mean 'groups'"),
        (("wdm", "{file}", "network.widths=[32]"), 1, "would be left over|has no tensor"),
        (("wdm", "{file}", "importer.axis=LPS"), 2, "Did you mean 'axes'"),
        (("wdm", "{file}", "optm.lr=1"), 2, "Did you mean 'optim'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(program, file, tmp_path, words, code, message):
    for suffix in ("bin", "safetensors", "pt"):
        (tmp_path / f"x.{suffix}").write_bytes(b"not a checkpoint")
    before = {p.name for p in tmp_path.iterdir()}
    words = [w.format(file=file, folder=tmp_path) for w in words]
    found, _, text = program("import", *words, "-o", tmp_path / "run")
    assert found == code, text
    assert text.count("\n") == 1
    assert re.search(message, text), text
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_failure_on_the_way_leaves_nothing(program, file, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volumediff.training.imported.record_session", full)
    code, _, text = program("import", "wdm", file, "-o", tmp_path / "run")
    assert code == 1
    assert "run: cannot be written (No space left on device)" in text
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_is_never_overwritten(program, file, tmp_path):
    (tmp_path / "run").mkdir()
    code, _, text = program("import", "wdm", file, "-o", tmp_path / "run")
    assert code == 2
    assert "is there already" in text


# --- what imported runs are for -----------------------------------------------------------------


def test_an_imported_cwdm_translates_the_contrast_that_it_is_for(tmp_path):
    file, run = tmp_path / "brats.safetensors", tmp_path / "run"
    safetensors.torch.save_file(published(**CWDM, std=0.05), file)
    words = ["importer.target=t2w", "network.groups=4", "data.preprocessing.shape=[16,16,16]"]
    import_run("cwdm", file, run, overrides=[*words, "memory.dtype=float32"])
    trained = load_trained(run)
    assert trained.config.method == "cwdm", "what translate takes where no other is asked for"
    case = tmp_path / "BraTS-GLI-00001-000"
    case.mkdir()
    for i, name in enumerate(("t1n", "t1c", "t2f")):  # the missing one is t2w
        image = nib.Nifti1Image(phantom(i, (16, 16, 16)), np.diag([-1.0, -1, 1, 1]))
        nib.save(image, case / f"{case.name}-{name}.nii.gz")
    loaded = volumediff.load(run)
    found = loaded.translate(tmp_path, sampler={"name": "ddim", "steps": 2})
    assert list(found.images) == ["t2w"]
    assert found.facts["sources"] == ["t1n", "t1c", "t2f"]
    assert found.facts["network_calls"] == 2
    x = found.images["t2w"]
    inside = np.any([phantom(i, (16, 16, 16)) > 0 for i in range(3)], axis=0)
    assert (x[~inside] == 0).all(), "as published, nothing outside of the brain"
    assert 0 <= x.min() < x.max() <= 1


def test_an_imported_fastwdm3d_fills_a_region_in_two_calls(tmp_path):
    file, run = tmp_path / "fast.safetensors", tmp_path / "run"
    safetensors.torch.save_file(published(**FAST, std=0.05), file)
    words = ["network.groups=4", "data.preprocessing.shape=[16,16,16]", "crop=null"]
    import_run("fastwdm3d", file, run, overrides=[*words, "memory.dtype=float32"])
    values = phantom(3, (16, 16, 16))
    image = nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1]))
    mask = np.zeros(values.shape, np.uint8)
    mask[6:10, 6:10, 6:10] = 1
    region = nib.Nifti1Image(mask, image.affine)
    loaded = volumediff.load(run)
    editing = {"selector": {"name": "given", "dilate_mm": 0.0}, "resampling": 1}
    words = {"recipe": "inpainting", "sampler": {"name": "ddim", "steps": 2}, "editing": editing}

    def filled(x):
        given = nib.Nifti1Image(x, image.affine)
        return loaded.localize(given, method="inpaint_given", region=region, force=True, **words)

    found = filled(values)
    changed = np.abs(found.map) > 1e-5
    assert changed[mask > 0].any(), "what is in the region is redrawn"
    assert not changed[mask == 0].any(), "and nothing else"
    assert found.localized.cost.network_calls == 2
