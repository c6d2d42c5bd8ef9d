"""Another site: drift against scipy, thresholds that hold there, and the commands."""

import json
import shutil

import numpy as np
import pytest
import torch
from anomaly_models import wiener
from scipy.stats import ks_2samp, kstwobign
from tiny_app import base, oblique, program, run, save
from tiny_runs import phantom

from volumediff.anomaly.baselines import IntensityBaseline
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.normalization import ByIntensity
from volumediff.anomaly.routes.scan import Scan
from volumediff.anomaly.score import ZAverage
from volumediff.anomaly.threshold import Conformal, HealthyFPR
from volumediff.calibration.collect_maps import fit, recalibrate
from volumediff.calibration.site import MAPS_BOUND, drift_between
from volumediff.metrics.detection import histogram, rates, total
from volumediff.metrics.drift import critical, ks_of_histograms, ks_of_samples

__all__ = ["base", "program", "run"]  # fixtures

SHAPE = (1, 1, 8, 8, 8)
INSIDE = torch.ones(SHAPE, dtype=torch.bool)


def volumes(count, *, first=0, mean=0.0, std=0.2):
    """Healthy volumes of a site; subjects differ in brightness."""
    for i in range(first, first + count):
        g = torch.Generator().manual_seed(i)
        x = mean + std * (torch.randn(SHAPE, generator=g) + 0.3 * torch.randn((), generator=g))
        yield Example(x.clamp(-1, 1), INSIDE, (3.0, 3.0, 3.0))


def test_drift_is_the_statistic_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 40, 300) / 8, rng.integers(5, 48, 170) / 8  # with ties
    expected = ks_2samp(a, b).statistic
    assert expected > 0.1
    assert ks_of_samples(a.tolist(), b.tolist()) == pytest.approx(expected)
    first, second = (histogram(torch.from_numpy(v).float()) for v in (a, b))
    assert ks_of_histograms(first, second) == pytest.approx(expected)
    assert ks_of_histograms(second, first) == pytest.approx(expected)
    assert ks_of_histograms(first, first) == 0
    assert critical(40, 60) == pytest.approx(kstwobign.isf(0.05) * np.sqrt(100 / 2400), rel=1e-4)
    with pytest.raises(ValueError, match="two samples, got 0 and 1"):
        ks_of_samples([], [1.0])
    with pytest.raises(ValueError, match="healthy voxels in both"):
        ks_of_histograms(first, total([]))


def marked(method, calibration, examples, threshold):
    """Share of healthy voxels above a threshold, per volume."""
    shares = []
    for i, e in enumerate(examples):
        a = method.finish(method.residual(None, e, key=i), calibration.statistics)
        shares.append(rates(histogram(a, foreground=e.foreground), threshold).fpr)
    return np.array(shares)


@pytest.mark.parametrize("normalize", [{}, {"normalize": ByIntensity(sigma_mm=0.0, bins=2)}])
def test_the_recalibrated_rate_holds_at_the_site(normalize):
    method = IntensityBaseline(threshold=HealthyFPR(rate=0.05), **normalize)
    own = fit(method, None, volumes(20), seed=0)
    site = {"mean": 0.15, "std": 0.25}
    fresh = list(volumes(60, first=500, **site))
    there = recalibrate(own, method, None, volumes(40, first=200, **site), seed=0)
    before = marked(method, own, fresh, method.threshold(own)).mean()
    after = marked(method, there, fresh, method.threshold(there)).mean()
    assert before > 0.12
    # volumes of a site differ: tolerance of two standard errors of the mean over both sets
    assert after == pytest.approx(0.05, abs=0.02)
    assert there.statistics is own.statistics
    assert there.fingerprint == own.fingerprint
    assert there.volumes == 40
    assert (there.validation_threshold, there.probability) == (None, None)
    drift = drift_between(method, own, there)
    assert drift.rate == pytest.approx(0.05, abs=0.002)
    assert drift.maps >= drift.false_alarms - drift.rate > 0.06
    assert "warning" in drift.lines()[-1]


