"""Tuning: closed-form denoisers show the noise paradox, brute force checks the search."""

import json
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from anomaly_models import SCHEDULE, SHAPE, SPACING, blob, foreground, states, wiener
from sklearn.metrics import average_precision_score
from tiny_app import WINDOW, base, program, run
from tiny_runs import tiny

from volumediff.anomaly import method_files
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.lent import Lent
from volumediff.anomaly.tuning_axes import axes_of, written
from volumediff.calibration import collect_maps, lesions
from volumediff.calibration.lesions import Pair
from volumediff.calibration.of_run import load_method
from volumediff.config import shipped
from volumediff.data.anomalies import TEST, VALIDATION
from volumediff.randomness import key
from volumediff.runs import auxiliary_models as lending
from volumediff.runs.trained import Trained, load_trained
from volumediff.settings.run_config import parse
from volumediff.times.uniform import Uniform
from volumediff.training.loop import train
from volumediff.tunable import Tunable
from volumediff.tuning.search import Bench, Budget, Search
from volumediff.tuning.trials import Trial, choose, measure, same_finding
from volumediff.tuning.tune import DEFAULT

__all__ = ["base", "program", "run"]  # fixtures

DDPM = {
    "route": {"name": "diffuse", "log_snr": 0.0},
    "sampler": {"name": "ancestral", "steps": 4},
    "post": [{"name": "smooth", "sigma_mm": 2.0}],
}
LEVELS = {Tunable.LOG_SNR: ()}


def pairs(model, count=3, size=0.35):
    made = []
    for i in range(count):
        x = model.network.sample(i)
        healthy = Example(x, foreground(), SPACING)
        lesion = blob().roll(i - 1, 3)
        made.append(Pair(replace(healthy, x=x + size * lesion, truth=lesion), healthy))
    return made


def bench(tree=DDPM, *, model=None, count=3, **more):
    model = model or wiener(std=0.15, correlation=1.0)
    volumes = pairs(model, count)
    axes = axes_of(method_files.build_method(tree), SCHEDULE)
    return Bench(tree, axes, model, lambda: volumes, **more)


def searched(b, grids=LEVELS, **more):
    search = Search(b, grids, **more)
    search.run()
    return search


def at(b, **values):
    return tuple((name, values.get(name, own)) for name, own in b.own)


def plain(trial):
    return {k: v for k, v in trial.to_json().items() if k != "seconds"}


# --- figures


def test_the_noise_paradox():
    b = bench()
    levels = [8.0, 6.0, 4.0, 2.0, 0.0]  # beyond, x̂ is another subject, in the lesion as well
    trials = [b.measure([b.method(at(b, log_snr=level))])[0] for level in levels]
    for name in ("healthy_error", "healthy_change"):
        assert all(np.diff([t.mean(name) for t in trials]) > 0), name
    left = [t.mean("lesion_left") for t in trials]
    assert all(np.diff(left) < 0)
    assert left[0] == pytest.approx(trials[0].mean("lesion_put"), rel=0.1)
    assert trials[0].lesion_put == pytest.approx([0.35] * 3)
    assert left[-1] < 0.6 * trials[0].mean("lesion_put")


def test_figures_by_hand():
    """The residual of a Gaussian mean has no noise: everything can be said of it in one line."""
    row = method_files.read_method("smoothing", overrides=["post=[]"])
    volumes = pairs(wiener(std=0.15))
    (got,) = measure([row], None, volumes, seed=0)
    assert got.network_calls == 0
    for i, pair in enumerate(volumes):
        lesion, inside = pair.sick.truth, foreground()
        sick, well = (row.find(None, e, key=0) for e in (pair.sick, pair.healthy))
        a, x = sick.map, pair.healthy.x
        assert got.healthy_error[i] == pytest.approx(float(well.map[inside].mean()))
        assert got.lesion_map[i] == pytest.approx(float(a[lesion].mean()))
        assert got.healthy_change[i] == pytest.approx(
            float((well.healthy - x)[inside].abs().mean())
        )
        assert got.lesion_left[i] == pytest.approx(float((sick.healthy - x)[lesion].abs().mean()))
        ap = average_precision_score(lesion[inside].numpy(), a[inside].numpy())
        assert got.ap[i] == pytest.approx(ap, abs=1e-3)


