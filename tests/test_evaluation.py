"""Evaluation with all outputs of a method, with some, and what its figures may not depend on."""

import errno
import json

import numpy as np
import pytest
import torch
from tiny_app import base, program, run, save, write_cases

from volumediff.anomaly._disagreement import Spread
from volumediff.anomaly.calibration import Calibration
from volumediff.calibration.of_run import load_method
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.confounding import confounding
from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.evaluation.evaluate import evaluate
from volumediff.evaluation.localization_metrics import WAITING_METRICS
from volumediff.evaluation.summary import (
    case_table,
    confounded_lines,
    gap_table,
    measure_table,
    size_table,
)
from volumediff.evaluation.to_json import to_json
from volumediff.evaluation.truths import find_truths
from volumediff.inference.cost import counted
from volumediff.metrics import calibration_error, detection, normative
from volumediff.metrics.consistency import through_plane
from volumediff.outputs.ledger import open_ledger, read_entries
from volumediff.reporting.curves import write_curves
from volumediff.reporting.views import views_of
from volumediff.runs.trained import load_trained

__all__ = ["base", "program", "run"]  # fixtures

AFFINE = np.diag([4.0, 4, 4, 1])
SHAPE = (12, 12, 12)
PROBABILITY = {"edges": [0.0, 0.5, 1.0], "values": [0.01, 0.2, 0.9]}


def smooth_noise(rng):
    from scipy.ndimage import gaussian_filter

    x = gaussian_filter(rng.normal(size=SHAPE), 1.0)
    return (100 + 40 * x / x.std()).astype(np.float32)


def write_outputs(folder, truth, *, restored="healthy", cases=6):
    """Every output that a method can have; odd cases are healthy. Returns them by case."""
    rng, known = np.random.default_rng(0), {}
    for i in range(cases):
        case, lesion, healthy = f"p{i}", np.zeros(SHAPE, np.uint8), smooth_noise(rng)
        if i % 2 == 0:
            lesion[3:9, 3:9, 3 : 5 + i] = 1
        image = healthy + 90 * lesion
        scores = rng.uniform(0, 1, SHAPE).astype(np.float32) + 0.5 * lesion
        foreground = np.ones_like(lesion)
        foreground[0] = 0
        mask = ((scores > 0.9) & (foreground > 0)).astype(np.uint8)
        u = rng.uniform(0, 1, SHAPE).astype(np.float32) + (mask != lesion)
        save(truth / f"{case}_mask.nii.gz", lesion, AFFINE)
        save(truth / f"{case}_T1w.nii.gz", image, AFFINE)
        for name, array in (
            ("desc-anomaly_map", scores * foreground),
            ("desc-foreground_mask", foreground),
            ("desc-anomaly_mask", mask),
            ("desc-uncertainty_map", u * foreground),
            ("desc-pseudohealthy_image", healthy if restored == "healthy" else image),
        ):
            save(folder / f"{case}_{name}.nii.gz", array, AFFINE)
        sidecar = {"method": folder.name, "score": float(scores.max())}
        sidecar |= {"thresholds": {"validation": 0.9}, "probability": PROBABILITY}
        (folder / f"{case}_desc-anomaly_map.json").write_text(json.dumps(sidecar))
        facts = {"seconds": 2.0 + i, "network_calls": 10 * i, "peak_gb": None}
        with open_ledger(folder, job="j") as ledger:
            ledger.done(case, inputs={}, outputs=[], facts=facts)
        known[case] = (scores, lesion > 0, foreground > 0, mask > 0, u, image, healthy)
    return known


