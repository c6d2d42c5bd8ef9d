"""Segmentation methods of label kernels and loss terms, from their files: trained and used."""

import shutil

import pytest
import torch
from tiny_runs import figures, tiny, write_data

from volumediff.condition import Condition
from volumediff.config import config_path, load
from volumediff.errors import UsageError
from volumediff.model import LEAST
from volumediff.runs.trained import load_trained
from volumediff.segmentation.method_files import load_segmenter
from volumediff.settings.run_config import load_run_config
from volumediff.tasks import build_task
from volumediff.training.loop import train

METHODS = ["berdiff", "ccdm", "palette", "surf_cdm", "wolleb_ensemble"]
PIPELINES = ["patch_64", "pseudo3d_64", "wavelet_64"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), labels=True)


def small(root, output, method, pipeline, *words):
    """A run of a few steps, made of the pipeline's file and the method's."""
    return load_run_config(
        pipeline,
        [
            f"method={method}",
            f"data.root={root}",
            "data.preprocessing.shape=[16,16,16]",
            "data.split={validation: 0.2, calibration: 0.0}",
            "network.widths=[4,8]",
            "network.groups=2",
            "memory={dtype: float32}",
            "crop=null",
            "optim={lr: 0.001, steps: 4, warmup: 1, batch_size: 2, ema: 0.9}",
            "validation={every: 2, volumes: 1}",
            f"output={output}",
            *words,
        ],
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_and_segment_on_every_pipeline_of_voxels(data, tmp_path, method, pipeline):
    train(small(data, tmp_path / "run", method, pipeline))
    assert all(row.get("loss", 0) < 100 for row in figures(tmp_path / "run"))
    model = load_trained(tmp_path / "run").model.eval()
    segmenter = load_segmenter(method, ["samples=2", "sampler.steps=2"])
    segmenter.check(model)
    x = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    found = [
        segmenter.segment(
            model, x, foreground=torch.ones_like(x) > 0, spacing_mm=(3.0, 3.0, 3.0), key=key
        )
        for key in (1, 1, 2)
    ]
    p = [f.probabilities for f in found]
    assert bool(((p[0] >= 0) & (p[0] <= 1)).all())
    assert torch.equal(p[0], p[1])
    assert not torch.equal(p[0], p[2])


@pytest.mark.parametrize("method", ["berdiff", "ccdm", "hidiff"])
def test_latents_in_real_numbers_are_refused(method):
    config = load_run_config("latent_64", [f"method={method}"])
    with pytest.raises(UsageError, match=r"a space of bits for discrete, got latents in real"):
        build_task(config)


def test_moves_of_latents_are_refused():
    config = load_run_config("latent_64", ["method=surf_cdm"])
    with pytest.raises(UsageError, match="which is about values at places, got latents"):
        build_task(config)


def test_parts_that_do_not_fit_are_refused():
    def why(*words):
        with pytest.raises(UsageError) as caught:
            build_task(load_run_config("patch_64", list(words)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    two = "recipe.labels=[1,2]"
    text = why("method=ccdm", two, "kernel.classes=2")
    assert "kernel.classes: expected 3, those of the coding, got 2" in text
    text = why("method=berdiff", "recipe.coding={name: signed, absent: 0}")
    assert "use recipe.coding=signed for bits" in text
    text = why("method=berdiff", "recipe.coding=one_hot", "kernel.prediction=xor")
    assert "in one channel each; use x0" in text
    text = why("method=palette", "kernel.variance=learned")
    assert "losses: expected vlb for a kernel that learns the variance" in text
    text = why("method=palette", "losses=[vlb]")
    assert "losses, vlb: expected a kernel that learns the variance" in text
    assert "losses, dice: expected a recipe whose targets are masks" in why("losses=[dice]")
    text = why("method=palette", two, "losses=[{name: cross_entropy, classes: [1, 2]}]")
    assert "expected 3 weights, of the background and of 2 labels, got 2" in text
    assert "losses, boundary: expected one channel per label" in why(
        "method=palette", "recipe.coding=one_hot", "losses=[boundary]"
    )
    assert "prior: expected the kernel discrete" in why("method=palette", "prior=runs/none")


def test_files_say_where_noise_and_classes_are():
    """The published faults are said in the file, and what the method is trained with."""
    assert load(config_path("segmentation", "ccdm"))["train"]["kernel"]["classes"] == 0
    text = config_path("segmentation", "berdiff").read_text()
    assert "repaired" in text
    for method in METHODS:
        load_segmenter(method)


def test_the_kernel_of_classes_with_one_label(data, tmp_path):
    model = build_task(small(data, tmp_path / "run", "ccdm", "wavelet_64")).model
    assert (model.kernel.classes, model.kernel.bits) == (2, False)
    z = model.kernel.prior(model.noise((1,), (2, 8, 8, 8))(-1))
    assert bool((z.sum(1) == 0).all()), "every voxel has one class"


def test_networks_of_loss_terms_belong_to_the_run(data, tmp_path):
    words = (
        "recipe={name: label_diffusion}",
        "losses=[{name: latent_kl, widths: [2, 4]}, boundary, {name: dice, weight: 0.5}]",
        "optim.steps=3",
    )
    train(tiny(data, tmp_path / "run", *words))
    task = load_trained(tmp_path / "run").task
    learnt, fresh = task.state(), build_task(task.config).state()
    names = [n for n in learnt if n.startswith("sides.0.prior")]
    assert names, "checkpoints hold them"
    assert any(not torch.equal(learnt[n].cpu(), fresh[n]) for n in names)
    assert task.target is task.model.network, "what another run begins with"


def test_a_law_from_the_run_of_a_segmentation_network(data, tmp_path):
    prior, run = tmp_path / "unet", tmp_path / "hidiff"
    train(small(data, prior, "unet", "wavelet_64"))
    words = (f"prior={prior}",)
    train(small(data, run, "hidiff", "patch_64", *words))
    assert (run / "borrowed" / "prior" / "weights.safetensors").is_file()
    trained = load_trained(run)
    assert not any(n.startswith("prior.") for n in trained.task.state()), "a copy is kept apart"
    shutil.rmtree(prior)
    model = load_trained(run).model.eval()
    assert model.network.image_channels == 2
    method = load_segmenter("hidiff", ["samples=2", "sampler.steps=2"])
    x = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    found = method.segment(
        model, x, foreground=torch.ones_like(x) > 0, spacing_mm=(3.0, 3.0, 3.0), key=1
    )
    assert found.probabilities.isfinite().all()
    law = model.told(Condition(), (x,)).law
    p = model.prior.probabilities(x, Condition())[:, 1:]
    torch.testing.assert_close(law, 2 * ((1 - 2 * LEAST) * p + LEAST) - 1)
    with pytest.raises(
        UsageError, match=r"recipe.labels: expected that of prior = .*, \(1,\), got"
    ):
        build_task(load_run_config(run / "config.yaml", ["recipe.labels=[2]"]), run=run)


def test_what_is_no_prior_is_refused(data, tmp_path):
    with pytest.raises(UsageError, match=r"prior = .*none: no such run and no shipped method"):
        build_task(load_run_config("patch_64", ["method=hidiff", f"prior={tmp_path}/none"]))
    with pytest.raises(UsageError, match=r"no such run; train a segmentation network first"):
        train(small(data, tmp_path / "run", "hidiff", "patch_64", f"prior={tmp_path}/unet"))
    with torch.device("meta"):
        build_task(load_run_config("wavelet_64", ["method=hidiff", "data.channels=[T1w]"]))
    train(small(data, tmp_path / "other", "palette", "patch_64"))
    with pytest.raises(UsageError, match="expected the run of a segmentation network, got one th"):
        train(small(data, tmp_path / "run", "hidiff", "patch_64", f"prior={tmp_path}/other"))
