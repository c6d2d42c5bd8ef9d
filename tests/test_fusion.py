"""Fusion of methods: tails and combinations against SciPy, and whole fusions on tiny runs."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_app import WINDOW, oblique, program, save, tiny_run, write_cases  # noqa: F401
from tiny_runs import tiny

from volumediff.anomaly.baselines import IntensityBaseline, Prevalence, Smoothing
from volumediff.anomaly.combinations import Fisher, Isotonic, Logistic, MinimumP, Stouffer
from volumediff.anomaly.leave_one_out import Without
from volumediff.anomaly.member import Member
from volumediff.anomaly.method_files import build_method, read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.fusion import Fusion
from volumediff.anomaly.normalization import (
    Normalization,
    OwnMedian,
    PresumedHealthy,
    Raw,
    Residual,
    Voxelwise,
)
from volumediff.anomaly.tails import HealthyTail, OwnRanks
from volumediff.anomaly.threshold import Fixed
from volumediff.calibration.collect_maps import fit, validate
from volumediff.calibration.spool import Spool
from volumediff.errors import UsageError
from volumediff.metrics.detection import histogram, total
from volumediff.training.loop import train

SHAPE = (1, 1, 6, 7, 5)
SPACING = (2.0, 2.0, 2.0)


def uniform(k=3, n=20_000, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand((k, n), generator=g, dtype=torch.float64)


def example(i, lesion=False):
    g = torch.Generator().manual_seed(i)
    x = 0.3 * torch.randn(SHAPE, generator=g)
    truth = torch.zeros(SHAPE, dtype=torch.bool)
    truth[..., 1:4, 2:5, 1:3] = True
    inside = torch.ones(SHAPE, dtype=torch.bool)
    inside[..., 0] = False
    return Example(x + lesion * truth, inside, SPACING, truth=truth & lesion)


def fusion(*more, **arguments):
    members = (
        Member(label="bright", row=IntensityBaseline(normalize=Voxelwise())),
        Member(label="edges", row=Smoothing()),
        *more,
    )
    return Fusion(members=members, **arguments)


@pytest.mark.parametrize(
    ("rule", "name"), [(Fisher(), "fisher"), (Stouffer(), "stouffer"), (MinimumP(), "tippett")]
)
def test_tests_are_those_of_scipy(rule, name):
    p = uniform(4, 200)
    got = rule(-p.log(), {})
    theirs = [stats.combine_pvalues(column, method=name).pvalue for column in p.T.numpy()]
    np.testing.assert_allclose(got.numpy(), -np.log(theirs), rtol=1e-9, atol=1e-12)


def test_weights_of_stouffer_are_those_of_scipy():
    p, w = uniform(3, 100), (1.0, 2.0, 0.5)
    got = Stouffer(weights=w)(-p.log(), {})
    theirs = [stats.combine_pvalues(c, method="stouffer", weights=w).pvalue for c in p.T.numpy()]
    np.testing.assert_allclose(got.numpy(), -np.log(theirs), rtol=1e-9)
    with pytest.raises(ValueError, match="expected 4 weights, one for each member, got 3"):
        Stouffer(weights=w)(uniform(4, 5), {})
    with pytest.raises(ValueError, match="numbers above 0"):
        Stouffer(weights=(1.0, 0.0))


@pytest.mark.parametrize("rule", [Fisher(), Stouffer(), MinimumP()])
def test_independent_uniform_members_give_a_uniform_tail(rule):
    combined = torch.exp(-rule(-uniform().log(), {}))
    assert stats.kstest(combined.numpy(), "uniform").pvalue > 0.01


def test_fisher_is_chi_squared_far_out():
    y = torch.tensor([[1.0, 50.0, 300.0], [0.5, 60.0, 200.0]], dtype=torch.float64)
    theirs = -stats.chi2(4).logsf(2 * y.sum(0).numpy())
    np.testing.assert_allclose(Fisher()(y, {}).numpy(), theirs, rtol=1e-9)
    assert torch.isfinite(MinimumP()(y, {})).all()
    assert torch.isfinite(Stouffer()(y, {})).all()


def test_ranks_within_the_volume_by_hand_and_under_rising_transforms():
    values = torch.tensor([3.0, 1.0, 2.0, 2.0, -5.0])
    expected = -np.log(np.array([1, 4, 3, 3, 5]) / 5)
    np.testing.assert_allclose(OwnRanks().surprise(values, {}).numpy(), expected)
    for moved in (values.exp(), 3 * values - 7, values**3):
        torch.testing.assert_close(OwnRanks().surprise(moved, {}), OwnRanks().surprise(values, {}))


def test_healthy_tail_counts_healthy_voxels():
    healthy = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    statistics = HealthyTail().fit(total([histogram(healthy[:2000]), histogram(healthy[2000:])]))
    values = torch.linspace(-5, 6, 200)
    above = (healthy[None] >= values[:, None]).sum(1)
    expected = -torch.log((above + 1) / 5001)
    got = HealthyTail().surprise(values, statistics)
    assert float((got - expected).abs().max()) < 0.02
    assert float(got.max()) == pytest.approx(np.log(5001), abs=0.01)
    assert len(statistics["edges"]) < 2000
    shifted = HealthyTail().fit(histogram(2 * healthy - 3))  # units do not matter
    again = HealthyTail().surprise(2 * values - 3, shifted)
    assert float((again - got).abs().max()) < 0.02
    with pytest.raises(ValueError, match="expected healthy voxels, got none"):
        HealthyTail().fit(total([]))
    with pytest.raises(ValueError, match="sigma_mm"):
        OwnRanks(sigma_mm=-1.0)


@pytest.mark.parametrize("rule", [Fisher(), Stouffer(), MinimumP()])
@pytest.mark.parametrize("tail", [OwnRanks(), HealthyTail()])
def test_a_constant_member_changes_no_order(rule, tail):
    model, one = None, example(50, lesion=True)
    healthy = [example(i) for i in range(4)]
    found = []
    for more in ((), (Member(label="nothing", row=Prevalence()),)):
        method = fusion(*more, tail=tail, combination=rule, threshold=Fixed(1.0))
        calibration = fit(method, model, healthy, seed=0)
        a = method.localize(
            model,
            one.x,
            foreground=one.foreground,
            spacing_mm=SPACING,
            key=1,
            calibration=calibration,
        )
        if more:
            added = a.contributions["nothing"][one.foreground]
            assert float(added.max()) == float(added.min())
        found.append(a.map[one.foreground].double())
    assert stats.spearmanr(*found).statistic == pytest.approx(1.0, abs=1e-6)


def test_streamed_statistics_are_those_of_all_at_once():
    method = fusion()
    residuals = [method.residual(None, example(i), key=i) for i in range(5)]
    with Spool() as spool:
        for residual in residuals:
            spool.append(residual)
        assert len(spool) == 5
        assert torch.equal(spool[3].members[1].map, residuals[3].members[1].map)
        assert spool[3].members[0].x is spool[0].x or spool[3].members[0].x.shape == SHAPE
        assert [len(r.members) for r in spool[1:3]] == [2, 2]
        streamed = method.statistics_of(spool)
        maps = list(method.held_out(spool, streamed))
    whole = method.statistics_of(residuals)
    assert streamed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(streamed[name], value)
    for a, b in zip(maps, method.held_out(residuals, whole), strict=True):
        assert torch.equal(a, b)


def test_held_out_maps_have_not_seen_their_own_volume():
    method = fusion()
    residuals = [method.residual(None, example(i), key=i) for i in range(5)]
    statistics = method.statistics_of(residuals)
    maps = list(method.held_out(residuals, statistics))
    others = method.statistics_of(Without(residuals, 2))
    # members: the statistics of the others; tails: those of the others' held-out maps in all five
    assert not torch.equal(maps[2], method.finish(residuals[2], statistics))
    close = method.finish(residuals[2], others)
    inside = residuals[2].foreground
    assert stats.spearmanr(maps[2][inside], close[inside]).statistic > 0.97
    assert list(Without([1, 2, 3], 1)) == [1, 3]
    assert Without([1, 2, 3], 1)[-1] == 3
    assert Without([1, 2, 3], 0)[0:2] == [2, 3]


def test_a_fusion_is_fisher_of_the_ranks_of_its_members():
    method = Fusion(
        members=(
            Member(label="a", row=IntensityBaseline()),
            Member(label="b", row=Smoothing(sigma_mm=2.0)),
        ),
        tail=OwnRanks(),
        threshold=Fixed(1.0),
    )
    one = example(3, lesion=True)
    got = method.localize(None, one.x, foreground=one.foreground, spacing_mm=SPACING, key=1)
    p = []
    for row in (IntensityBaseline(), Smoothing(sigma_mm=2.0)):
        a = row.find(None, one, key=1).map[one.foreground].numpy()
        p.append([(a >= v).mean() for v in a])
    theirs = [stats.combine_pvalues(column).pvalue for column in np.transpose(p)]
    np.testing.assert_allclose(got.map[one.foreground].numpy(), -np.log(theirs), rtol=1e-5)
    summed = sum(got.contributions.values())[one.foreground]
    np.testing.assert_allclose(summed.numpy(), -np.log(np.prod(p, 0)), rtol=1e-5)
    assert got.network_calls == {"a": 0, "b": 0}
    assert got.pseudo_healthy is not None  # of the second member


def lesioned(seed, n=40_000):
    """Two surprises of exponential law, the first shifted in lesions, and a third of noise."""
    truth = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.05
    f = -uniform(3, n, seed).log()
    f[0] += 1.5 * truth
    f[1] += 0.7 * truth
    return f, truth


def test_logistic_weights_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    f, truth = lesioned(0, n=15_000)
    got = Logistic(ridge=0.0).fit([(f[:, :7000], truth[:7000]), (f[:, 7000:], truth[7000:])])
    theirs = LogisticRegression(C=1e12, tol=1e-8, max_iter=5000).fit(f.T.numpy(), truth.numpy())
    expected = np.clip(theirs.coef_[0], 0, None)
    np.testing.assert_allclose(got["weights"][:2].numpy(), expected[:2], atol=0.02)
    assert float(got["offset"]) == pytest.approx(theirs.intercept_[0], abs=0.05)
    assert float(got["weights"][2]) < 0.03
    probability = 1 - torch.exp(-Logistic()(f, got))
    assert float(probability.mean()) == pytest.approx(float(truth.double().mean()), rel=0.02)


@pytest.mark.parametrize("rule", [Logistic(), Isotonic()])
def test_learned_combinations_prefer_the_member_that_knows(rule):
    statistics = rule.fit([lesioned(1), lesioned(2)])
    f, truth = lesioned(3)
    a = rule(f, statistics)
    from sklearn.metrics import average_precision_score as ap

    own = [ap(truth.numpy(), row.numpy()) for row in f]
    assert ap(truth.numpy(), a.numpy()) > max(own)
    shares = rule.contributions(f, statistics)[:, truth].sum(1)
    assert shares[0] > shares[1] > shares[2]
    for kind in (torch.ones_like(truth), torch.zeros_like(truth)):
        with pytest.raises(ValueError, match="inside and outside of lesions"):
            rule.fit([(f, kind)])


def test_a_learned_fusion_calibrates_on_lesions():
    method = fusion(combination=Logistic(), threshold=Fixed(0.1))
    healthy = [example(i) for i in range(4)]
    sick = [example(10 + i, lesion=True) for i in range(4)]
    calibration = fit(method, None, healthy, seed=0, lesions=iter(sick))
    assert "combination.weights" in calibration.statistics
    assert validate(calibration, method, None, sick, seed=0).validation_threshold > 0
    with pytest.raises(ValueError, match="inside and outside of lesions"):
        fit(method, None, healthy, seed=0)
    one = sick[0]
    with pytest.raises(ValueError, match="fusion: expected a calibration on healthy volumes"):
        method.localize(None, one.x, foreground=one.foreground, spacing_mm=SPACING, key=1)


def test_a_member_may_use_a_method_and_change_it():
    tree = {
        "members": {
            "scan": {"use": "scan", "ensemble": {"seeds": 1}, "map": "l1"},
            "dark": {"baseline": {"name": "intensity", "sign": -1}},
            "gone": None,
        },
        "combination": {"name": "stouffer", "weights": [1.0, 2.0]},
    }
    method = build_method(tree)
    assert [m.label for m in method.members] == ["scan", "dark"]
    assert method.members[0].row.ensemble.seeds == 1
    assert method.members[0].row.route == read_method("scan").route
    assert method.members[1].row.sign == -1
    words = ["members.scan.ensemble.seeds=3", "members.atlas=null", "members.more=intensity"]
    changed = read_method("fusion", overrides=[*words, "members.more.sign=1"][:3])
    assert [m.label for m in changed.members] == ["scan", "more"]
    assert changed.members[0].row.ensemble.seeds == 3
    assert changed.fingerprint != read_method("fusion").fingerprint


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"members": {"scan": "scan"}}, "at least two methods, each with a name"),
        ({"members": ["scan", "atlas"]}, "expected a name for each method"),
        ({"members": {"scan": "scann", "b": "atlas"}}, "Did you mean 'scan'"),
        ({"members": {"a b": "scan", "b": "atlas"}}, "small letters and digits"),
        ({"members": {"combination": "scan", "b": "atlas"}}, "that are not combination"),
        ({"members": {"a": {"use": 3}, "b": "atlas"}}, "members.a.use: expected the name"),
        ({"members": {"a": {"use": "scan", "run": 3}, "b": "atlas"}}, "members.a.run"),
        ({"members": {"a": "fusion", "b": "atlas"}}, "no fusion in a fusion"),
        ({"members": {"a": "inpaint_given", "b": "atlas"}}, "needs no region"),
        ({"members": {"a": "synthetic", "b": "atlas"}}, "write supervision: self"),
        (
            {"members": {"a": "scan", "b": "atlas"}, "normalize": "voxelwise"},
            "the tail takes its place",
        ),
        ({"members": {"a": "scan", "b": "atlas"}, "combination": "fischer"}, "'fisher'"),
    ],
)
def test_wrong_fusions_are_refused_in_one_line(tree, message):
    with pytest.raises(UsageError, match=message) as error:
        build_method(tree)
    assert "\n" not in str(error.value)


MEMBERS = (
    "members={scan: {use: scan, route: {log_snrs: [-0.64]}, ensemble: {seeds: 1}}, "
    "place: atlas, bright: {use: intensity, normalize: {name: voxelwise, sigma_mm: 0.0}}}"
)
FEW = "threshold={name: healthy_fpr, rate: 0.2, min_volumes: 3}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fusion")


@pytest.fixture(scope="module")
def run(folder):
    return tiny_run(folder)


def test_the_program_localizes_calibrates_and_reports(program, run, folder):  # noqa: F811
    cases, out = write_cases(folder / "new", count=2), folder / "out"
    words = (MEMBERS, FEW, "post=[]")
    code, _, err = program(
        "localize", cases, "--run", run, "-o", out, "--method", "fusion", *words
    )
    assert code == 0, err
    facts = json.loads((out / "new-0_desc-anomaly_map.json").read_text())
    assert [m["name"] for m in facts["members"]] == ["scan", "place", "bright"]
    assert sum(m["share"] for m in facts["members"]) == pytest.approx(1, abs=1e-5)
    assert [m["network_calls"] for m in facts["members"]] == [1, 0, 0]
    for member in facts["members"]:
        assert (out / member["file"]).is_file()
    findings = json.loads((out / "new-0_desc-anomaly_findings.json").read_text())
    assert findings["findings"]
    for finding in findings["findings"]:
        assert sum(finding["shares"].values()) == pytest.approx(1, abs=1e-4)
    before = (out / "new-0_desc-anomaly_findings.json").read_bytes()
    code, _, err = program("findings", out, "--images", cases, "--report")
    assert code == 0, err
    assert (out / "new-0_desc-anomaly_findings.json").read_bytes() == before
    page = (out / "findings_cases" / "new-0.html").read_text()
    assert "Share of each member in the map of the volume: scan " in page
    assert "share of members" in page
    code, _, err = program("calibrate", "--run", run, "--method", "fusion", *words)
    assert code == 0, err


def test_a_member_of_another_run_sees_its_own_grid(program, run, folder):  # noqa: F811
    other = folder / "coarse"
    if not (other / "checkpoints").is_dir():
        shape = "data.preprocessing={shape: [4, 4, 4], spacing_mm: 6.0}"
        train(
            tiny(
                folder / "data",
                other,
                "data.split={validation: 0.2, calibration: 0.5}",
                "optim.steps=2",
                shape,
                WINDOW,
            )
        )
    cases, out = write_cases(folder / "new", count=1), folder / "two_runs"
    words = (
        f"members={{place: atlas, coarse: {{use: atlas, run: {other}}}}}",
        FEW,
        "post=[]",
    )
    code, _, err = program(
        "localize", cases, "--run", run, "-o", out, "--method", "fusion", *words
    )
    assert code == 0, err
    facts = json.loads((out / "new-0_desc-anomaly_map.json").read_text())
    assert facts["borrowed"]["members[1].lent"]["run"] == str(other.resolve())
    assert (other / "calibration" / "fits").is_dir()
    missing = (f"members.coarse={{use: atlas, run: {folder / 'none'}}}", *words[1:])
    code, _, err = program(
        "localize", cases, "--run", run, "-o", out, "--method", "fusion", *missing
    )
    assert code == 2
    assert "none" in err


def test_the_view_of_another_run_comes_back_where_it_was(run, folder):
    from volumediff.runs.lent_run import lent_run
    from volumediff.runs.trained import load_trained

    trained = load_trained(run, device="cpu")
    same = lent_run("here", run, trained)
    one = trained.example(trained.cases("calibration")[0])
    there, back = same.prepared(one)
    torch.testing.assert_close(there.x, torch.where(one.foreground, one.x, -1.0))
    assert torch.equal(there.foreground, one.foreground)
    a = torch.rand(one.foreground.shape)
    torch.testing.assert_close(back(a), a)


def test_tuning_names_the_members(program, run):  # noqa: F811
    code, _, err = program("tune", "--run", run, "--method", "fusion")
    assert code == 2
    assert "tune its members (scan, atlas) one by one" in err


def test_own_median_is_that_of_scipy_and_knows_no_unit():
    one = example(3, lesion=True)
    residual = Residual(one.x.abs() * one.foreground, one.x, one.foreground, SPACING)
    z = OwnMedian()(residual, {})[one.foreground].numpy()
    a = residual.map[one.foreground].numpy()
    theirs = (a - np.median(a)) / stats.median_abs_deviation(a, scale=1 / 1.4826)
    np.testing.assert_allclose(z, theirs, atol=0.06)
    other = Residual(7 * residual.map + 2, one.x, one.foreground, SPACING)
    np.testing.assert_allclose(OwnMedian()(other, {})[one.foreground].numpy(), z, atol=1e-4)


@dataclass(frozen=True)
class AsItIs(Normalization):
    """Healthy units already."""

    def prepare(self, residual):
        return residual

    def fit(self, residuals):
        return {"one": torch.ones(1)}

    def __call__(self, residual, statistics):
        return residual.map


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.5, 3.0)])
def test_presumed_healthy_part_undoes_shift_and_scale_of_a_site(mean, std):
    z = torch.randn((1, 1, 40, 40, 40), generator=torch.Generator().manual_seed(0))
    inside = torch.ones_like(z, dtype=torch.bool)
    site = mean + std * z
    found = PresumedHealthy(AsItIs(), share=0.9)(Residual(site, z, inside, SPACING), {})
    assert float((found - z).abs().max()) < 0.1
    lesion = site.clone()
    lesion[..., :2, :2, :] += 100
    again = PresumedHealthy(AsItIs(), share=0.9)(Residual(lesion, z, inside, SPACING), {})
    assert float((again - z)[..., 2:, 2:, :].abs().max()) < 0.15
    with pytest.raises(ValueError, match="use own_median for the map of the volume alone"):
        PresumedHealthy(Raw())
