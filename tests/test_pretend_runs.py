"""Whole runs on the pretend device: trained, validated, saved, resumed, and used on volumes."""

from contextlib import contextmanager
from itertools import pairwise
from unittest import mock

import numpy as np
import pretend_cuda
import pytest
from shrunken_configs import SHAPE, shrunken
from tiny_runs import load_run, phantom, write_data

import volumediff
from volumediff.training import loop
from volumediff.training.loop import train

STEPS = 3
QUICK = ("sampler.steps=2", "normalize=raw", "threshold=otsu")
PIPELINES = ("patch", "wavelet", "latent", "pseudo3d")
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=10, size=SHAPE)


def configured(name, root, output, **sections):
    """A shipped configuration on the phantoms, with everything but its steps as it is."""
    first = shrunken(name, output=str(output), **sections).dump()
    first["data"] |= {"root": str(root), "split": {"validation": 0.1, "calibration": 0.5}}
    first["data"]["cache"] = str(root.parent / "cache")
    first["optim"]["steps"] = STEPS
    first["validation"] |= {"volumes": 1, "previews": 1}
    if first["validation"].get("best"):
        first["validation"]["best"]["volumes"] = 1
    first["validation"]["preview_steps"] = 2
    return volumediff.settings.run_config.parse(first)


@contextmanager
def steps_watched(gpu):
    """Host waits between the starts of steps."""
    starts, found, launch = [], [], loop.take_step

    def watched(*given):
        starts.append(gpu.waits.total())
        return launch(*given)

    with mock.patch.object(loop, "take_step", watched):
        yield found
    found += [after - before for before, after in pairwise(starts)]


def trained(config):
    """The run's folder and what the device saw."""
    with pretend_cuda.device() as gpu, steps_watched(gpu) as waits:
        run = train(config)
    assert len(waits) == STEPS - 1
    assert max(waits) <= 2, gpu.waits
    assert gpu.nondeterministic.total() == gpu.rounded.total() == 0
    return run


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """Runs by configuration, each trained once, when it is asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run_of(name, **sections):
        if name not in made:
            if name == "pipelines/latent_256":
                first = run_of("autoencoders/kl_256")
                sections["space"] = {"name": "latent", "autoencoder": str(first)}
            made[name] = trained(configured(name, root, folder / name, **sections))
        return made[name]

    return run_of


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_is_trained_and_localizes(pipeline, runs):
    run = runs(f"pipelines/{pipeline}_256")
    with pretend_cuda.device() as gpu:
        loaded = volumediff.load(run)
        found = loaded.localize(
            (phantom(50, SHAPE), AFFINE), method="ddpm", overrides=QUICK, force=True
        )
        assert found.map.shape == SHAPE
        assert np.isfinite(np.asarray(found.map)).all()
        assert gpu.rounded.total() == 0
        drawn = loaded.sample(1, overrides=["sampler.steps=2"])
        assert np.isfinite(drawn[0].array).all()


def test_a_run_of_the_device_goes_on_there_bit_for_bit(root, tmp_path):
    config = configured("pipelines/wavelet_256", root, tmp_path / "whole")
    short = config.optim.model_copy(update={"steps": 2})
    with pretend_cuda.device():
        whole = train(config)
        parts = config.model_copy(update={"output": tmp_path / "parts"})
        train(parts.model_copy(update={"optim": short}))
        train(parts)
    one, two = (load_run(run, which="last")[1].state_dict() for run in (whole, tmp_path / "parts"))
    assert all(bool((one[name] == two[name]).all()) for name in one)