def test_real_lesions_have_healthy_tissue_beside_them():
    row = method_files.read_method("smoothing", overrides=["post=[]"])
    (sick,) = (p.sick for p in pairs(wiener(std=0.15), 1))
    (got,) = measure([row], None, [Pair(sick)], seed=0)
    a, tissue = row.find(None, sick, key=0).map, foreground() & ~sick.truth
    assert got.healthy_error[0] == pytest.approx(float(a[tissue].mean()))
    assert np.isnan(got.lesion_left[0])
    assert np.isnan(got.error("ap"))
    assert Trial.from_json(json.loads(json.dumps(got.to_json()))).to_json() == got.to_json()


def test_figures_are_those_of_calibration():
    """Threshold and normalization are what `calibrate` fits with the same volumes and seed."""
    model = wiener(std=0.15, correlation=1.0)
    row = method_files.read_method("scan", overrides=["normalize.sigma_mm=2"])
    volumes = pairs(model)
    references = [Example(model.network.sample(20 + i), foreground(), SPACING) for i in range(4)]
    (got,) = measure([row], model, volumes, references=references, seed=3)
    known = collect_maps.fit(row, model, references, seed=3)
    known = collect_maps.validate(known, row, model, (p.sick for p in volumes), seed=3)
    assert got.threshold == known.validation_threshold
    assert got.network_calls == 6


def test_without_references_no_volume_is_normalized_with_itself():
    model = wiener(std=0.15, correlation=1.0)
    row = method_files.read_method("scan", overrides=["normalize.sigma_mm=2"])
    volumes = pairs(model, 4)
    (got,) = measure([row], model, volumes, seed=3)
    residuals = [
        row.residual(model, p.healthy, key=key(3, "validation", i)) for i, p in enumerate(volumes)
    ]
    for i, pair in enumerate(volumes):
        statistics = row.normalize.fit(residuals[:i] + residuals[i + 1 :])
        a = row.finish(row.residual(model, pair.sick, key=key(3, "validation", i)), statistics)
        inside = foreground()
        ap = average_precision_score(pair.sick.truth[inside].numpy(), a[inside].numpy())
        assert got.ap[i] == pytest.approx(ap, abs=1e-3)
    with pytest.raises(ValueError, match="expected two healthy volumes beside"):
        measure([row], model, volumes[:2], seed=3)


def test_settings_share_maps_and_nothing_else():
    b = bench()
    widths = [b.method(at(b, **{"post.0.sigma_mm": w})) for w in (0.0, 2.0, 4.0)]
    assert all(same_finding(widths[0], m) for m in widths)
    assert not same_finding(widths[0], b.method(at(b, log_snr=1.0)))
    together = [plain(t) for t in b.measure(widths)]
    assert together == [plain(b.measure([m])[0]) for m in widths]
    assert len({t["threshold"] for t in together}) == 3
    calls = []
    b.model.network.register_forward_pre_hook(lambda *words: calls.append(1))
    b.measure(widths)
    assert len(calls) == 2 * 3 * 4  # with and without lesion, three volumes, four steps: once


# --- the choice


def trial(*ap, calls=1.0):
    rest = dict.fromkeys(("healthy_error", "lesion_map", "healthy_change"), ap)
    return Trial(ap, **rest, lesion_left=ap, lesion_put=ap, threshold=0.0, dice=0.0,
                 network_calls=calls, seconds=0.0)  # fmt: skip