def test_the_conformal_threshold_covers_the_site():
    method = IntensityBaseline(threshold=Conformal(probability=0.8, rate=0.01))
    own = fit(method, None, volumes(20), seed=0)
    site = {"mean": 0.2, "std": 0.2}
    there = recalibrate(own, method, None, volumes(60, first=200, **site), seed=0)
    fresh = list(volumes(100, first=500, **site))
    covered = (marked(method, there, fresh, method.threshold(there)) <= 0.01).mean()
    assert 0.8 - 0.13 < covered < 0.8 + 0.13  # both sets are finite: sd .052 and .040
    assert (marked(method, own, fresh, method.threshold(own)) <= 0.01).mean() < 0.4


def test_the_same_site_has_not_drifted():
    method = IntensityBaseline()
    own = fit(method, None, volumes(30), seed=0)
    there = recalibrate(own, method, None, volumes(30, first=100), seed=0)
    drift = drift_between(method, own, there)
    assert drift.scores < drift.scores_bound
    assert drift.maps < MAPS_BOUND
    assert not any("warning" in line for line in drift.lines())
    healthy = ks_2samp(own.scores, there.scores).statistic
    assert drift.scores == pytest.approx(healthy)


def test_scores_in_units_of_healthy_volumes_need_some():
    method = Localizer(route=Scan(levels=(0.5,)), score=ZAverage())
    model = wiener(shape=SHAPE[2:])
    own = fit(method, model, volumes(4), seed=0)
    with pytest.raises(ValueError, match="at least 3 healthy volumes of the site, got 2"):
        recalibrate(own, method, model, volumes(2), seed=0)
    assert recalibrate(own, method, model, volumes(3, first=10), seed=0).errors.shape == (3, 1)


def site_folder(folder, *, names="other", gain=0.7):
    for i in range(4):
        image = gain * phantom(50 + i)
        save(folder / f"{names}-{i}_T1w.nii.gz", image, np.diag([3.0, 3, 3, 1]))
    return folder


def test_the_commands(run, program, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    site = site_folder(tmp_path / "site")
    words = ("--method", "intensity", "threshold={name: healthy_fpr, min_volumes: 2}")
    code, said, err = program("calibrate", "--run", tmp_path / "run", *words, "--site", site)
    assert code == 0, err
    assert "healthy scores drift by KS" in said
    assert "warning: the site is not like the run's" in said
    stored = list((tmp_path / "run" / "calibration" / "intensity").glob("site-*/*.safetensors"))
    assert len(stored) == 1
    name = stored[0].parent.name
    assert f"calibrated on 4 volumes of {name}" in said
    # the site is its volumes: other names of the same files find it again
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(site / "other-1_T1w.nii.gz", source / "a_T1w.nii.gz")
    save(source / "b_T1w.nii.gz", 0.7 * phantom(80), oblique())
    renamed = site_folder(tmp_path / "renamed", names="volume")
    command = ("localize", source, "--run", tmp_path / "run", *words, "-o")
    code, _, err = program(*command, tmp_path / "there", "--site", renamed)
    assert code == 0, err
    assert "healthy scores drift" in err
    assert "calibrating" not in err
    assert program(*command, tmp_path / "own")[0] == 0
    facts = {
        where: json.loads((tmp_path / where / f"{case}_desc-anomaly_map.json").read_text())
        for where, case in (("there", "a"), ("own", "a"))
    }
    other = json.loads((tmp_path / "there" / "b_desc-anomaly_map.json").read_text())
    assert facts["there"]["site"] == name
    assert facts["there"]["of_site"] is True
    assert other["of_site"] is False
    assert "site" not in facts["own"]
    assert facts["there"]["threshold"] < 0.8 * facts["own"]["threshold"]
    assert facts["there"]["thresholds"].keys() == {"healthy_fpr"}
    # thresholds of another site are other results
    code, _, err = program(*command, tmp_path / "own", "--site", site)
    assert code == 2
    assert "overwrite them" in err


def test_what_is_no_site_is_refused(run, program, tmp_path):
    command = ("calibrate", "--run", run, "--method", "intensity")
    code, _, err = program(*command, "threshold=best", "--site", site_folder(tmp_path / "site"))
    assert code == 2
    assert "has nothing that is calibrated" in err
    code, _, err = program(*command, "--site", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err
    assert "nothing there" in err
    assert err.count("\n") == 1