def test_figures_are_those_of_the_parts(tmp_path):
    known = write_outputs(tmp_path / "m", tmp_path / "truth")
    lines = []
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=20, report=lines.append)
    assert not result.left_out
    assert not lines
    value = {name: m.value for name, m in result.measures.items()}
    assert value["seconds"] == 4.5
    assert value["network_calls"] == 25
    assert np.isnan(value["peak_gb"])

    p, y, u, wrong = [], [], [], []
    for scores, lesion, foreground, mask, uncertainty, *_ in known.values():
        inside = foreground | lesion
        p.append(calibration_error.Probability((0.0, 0.5, 1.0), (0.01, 0.2, 0.9))(scores[inside]))
        y.append(lesion[inside])
        u.append(uncertainty[inside])
        wrong.append((mask != lesion)[inside])
    p, y, u, wrong = (np.concatenate(parts) for parts in (p, y, u, wrong))
    assert value["brier"] == pytest.approx(np.mean((p - y) ** 2), abs=1e-3)
    gaps = [np.mean(p == v) * abs(v - y[p == v].mean()) for v in (0.01, 0.2, 0.9)]
    assert value["ece"] == pytest.approx(sum(gaps), abs=2e-3)
    risks = np.cumsum(wrong[np.argsort(u)]) / np.arange(1, len(u) + 1)
    assert value["aurc"] == pytest.approx(risks.mean(), abs=1e-3)
    assert value["aurc"] < 0.9 * wrong.mean()

    scores, lesion, foreground, _, _, image, healthy = known["p2"]
    low, unit = normative.scale(image, foreground & ~lesion)
    x, restored = (image - low) / unit, (healthy - low) / unit
    ssim = normative.ssim(x, restored)
    caci = normative.caci(foreground=foreground, lesion=lesion, similarity=ssim)
    case = next(c for c in result.cases if c.case == "p2")
    assert case.restored.caci == pytest.approx(caci, abs=1e-3)
    assert case.through_plane == pytest.approx(
        through_plane(
            torch.from_numpy(scores),
            foreground=torch.from_numpy(foreground),
            spacing_mm=(4.0, 4.0, 4.0),
        )
    )
    assert value["rqi"] == pytest.approx(1)  # healthy volumes came back as they were
    assert value["caci"] > 0.5
    features = {c.case: (c.restored.before, c.restored.after) for c in result.cases}
    assert value["ahi"] == pytest.approx(
        normative.ahi(
            pathological=[features[p][0] for p in ("p0", "p2", "p4")],
            restored=[features[p][1] for p in ("p0", "p2", "p4")],
            normal=[features[p][0] for p in ("p1", "p5")],
            unseen=[features["p3"][0]],
        )
    )
    assert value["ahi"] > 0.5
    assert value["normative"] > 0.5
    assert value["through_plane_restored"] > 0
    assert value["box_response"] > 1.2
    assert 0 <= value["froc"] <= 1
    plain = json.loads(json.dumps(to_json([result])))["m"]["cases"][0]
    assert plain["lesions"]["false_positives"] == len(result.cases[0].lesions.false_scores) > 0
    assert "false_scores" not in plain["lesions"]
    assert np.isnan(result.measures["caci"].low)  # three of six patients have a lesion
    assert result.measures["seconds"].low < value["seconds"] < result.measures["seconds"].high


def test_what_was_not_looked_at_is_least_certain(tmp_path):
    known = write_outputs(tmp_path / "m", tmp_path / "truth", cases=2)
    *_, lesion, foreground, mask, uncertainty, _, _ = known["p0"]
    hidden = (foreground & ~lesion).astype(np.uint8)
    save(tmp_path / "m" / "p0_desc-foreground_mask.nii.gz", hidden, AFFINE)
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    errors = next(c.errors for c in result.cases if c.case == "p0")
    assert errors.edges[-1] == pytest.approx(uncertainty[hidden > 0].max(), rel=1e-3)
    assert errors.abnormal[-1] >= (lesion & ~mask).sum() > 0