def test_the_choice_by_hand():
    # behind by 0.02, 0.03, 0.04: always, so that the error of the difference is 0.0058
    assert choose({"a": trial(0.5, 0.6, 0.1, calls=9.0), "b": trial(0.48, 0.57, 0.06)}) == "a"
    # behind by 0.1, -0.06, 0.02: on average 0.02, the error is 0.046
    close = {"a": trial(0.5, 0.6, 0.1, calls=9.0), "b": trial(0.4, 0.66, 0.08)}
    assert choose(close) == "b"
    assert choose({**close, "c": trial(0.41, 0.66, 0.08)}) == "c"  # as cheap, higher AP
    assert choose({**close, "b": trial(0.4, 0.66, 0.08, calls=9.0)}) == "a"
    nan = float("nan")
    assert choose({"a": trial(0.1, nan), "b": trial(0.2, nan)}) == "b"
    with pytest.raises(ValueError, match="expected validation volumes with lesions"):
        choose({"a": trial(nan)})


def test_the_search_finds_what_brute_force_finds():
    b = bench()
    search = searched(b)
    ap = {}
    for setting in search.tried:
        method = method_files.build_method(
            {**DDPM, "route": {"name": "diffuse", **dict(setting[:1])}}
        )
        inside, values = foreground(), []
        for i, pair in enumerate(b.pairs()):
            found = method.localize(
                b.model, pair.sick.x, foreground=inside, spacing_mm=SPACING,
                key=key(0, "validation", i),
            )  # fmt: skip
            values.append(average_precision_score(pair.sick.truth[inside], found.map[inside]))
        ap[setting] = np.mean(values)
        assert search.tried[setting].mean("ap") == pytest.approx(ap[setting], abs=1e-3)
    assert search.best() == max(ap, key=ap.get)  # all cost the same
    levels = [dict(setting)["log_snr"] for setting in search.tried]
    assert levels[:5] == [0, 1.5, -1.5, 3, -3]
    best = dict(choose({s: search.tried[s] for s in list(search.tried)[:5]}))["log_snr"]
    assert levels[5:] == [best + 0.75, best - 0.75]
    assert len(set(ap.values())) == 7


def test_every_setting_sees_the_same_noise():
    """A setting's figures do not depend on which others are tried, and in which order."""
    b = bench()
    wide = searched(b, {Tunable.LOG_SNR: (3.0, 0.0, -3.0)})
    narrow = searched(b, {Tunable.LOG_SNR: (-3.0, 0.0)})
    assert list(narrow.tried) != [s for s in wide.tried if s in narrow.tried]
    for setting, found in narrow.tried.items():
        assert plain(found) == plain(wide.tried[setting])
    other = searched(replace(b, seed=1), {Tunable.LOG_SNR: (0.0,)})
    (setting,) = other.tried
    assert plain(other.tried[setting]) != plain(wide.tried[setting])


def test_axes_are_searched_one_after_the_other():
    model = states(means=(-0.2, 0.3), std=0.1, classes=2)
    tree = {
        "route": {"name": "diffuse", "log_snr": 0.0},
        "sampler": {"name": "ddim", "steps": 2},
        "guidance": {"name": "chain", "terms": ["classifier_free", "dynamic_clipping"]},
    }
    volumes = []
    for i in range(2):
        g = torch.Generator().manual_seed(i)
        x = -0.2 + 0.1 * torch.randn((1, 1, *SHAPE), generator=g)
        healthy = Example(x, foreground(), SPACING)
        volumes.append(Pair(replace(healthy, x=x + 0.5 * blob(), truth=blob()), healthy))
    b = Bench(tree, axes_of(method_files.build_method(tree), SCHEDULE), model, lambda: volumes)
    grids = {Tunable.LOG_SNR: (1.0, -1.0), Tunable.STRENGTH: (1.0, 2.0)}
    search = searched(b, grids)
    name = "guidance.terms.0.weight"
    assert [a.name for a in b.axes] == ["log_snr", name]
    first = choose({at(b, log_snr=v): search.tried[at(b, log_snr=v)] for v in (1.0, -1.0)})
    level = dict(first)["log_snr"]
    wanted = [at(b, log_snr=1.0), at(b, log_snr=-1.0)]
    wanted += [at(b, log_snr=level, **{name: v}) for v in (1.0, 2.0)]
    assert list(search.tried) == wanted
    calls = [search.tried[s].network_calls for s in wanted]
    assert calls == [4, 4, 2, 4]  # weight 1 needs one pass
    row = b.row(at(b, log_snr=-1.0, **{name: 2.0}))
    assert row["guidance"]["terms"] == [
        {"name": "classifier_free", "weight": 2.0},
        "dynamic_clipping",
    ]
    assert tree["guidance"]["terms"][0] == "classifier_free"  # the row itself is as it was


