"""Conditions of a case: given, checked against the training, estimated, and written down."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_app import program, write_cases
from tiny_runs import phantom, tiny, write_data

import volumediff
from volumediff.data.volume import Volume
from volumediff.errors import UsageError
from volumediff.inference.conditions import LOG_SNRS, VALUES, settled
from volumediff.inference.options import SampleOptions
from volumediff.inference.sample import sampling
from volumediff.kernels._prediction import Prediction
from volumediff.runs.inputs import prepared
from volumediff.runs.trained import load_trained
from volumediff.samples.statistics import Statistics
from volumediff.training.loop import train

__all__ = ["program"]  # a fixture

RAW = ("--method", "scan", "normalize=raw", "threshold=best", "post=[]", "ensemble.seeds=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on eight phantoms of 20 to 41 years."""
    root = tmp_path_factory.mktemp("conditioned")
    words = ("recipe={name: healthy, scalars: [age]}", "optim.steps=2", "data.split.validation=0")
    return train(tiny(write_data(root / "data", cases=8), root / "run", *words))


@pytest.fixture(scope="module")
def trained(run):
    return load_trained(run, device="cpu")


def ready_case(trained):
    volume = Volume.from_array(phantom(50), np.diag([3.0, 3, 3, 1]))
    return prepared(trained, [volume])


def test_the_range_of_the_training_is_kept(run):
    assert Statistics.load(run).ranges == {"age": (20.0, 41.0)}


def test_a_given_condition_is_used_and_written_down(run, program, tmp_path, monkeypatch):
    cases = write_cases(tmp_path / "in", 1)
    words = ("localize", cases, "--run", run, "-o", tmp_path / "out", *RAW, "--condition")
    code, _, said = program(*words, "age=41")
    assert code == 0, said
    facts = json.loads((tmp_path / "out" / "new-0_desc-anomaly_map.json").read_text())
    assert facts["conditions"] == {"age": 41.0}
    assert facts["estimated_conditions"] == {}
    # results under another condition are not mixed with these
    code, _, said = program(*words, "age=20")
    assert code == 2, said
    # in Python, where the network can be listened to
    loaded, heard = volumediff.load(run), []
    own = loaded.trained.model.denoise

    def denoise(z_t, t, condition):
        heard.append(condition.scalars)
        return own(z_t, t, condition)

    monkeypatch.setattr(loaded.trained.model, "denoise", denoise)
    raw = {"normalize": "raw", "threshold": "best", "post": [], "ensemble": {"seeds": 1}}
    image = (phantom(100), np.diag([3.0, 3, 3, 1]))
    found = loaded.localize(image, method="scan", attributes={"age": 41.0}, trace=False, **raw)
    assert found.facts["conditions"] == {"age": 41.0}
    expected = loaded.trained.statistics.standardised({"age": 41.0})[None]
    assert heard
    assert all(torch.equal(scalars, expected.float()) for scalars in heard)


def test_samples_of_an_unknown_condition_are_refused(trained):
    sampling(trained, SampleOptions(attributes={"age": 30.0}))
    with pytest.raises(UsageError, match=r"condition aeg: .* is conditioned on age.*'age'"):
        sampling(trained, SampleOptions(attributes={"aeg": 30.0, "age": 30.0}))


def test_wrong_conditions_are_refused(run, program, trained, tmp_path):
    cases = write_cases(tmp_path / "in", 1)
    for words, expected, wanted in (
        (("--condition", "aeg=30"), "is conditioned on age. Did you mean 'age'?", 2),
        (("--condition", "age"), "age", 2),
        (("--condition", "age=630"), "was trained with 20 to 41; give a value in this range", 1),
        ((), "attribute 'age' is None", 1),
    ):
        out = tmp_path / "out"
        code, _, said = program("localize", cases, "--run", run, "-o", out, *RAW, *words)
        assert code == wanted, said
        assert expected in said
    beyond = settled(trained, {"age": 50.0}, ready_case(trained), key=0)
    assert beyond.warnings == ("Condition age 50: the run was trained with 20 to 41.",)
    assert settled(trained, {"age": 41.0}, ready_case(trained), key=0).warnings == ()