def test_a_method_that_returns_its_input_corrects_nothing(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth", restored="image")
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    value = {name: m.value for name, m in result.measures.items()}
    assert value["rqi"] == pytest.approx(1)
    assert value["caci"] == pytest.approx(0, abs=1e-5)
    assert value["ahi"] == pytest.approx(0, abs=1e-6)
    assert value["through_plane_restored"] == pytest.approx(1)


def test_a_pseudo_healthy_volume_is_compared_with_the_channel_that_it_replaces(tmp_path):
    # The network was shown T2w first; in the data set FLAIR comes first.
    known = write_outputs(tmp_path / "m", tmp_path / "truth")
    (alone,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    rng = np.random.default_rng(1)
    for case, (*_, image, healthy) in known.items():
        (tmp_path / "truth" / f"{case}_T1w.nii.gz").unlink()
        save(tmp_path / "truth" / f"{case}_T2w.nii.gz", image, AFFINE)
        save(tmp_path / "truth" / f"{case}_FLAIR.nii.gz", smooth_noise(rng), AFFINE)
        frames = np.stack([healthy, smooth_noise(rng)], axis=-1)
        save(tmp_path / "m" / f"{case}_desc-pseudohealthy_image.nii.gz", frames, AFFINE)
        sidecar = tmp_path / "m" / f"{case}_desc-anomaly_map.json"
        inputs = {
            name: {"file": f"{case}_{name}.nii.gz", "sha256": ""} for name in ("T2w", "FLAIR")
        }
        content = {**json.loads(sidecar.read_text()), "inputs": inputs}
        sidecar.write_text(json.dumps(content))
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    for name in ("rqi", "caci", "ahi", "through_plane_restored"):
        assert result.measures[name].value == pytest.approx(alone.measures[name].value), name
    (view,) = views_of([result], find_truths(tmp_path / "truth"), ["p2"])
    np.testing.assert_allclose(view.image, known["p2"][5], rtol=1e-5)


def test_test_labels_choose_nothing(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth")
    (before,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    for path in (tmp_path / "truth").glob("*_mask.nii.gz"):
        lesion = np.zeros(SHAPE, np.uint8)
        lesion[8:11, 8:11, 8:11] = 1
        save(path, lesion, AFFINE)
    (after,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    p, q = before.curves.reliability, after.curves.reliability
    assert not np.array_equal(p.lesions, q.lesions)
    # what the method says of the voxels in the foreground is the same
    np.testing.assert_array_equal(p.voxels, q.voxels)
    np.testing.assert_allclose(p.predicted, q.predicted)
    found = [len(c.boxes.scores) for c in before.cases]
    assert found == [len(c.boxes.scores) for c in after.cases]


def test_what_is_missing_is_left_out_and_said(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth")
    for pattern in ("*uncertainty*", "*pseudohealthy*", "ledger*", "*anomaly_mask*"):
        for path in (tmp_path / "m").glob(pattern):
            path.unlink()
    for path in (tmp_path / "m").glob("*.json"):
        sidecar = json.loads(path.read_text())
        path.write_text(json.dumps({**sidecar, "probability": None}))
    lines = []
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=5, report=lines.append)
    assert len(lines) == 1
    for word in ("lesions and boxes", "reliability", "risk-coverage", "RQI, AHI, CACI", "cost"):
        assert word in lines[0]
    for name in ("froc", "box_ap", "ece", "aurc", "rqi", "ahi", "caci", "seconds"):
        assert np.isnan(result.measures[name].value), name
    headings = [line.heading for line in measure_table([result])]
    assert "voxel AP" in headings
    assert not [h for h in headings if h.startswith(("FROC", "box", "ECE", "AURC", "RQI"))]
    assert write_curves(tmp_path, [result]) == []
    plain = json.loads(json.dumps(to_json([result])))["m"]
    assert plain["curves"] == {"froc": None, "risk_coverage": None, "reliability": None}
    assert plain["boxes"] == {}
    assert len(plain["left_out"]) == 5


def test_gaps_by_a_column(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth")
    rows = ["participant_id\tsex", *(f"p{i}\t{'F' if i < 3 else 'M'}" for i in range(6))]
    (tmp_path / "truth" / "participants.tsv").write_text("\n".join(rows) + "\n")
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", by="sex", replicates=20)
    ap = {c.case: c.ap for c in result.cases if c.abnormal}
    women, men = (ap["p0"] + ap["p2"]) / 2, ap["p4"]
    found = result.gaps["voxel_ap"]
    assert found.gap.value == pytest.approx(abs(women - men), rel=0.02)
    assert found.worst == ("F" if women < men else "M")
    assert result.gaps["false_positives"].worst in ("F", "M")
    rows = {row.metric.title: row for row in gap_table([result])}
    assert (rows["voxel AP"].worst, rows["voxel AP"].gap) == (found.worst, found.gap)
    assert all(row.method == "m" and np.isfinite(row.chance) for row in rows.values())
    assert set(to_json([result])["m"]["volume_auroc_by_group"]) == {"F", "M"}


def test_folders_without_a_case_in_common_are_told_so(tmp_path):
    write_outputs(tmp_path / "a", tmp_path / "truth", cases=2)
    write_outputs(tmp_path / "b", tmp_path / "truth", cases=2)
    for path in (tmp_path / "b").glob("p*"):
        path.rename(path.with_name(f"q{path.name}"))
    with pytest.raises(UsageError, match="folders without a case in common; evaluate them one"):
        evaluate([tmp_path / "a", tmp_path / "b"], tmp_path / "truth", replicates=0)


def test_a_full_disk_names_the_file(program, tmp_path, monkeypatch):
    write_outputs(tmp_path / "m", tmp_path / "truth", cases=2)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("volumediff.storage.atomic.os.fsync", full)
    code, _, said = program("evaluate", tmp_path / "m", "--truth", tmp_path / "truth")
    place = tmp_path / "m" / "evaluation.json"
    assert code == 1
    assert f"error: {place}: No space left on device; free some space, or write else" in said
    assert not place.exists()
    assert not [*(tmp_path / "m").glob(".*.tmp")]


def test_an_unknown_column_is_said_and_left_out(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth", cases=2)
    lines = []
    (result,) = evaluate(
        [tmp_path / "m"], tmp_path / "truth", by="sex", replicates=0, report=lines.append
    )
    assert lines[0].startswith("by sex: no case has this attribute, subgroups are left out")
    assert not result.gaps
    assert not result.groups


def test_lesions_are_told_apart_by_size(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth")
    nothing = np.zeros(SHAPE, np.uint8)
    save(tmp_path / "m" / "p4_desc-anomaly_mask.nii.gz", nothing, AFFINE)  # misses the largest
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=10)
    # 6 x 6 x {2, 4, 6} voxels of 0.064 ml
    assert [s.name for s in result.sizes] == ["1 to 10 ml", "from 10 ml"]
    assert [s.stratum.lesions for s in result.sizes] == [2, 1]
    assert [s.by_recall.value for s in result.sizes] == [1, 0]
    lines = size_table([result])
    assert [line.heading for line in lines] == [
        "1 to 10 ml (2), IoU",
        "1 to 10 ml (2), recall",
        "from 10 ml (1), IoU",
        "from 10 ml (1), recall",
    ]
    assert [line.best for line in lines] == [None] * 4


def replace_sidecar(folder, case, **facts):
    path = folder / f"{case}_desc-anomaly_map.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_one_volume_under_two_names_is_refused(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth", cases=3)
    for case in ("p0", "p2"):
        inputs = {"T1w": {"file": f"{case}.nii.gz", "sha256": "a59d"}}
        replace_sidecar(tmp_path / "m", case, inputs=inputs)
    with pytest.raises(DataError, match="every volume once, got p0 and p2 of the same file"):
        evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    other = {"T1w": {"file": "p2.nii.gz", "sha256": "b60e"}}
    replace_sidecar(tmp_path / "m", "p2", inputs=other)
    evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)


def test_a_score_that_knows_the_scanner_is_confounded(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth", cases=12)
    for i in range(12):  # perfect scores between the scanners, none within
        replace_sidecar(tmp_path / "m", f"p{i}", score=float(i % 2 == 0))

    def found(scanner):
        rows = ["participant_id\tScanner", *(f"p{i}\t{scanner(i)}" for i in range(12))]
        (tmp_path / "truth" / "participants.tsv").write_text("\n".join(rows) + "\n")
        (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=5)
        headings = [line.heading for line in measure_table([result])]
        return headings, confounded_lines([result]), to_json([result])["m"]["confounding"]

    headings, lines, plain = found(lambda i: "A" if i % 2 else "B")
    assert "volume AUROC, CONFOUNDED" in headings
    assert "  within one scanner" not in headings
    assert lines == [
        "The volume AUROC is confounded with scanner: scanner alone reaches 1.00, and no sick "
        "volume shares it with a healthy one."
    ]
    assert plain[0]["confounded"] is True
    headings, lines, plain = found(lambda i: "AB"[i // 6])
    assert "volume AUROC" in headings
    assert lines == []
    assert plain[0]["alone"] == 0.5
    headings, lines, _ = found(lambda i: "B" if i in (1, *range(0, 12, 2)) else "A")
    assert "volume AUROC, CONFOUNDED" in headings
    assert "  within one scanner" in headings
    assert "17% of the pairs" in lines[0]
    (tmp_path / "truth" / "participants.tsv").unlink()
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    assert "is not known" in confounded_lines([result])[0]


def test_confounding_is_that_of_scikit_learn_and_of_all_pairs():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    abnormal = rng.random(40) < 0.4
    of = [{"site": str(s)} if s else {} for s in rng.integers(0, 4, 40)]
    scores = rng.integers(0, 6, 40).astype(float)
    (got,) = confounding(scores.tolist(), abnormal.tolist(), of)
    names = np.array([o.get("site", "") for o in of])
    rates = [abnormal[names == g].mean() for g in names]
    assert got.alone == pytest.approx(roc_auc_score(abnormal, rates))
    pairs = [(i, j) for i in np.flatnonzero(abnormal) for j in np.flatnonzero(~abnormal)]
    same = [(i, j) for i, j in pairs if names[i] == names[j]]
    wins = [(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i, j in same]
    assert got.within == pytest.approx(np.mean(wins))
    assert got.pairs == pytest.approx(len(same) / len(pairs))
    assert confounding([1.0, 2.0], [True, True], [{"site": "a"}] * 2) == []


def test_every_figure_has_its_paired_difference_to_the_references(tmp_path):
    for name in ("scan", "atlas", "intensity"):
        write_outputs(tmp_path / name, tmp_path / "truth", cases=12)
    for i in range(0, 12, 2):  # the atlas misses everything, by the same voxels
        path = tmp_path / "atlas" / f"p{i}_desc-anomaly_mask.nii.gz"
        save(path, np.zeros(SHAPE, np.uint8), AFFINE)
    folders = [tmp_path / name for name in ("scan", "atlas", "intensity")]
    results = evaluate(folders, tmp_path / "truth", replicates=30)
    assert [set(r.differences) for r in results] == [
        {"atlas", "intensity"},
        {"scan", "intensity"},
        {"scan", "atlas"},
    ]
    scan = results[0]
    for name in ("voxel_ap", "found_by_recall", "excess_ml"):
        mine, theirs = (r.measures[name] for r in results[:2])
        got = scan.differences["atlas"][name,]
        assert got.value == pytest.approx(mine.value - theirs.value)
        assert got.low <= got.value <= got.high
    same = scan.differences["intensity"]["voxel_ap",]
    assert (same.value, same.low, same.high) == (0, 0, 0)  # paired: no noise of the patients
    assert scan.measures["voxel_ap"].high > scan.measures["voxel_ap"].low
    assert ("seconds",) not in scan.differences["atlas"]
    for line in (*measure_table(results), *size_table(results)):
        if line.metric not in (*COST_METRICS.values(), *WAITING_METRICS.values()):
            assert set(line.differences) in ({"atlas", "intensity"}, set()), line.heading
    alone = evaluate([tmp_path / "scan"], tmp_path / "truth", replicates=0)
    assert alone[0].differences == {}


def test_few_patients_are_listed_instead_of_an_interval(program, tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth", cases=6)
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=50)
    for name in ("voxel_ap", "found_by_iou", "lesion_f1", "volume_auroc"):
        assert np.isnan(result.measures[name].low), name  # three patients have a lesion
    assert np.isfinite(result.measures["false_positives"].low)  # six patients
    rows = case_table([result])
    assert [row.case for row in rows] == [f"p{i}" for i in range(6)]
    assert rows[0].found.endswith("of 1")
    code, said, _ = program("evaluate", tmp_path / "m", "--truth", tmp_path / "truth", "--report")
    assert code == 0
    assert "Cases (found by IoU, by recall)" in said
    assert "Fewer than 5 patients have lesions: no interval is given" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80 + len(str(tmp_path))
    assert "Volume by volume" in (tmp_path / "m" / "report.html").read_text()


def test_tables_fit_80_columns_with_many_methods(program, tmp_path):
    names = ("a_method_with_a_long_name", "atlas", "intensity", "scan", "thor")
    for name in names:
        write_outputs(tmp_path / name, tmp_path / "truth", cases=12)
    folders = [tmp_path / name for name in names]
    code, said, _ = program(
        "evaluate", *folders, "--truth", tmp_path / "truth", "--replicates", 20
    )
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    assert "Values: minus atlas, paired" in said
    assert "Lesions found, by size: minus intensity, paired" in said
    assert "+0.000..+0.000" in said


def test_associated_changes_are_in_no_figure_but_their_own(tmp_path):
    known = write_outputs(tmp_path / "m", tmp_path / "truth", cases=6)
    rng = np.random.default_rng(2)
    for case, (_, lesion, *_) in known.items():
        around = (rng.random(SHAPE) < 0.3) | lesion
        save(tmp_path / "truth" / f"{case}_associated.nii.gz", around.astype(np.uint8) * 3, AFFINE)
    (before,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    for case, (scores, *_) in known.items():  # the map says anything of them
        around = find_truths(tmp_path / "truth")[case].marks(
            read(tmp_path / "m" / f"{case}_desc-anomaly_map.nii.gz")
        )
        assert not (around.ignored & around.lesion).any()
        changed = np.where(around.ignored.numpy(), rng.uniform(0, 5, SHAPE), scores)
        changed[0] = 0
        save(
            tmp_path / "m" / f"{case}_desc-anomaly_map.nii.gz",
            changed.astype(np.float32),
            AFFINE,
        )
    (after,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    for name in ("voxel_ap", "voxel_auroc", "dice_validation", "found_by_iou", "excess_ml"):
        assert after.measures[name].value == pytest.approx(before.measures[name].value), name
    share = before.measures["associated"].value
    masks = {case: values[3] for case, values in known.items()}
    shares = []
    for case, mask in masks.items():
        marks = find_truths(tmp_path / "truth")[case].marks(
            read(tmp_path / "m" / f"{case}_desc-anomaly_map.nii.gz")
        )
        shares.append(mask[marks.ignored.numpy()].mean())
    assert share == pytest.approx(np.mean(shares))


def test_curves_are_png_and_repeatable(tmp_path):
    write_outputs(tmp_path / "m", tmp_path / "truth")
    results = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    written = write_curves(tmp_path, results)
    assert [p.name for _, p in written] == ["froc.png", "reliability.png", "risk_coverage.png"]
    before = [p.read_bytes() for _, p in written]
    assert all(b.startswith(b"\x89PNG") for b in before)
    assert before == [p.read_bytes() for _, p in write_curves(tmp_path, results)]


def test_network_calls_are_counted_per_state(run, program, tmp_path):
    model = load_trained(run).model
    z, t = torch.zeros(3, 1, 8, 8, 8), torch.full((3,), 0.5)
    with torch.no_grad(), counted(model) as cost:
        model.denoise(z, t)
        model.denoise(z[:1], t[:1])
    assert (cost.network_calls, cost.peak_gb) == (4, None)
    with torch.no_grad():
        model.denoise(z, t)
    assert cost.network_calls == 4  # counted no longer
    data, out = write_cases(tmp_path / "data", count=1), tmp_path / "out"
    words = ("--method", "ddpm", "sampler.steps=2", "threshold=best", "post=[]")
    three = (*words, "ensemble={name: mean, seeds: 3}")
    code, _, said = program("localize", data, "--run", run, "-o", out, *three)
    assert code == 0, said
    entry = read_entries(out)["new-0"]
    assert entry.network_calls == 2 * 3
    assert entry.seconds > 0
    assert (out / "new-0_desc-uncertainty_map.nii.gz").is_file()
    assert program("localize", data, "--run", run, "-o", tmp_path / "one", *words)[0] == 0
    assert not list((tmp_path / "one").glob("*uncertainty*"))


def test_spread_is_the_deviation_within_levels():
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 1, 1, 2, 2, 2, generator=g)  # levels, seeds
    maps[1] += 100  # a level changes everything
    spread = Spread(3)
    for a in maps.flatten(0, 1):
        spread.add(a)
    torch.testing.assert_close(
        spread.value(), maps.var(dim=1).mean(dim=0).sqrt(), atol=1e-4, rtol=1e-4
    )


def test_uncertainty_is_that_of_the_maps_of_the_seeds(run):
    # scan has several maps per run; of two seeds, the first is that of a single one
    trained = load_trained(run)
    example = next(iter(trained.examples("calibration")))
    one, two = (
        load_method(trained, "scan", (f"ensemble.seeds={n}",)).find(trained.model, example, key=7)
        for n in (1, 2)
    )
    assert one.uncertainty is None
    expected = 2**0.5 * (one.map - two.map).abs()
    assert float(expected.max()) > 0
    torch.testing.assert_close(two.uncertainty, expected, atol=1e-5, rtol=1e-4)


def test_probabilities_are_kept_with_the_calibration(tmp_path):
    scores = torch.arange(40.0)
    h = detection.histogram(scores)
    fitted = calibration_error.Probability((0.0, 3.0), (0.1, 0.7))
    Calibration("f", {}, h, (1.0,), 2.0, probability=fitted).save(tmp_path / "c")
    assert Calibration.load(tmp_path / "c").probability == fitted