def test_a_budget_ends_the_search_and_says_so():
    b = bench(count=1)
    one = 2 * 4  # calls of a setting
    search = searched(b, budget=Budget(calls=2.5 * one))
    assert len(search.tried) == 2
    assert search.stopped == "the budget of 20 network calls ended it at 2 of 5 log_snr"
    assert search.best() in search.tried
    more = searched(b, budget=Budget(calls=2.5 * one), known=search.known)
    assert len(more.tried) == 4  # what is known costs nothing
    assert len(searched(b, budget=Budget(seconds=0.0)).tried) == 1  # the first always is


def test_settings_that_do_not_suit_are_left_out():
    tree = {**DDPM, "route": {"name": "diffuse", "log_snr": -9.0}}
    low = wiener(std=0.15)
    low.time_density = Uniform(0.0, 0.9)
    search = Search(bench(tree, model=low), {Tunable.LOG_SNR: (0.0, -9.0)})
    search.run()
    assert [dict(s)["log_snr"] for s in search.tried] == [0.0]
    (reason,) = search.refused.values()
    assert "expected times up to 0.900" in reason
    with pytest.raises(ValueError, match=r"expected times up to 0\.900.*; use lower ones"):
        searched(bench(tree, model=low), {Tunable.LOG_SNR: (-9.0,)})


# --- what may be tuned


AXES = {
    "ddpm": ["log_snr", "post.0.radius_mm"],
    "scan": ["log_snr", "normalize.sigma_mm"],
    "autoddpm": ["first.log_snr", "log_snr"],
    "repaint": ["first.log_snr"],  # beside pure noise there is nothing
    "cfg_inversion": ["log_snr", "guidance.weight", "post.0.radius_mm"],
    "diff_scm": ["log_snr", "guidance.terms.0.weight"],
    "smoothing": ["baseline.sigma_mm", "post.0.radius_mm"],
    "atlas": ["fitted.floor", "post.0.sigma_mm"],
    "intensity": [],
    "prevalence": [],
}


@pytest.mark.parametrize("name", shipped("anomaly"))
def test_every_row_is_its_tree_and_has_axes(name):
    method, tree = method_files.read_method(name), method_files.method_tree(name)
    assert method_files.build_method(tree) == method
    axes = axes_of(method, SCHEDULE)
    assert [a.name for a in axes] == AXES.get(name, [a.name for a in axes])
    for axis in axes:
        assert axis.changes(axis.own) == {}
        assert axis.coarse()[0] == axis.own
        assert axis.coarse().count(axis.own) == 1
        for value in (axis.coarse()[1], *axis.refined(axis.own)):
            changed = written(tree, axis.changes(value))
            assert changed != tree
            again = {a.name: a.own for a in axes_of(method_files.build_method(changed), SCHEDULE)}
            assert again[axis.name] == pytest.approx(value)
            assert all(again[a.name] == a.own for a in axes if a is not axis)


def test_all_levels_of_a_pass_move_together():
    for name in ("scan", "thor", "graham_ood"):
        method = method_files.read_method(name)
        axis = axes_of(method, SCHEDULE)[0]
        moved = method_files.build_method(
            written(method_files.method_tree(name), axis.changes(axis.own + 0.5))
        )
        for block in ("route", "editing", "ensemble"):
            for field in ("log_snr", "log_snrs"):
                old, new = (getattr(getattr(m, block), field, None) for m in (method, moved))
                if old is not None:
                    np.testing.assert_allclose(new, np.add(old, 0.5), atol=1e-9)