@pytest.mark.parametrize("age", [20.0, 30.5, 41.0])
def test_the_value_with_the_least_error_is_estimated(trained, monkeypatch, age):
    """A network whose error grows with the distance from the true age."""
    calls, true = [], trained.statistics.standardised({"age": age})

    def denoise(z_t, t, condition):
        calls.append(float(t))
        wrong = (condition.scalars[0] - true).abs()
        alpha, sigma = trained.model.kernel.schedule(t)
        eps = (z_t - alpha * trained.model.encode(ready.x[None])) / sigma + wrong
        return Prediction.from_eps(eps, z_t, alpha, sigma)

    ready = ready_case(trained)
    monkeypatch.setattr(trained.model, "denoise", denoise)
    found = settled(trained, {"age": "estimate"}, ready, key=3)
    estimate = found.estimates["age"]
    nearest = min(estimate.values, key=lambda value: abs(value - age))
    assert estimate.value == found.values["age"] == nearest
    assert (estimate.values[0], estimate.values[-1]) == (20.0, 41.0)
    assert estimate.decided
    assert estimate.network_calls == len(calls) == 54
    schedule = trained.model.kernel.schedule
    log_snrs = schedule.log_snr(torch.tensor(sorted(set(calls)), dtype=torch.float64))
    assert log_snrs.tolist() == pytest.approx(LOG_SNRS, abs=1e-6)
    torch.testing.assert_close(found.condition.scalars, trained.condition(found.values).scalars)


@pytest.mark.parametrize(("slope", "apart"), [(0.0, 0), (0.6, 1)])
def test_several_values_are_estimated_in_turns(trained, monkeypatch, slope, apart):
    """Errors are a bowl of two attributes: turns end where trying all pairs ends, and where it is
    tilted, so that one attribute makes up for the other, one value of the grid beside."""
    ready, calls = ready_case(trained), []
    both = replace(trained.recipe, scalars=("age", "height"))
    statistics = Statistics(
        {"age": (0.0, 1.0), "height": (0.0, 1.0)}, ranges={"age": (0.0, 8.0), "height": (0.0, 8.0)}
    )
    told = replace(trained, statistics=statistics)
    monkeypatch.setattr(type(told), "recipe", property(lambda self: both))

    def wrong(age, height):
        a, h = age - 2, height - 7
        return 0.1 + 0.05 * (a * a + h * h + 2 * slope * a * h)

    def denoise(z_t, t, condition):
        calls.append(tuple(condition.scalars[0].tolist()))
        alpha, sigma = told.model.kernel.schedule(t)
        eps = (z_t - alpha * told.model.encode(ready.x[None])) / sigma
        return Prediction.from_eps(eps + wrong(*calls[-1]), z_t, alpha, sigma)

    monkeypatch.setattr(told.model, "denoise", denoise)
    sought = {"age": "estimate", "height": "estimate"}
    found = settled(told, sought, ready, key=3)
    pairs = [(a, h) for a in range(VALUES) for h in range(VALUES)]
    best = min(pairs, key=lambda pair: wrong(*pair))
    assert best == (2, 7)
    assert [abs(v - b) for v, b in zip(found.values.values(), best, strict=True)] == [apart] * 2
    assert sum(e.network_calls for e in found.estimates.values()) == len(calls)
    assert len(calls) < 6 * VALUES**2 / 2
    assert len(calls) == 6 * len(set(calls))  # no pair is tried twice


def test_a_volume_that_does_not_tell_is_said(trained, monkeypatch):
    """A network that does not listen: every value is as likely."""
    own = trained.model.denoise
    deaf = trained.condition({"age": 30.0})
    monkeypatch.setattr(trained.model, "denoise", lambda z, t, condition: own(z, t, deaf))
    found = settled(trained, {"age": "estimate"}, ready_case(trained), key=3)
    assert not found.estimates["age"].decided
    assert "does not tell its age" in found.warnings[0]


def test_what_cannot_be_estimated_is_refused(trained):
    ready = ready_case(trained)
    blind = Statistics(trained.statistics.scalars)
    with pytest.raises(UsageError, match="does not say which values it was trained with"):
        settled(replace(trained, statistics=blind), {"age": "estimate"}, ready, key=0)