def test_times_move_by_a_log_snr():
    tree = {**DDPM, "route": {"name": "diffuse", "level": 0.5}}
    (axis, _) = axes_of(method_files.build_method(tree), SCHEDULE)
    times = torch.tensor([0.5, axis.changes(axis.own - 2)["route", "level"]], dtype=torch.float64)
    own, moved = SCHEDULE.log_snr(times).tolist()
    assert axis.own == pytest.approx(own, abs=1e-4)
    assert moved == pytest.approx(own - 2, abs=1e-4)


# --- the program


def settings(path):
    content = json.loads(path.read_text())
    return {k: v for k, v in content.items() if k not in ("settings", "sha256")}, [
        {k: v for k, v in entry.items() if k != "seconds"} for entry in content["settings"]
    ]


QUICK = ("--method", "ddpm", "sampler.steps=2", "post=[]", "threshold=validation")


def test_tune_calibrate_localize(program, base, run, tmp_path):
    out = tmp_path / "tuned.yaml"
    words = ("tune", "--run", run, *QUICK, "-o", out)
    code, text, said = program(*words, "--json")
    assert code == 0, said
    found = json.loads(text)
    chosen = next(s for s in found["settings"] if s["setting"] == found["chosen"])
    row = yaml.safe_load(out.read_text())
    assert row["route"] == {"name": "diffuse", **found["chosen"]}
    assert row == found["row"]
    assert found["stopped"] is None
    assert len(found["settings"]) == 7
    assert chosen["mean_ap"] == max(s["mean_ap"] for s in found["settings"])
    assert f"volumediff calibrate --run {run} --method {out}" in said
    code, text, said = program("calibrate", "--run", run, "--method", out)
    assert code == 0, said
    threshold = re.search(r"validation threshold (\S+)", text)[1]
    assert float(threshold) == pytest.approx(chosen["threshold"], rel=1e-3)
    (file,) = (run / "tuning").glob("ddpm-*.json")
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = settings(file)
    code, table, said = program(*words)
    assert code == 0, said
    assert settings(file) == before
    assert said.count("voxel AP") == 0, "nothing is measured twice"
    assert "the method's own" in table
    assert "lesion left" in table


def test_a_search_that_was_stopped_goes_on_bit_for_bit(program, run):
    words = (
        "tune",
        "--run",
        run,
        "--method",
        "ddpm",
        "sampler.steps=2",
        "--widths",
        "0,2",
        "--seed",
    )
    assert program(*words, 1)[0] == 0
    (whole,) = _files(run, 1)
    wanted = settings(whole)
    whole.unlink()
    stopped = []
    for _ in range(20):
        code, table, _ = program(*words, 1, "--budget", "1calls")
        assert code == 0
        stopped.append("not complete: the budget of 1 network calls" in table)
        if not stopped[-1]:
            break
    assert stopped[:2] == [True, True]
    assert not stopped[-1]
    assert settings(whole) == wanted
    assert wanted[0]["result"]["stopped"] is None


def _files(run, seed):
    every = (run / "tuning").glob("ddpm-*.json")
    return [f for f in every if json.loads(f.read_text())["facts"]["seed"] == seed]


def test_damaged_figures_are_said(program, run):
    words = ("tune", "--run", run, *QUICK, "--levels=0", "--seed", 2)
    assert program(*words)[0] == 0
    (file,) = _files(run, 2)
    file.write_text(file.read_text()[:-20])
    code, _, complaint = program(*words)
    assert code == 1
    assert "remove the file to tune anew" in complaint


def test_choices_never_see_the_test_lesions_or_the_test_volumes(run, monkeypatch):
    drawn, read = [], []
    insert, cases = lesions.insert, Trained.cases

    def spied_insert(*args, **words):
        drawn.append(words["family"])
        return insert(*args, **words)

    def spied_cases(self, part):
        read.append(part)
        return cases(self, part)

    monkeypatch.setattr(lesions, "insert", spied_insert)
    monkeypatch.setattr(Trained, "cases", spied_cases)
    from volumediff.tuning.tune import tune

    trained = load_trained(run, device="cpu")
    tune(trained, "scan", overrides=["ensemble.seeds=1"], grids={Tunable.LOG_SNR: (0.0,)}, seed=7)
    assert drawn
    for family in drawn:
        assert (family.shape, family.profile) == (VALIDATION.shape, VALIDATION.profile)
        for name in ("contrast", "texture", "grain_mm", "push_mm"):
            assert getattr(family, name) == getattr(VALIDATION, name) != getattr(TEST, name)
    assert set(read) == {"validation", "calibration"}


def test_baselines_are_tuned_as_well(program, run):
    code, text, said = program("tune", "--run", run, "--method", "smoothing", "--json")
    assert code == 0, said
    found = json.loads(text)
    assert found["searched"] == ["baseline.sigma_mm"]
    tried = [s["setting"]["baseline.sigma_mm"] for s in found["settings"]]
    assert tried[:5] == [4, 2, 8, 1, 16]
    assert len(tried) == 7


# what a row takes of other runs

SOFT = "{name: soft_intro_vae, latent_channels: 3, widths: [4, 8], squeeze: 2}"


@pytest.fixture(scope="module")
def judge(base, run, tmp_path_factory):
    """A classifier of the run's noisy states."""
    attribute = {"attribute": "group", "values": ["control", "patient"], "drop": 0.0}
    tree = {
        "task": "state_classifier",
        "classifier": {"name": "encoder", "of": str(run), "widths": [4, 8], "groups": 2},
        "recipe": {"name": "class_conditional", **attribute},
        "optim": {"lr": 1e-1, "steps": 2, "warmup": 1, "batch_size": 2, "ema": 0.5},
        "validation": {"every": 2, "volumes": 1},
        "output": str(tmp_path_factory.mktemp("judge") / "classifier"),
    }
    return train(parse(tree))


def test_a_row_with_a_classifier_is_tuned_calibrated_and_used(program, run, judge, tmp_path):
    out, name = tmp_path / "tuned.yaml", "guidance.scale"
    quick = ("--method", "wolleb_ddpm", "sampler.steps=2", "post=[]")
    words = ("tune", "--run", run, *quick, "--levels=0", "--guidance=0,500", "-o", out)
    code, _, complaint = program(*words)
    assert code == 2
    assert "got none; give its run" in complaint
    code, text, said = program(*words, "--classifier", judge, "--json")
    assert code == 0, said
    found = json.loads(text)
    assert found["searched"] == ["log_snr", name]
    # at the row's own strength first, then at those that were asked for
    tried = {s["setting"][name]: s for s in found["settings"]}
    assert list(tried) == [100, 0, 500]
    # figures of a setting are those of its row with this classifier
    trained = load_trained(run, device="cpu")
    pairs = list(lesions.validation_pairs(trained, seed=0, limit=None, truth="synthetic"))
    for scale, known in tried.items():
        changes = ("sampler.steps=2", "post=[]", "route.log_snr=0", f"guidance.scale={scale}")
        method = load_method(trained, "wolleb_ddpm", changes, runs={"classifier": judge})
        (got,) = measure([method], trained.model, pairs, seed=0)
        assert got.healthy_error == pytest.approx(known["healthy_error"], rel=1e-5)
    assert tried[0]["healthy_error"] != tried[500]["healthy_error"], "it is asked"
    # the advice is a command that works, and the row is found again
    (advice,) = re.findall(r"next: volumediff (.*)", said)
    code, text, said = program(*shlex.split(advice))
    assert code == 0, said
    code, _, said = program(*words, "--classifier", judge)
    assert code == 0
    assert "voxel AP" not in said, "nothing is measured twice"


def train_first(base, folder, *words):
    words = ("task=autoencoder", f"autoencoder={SOFT}", *words)
    return train(tiny(base / "data", folder, *words, WINDOW, "optim.steps=1"))


def test_a_row_with_a_run_of_its_own_is_tuned_and_calibrated(
    program, base, run, tmp_path, monkeypatch
):
    first, out = train_first(base, tmp_path / "first"), tmp_path / "tuned.yaml"
    row = ("--method", "phanes", "sampler.steps=2", "editing.resampling=1", "threshold=validation")
    row += ("route={name: diffuse, log_snr: 0}", "post=[{name: smooth, sigma_mm: 4}]")
    grids = ("--levels=0,3", "--widths=0,2,4", "-o", out)
    code, _, complaint = program("tune", "--run", run, *row, *grids)
    assert code == 2
    assert "first.run: expected the folder of the run" in complaint
    words = ("tune", "--run", run, *row, f"first.run={first}", *grids)
    loaded, looks, load, find = [], [], lending.load_trained, Lent.find

    def spied_load(path, **more):
        loaded.append(path)
        return load(path, **more)

    def spied_find(self, model, example, *, key):
        looks.append(key)
        return find(self, model, example, key=key)

    monkeypatch.setattr(lending, "load_trained", spied_load)
    monkeypatch.setattr(Lent, "find", spied_find)
    code, text, said = program(*words, "--json")
    assert code == 0, said
    found = json.loads(text)
    assert found["searched"] == ["log_snr", "post.0.sigma_mm"]
    assert len(found["settings"]) == 4
    assert loaded == [first], "once for all settings"
    # with and without a lesion: two levels, and once for the two other widths together
    assert len(looks) == (2 + 1) * 2 * len(found["volumes"])
    written = yaml.safe_load(out.read_text())
    assert written["first"] == {"row": "ra", "run": str(first)}
    (advice,) = re.findall(r"next: volumediff (.*)", said)
    code, text, said = program(*shlex.split(advice))
    assert code == 0, said
    # figures belong to the weights of that run, wherever it lies
    files = sorted((run / "tuning").glob("phanes-*.json"))
    shutil.rmtree(first)
    train_first(base, first, "seed=5")
    code, text, said = program(*words, "--json")
    assert code == 0, said
    assert "voxel AP" in said
    assert len(sorted((run / "tuning").glob("phanes-*.json"))) == len(files) + 1


def test_what_another_run_finds_has_no_axis():
    row = method_files.read_method("phanes", overrides=["first.row=smoothing", "route.level=0.5"])
    assert [a.name for a in axes_of(row, SCHEDULE)] == ["log_snr"]


WRONG = {
    "levels": (("--levels", "low"), "--levels low: expected auto, none, or numbers"),
    "inf": (("--levels", "inf"), "--levels inf: expected"),
    "negative": (("--guidance", "-1"), "--guidance -1: expected auto, none, or numbers >= 0"),
    "budget": (("--budget", "5min"), "--budget 5min: expected seconds such as 600"),
    "ending": (("-o", "row.txt"), "-o row.txt: expected a name that ends with .yaml"),
    "method": (("--method", "ddmp"), "Did you mean 'ddpm'?"),
    "nothing": (("--method", "prevalence"), "it has none of them"),
    "none": (("--method", "ddpm", "--levels", "none"), "only log_snr, post.0.radius_mm"),
    "unlabelled": (("--method", "ddpm", "--truth", "label"), "has no label"),
    "no classes": (("--method", "cfg_inversion"), "class-conditional"),
    "truth": (("--truth", "real"), "'synthetic', 'label'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(name, program, run):
    words, reason = WRONG[name]
    code, _, complaint = program("tune", "--run", run, *words)
    assert code == 2
    assert reason in complaint
    assert complaint.splitlines()[-1].startswith("volumediff: error: ")


def test_the_defaults_leave_widths_alone():
    assert set(Tunable) - set(DEFAULT) == {Tunable.TIME, Tunable.WIDTH}
