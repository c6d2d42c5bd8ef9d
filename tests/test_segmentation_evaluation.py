"""Evaluation of segmentations: folders of ours and of other programs, readers, and their rules."""

import io
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from segmented_sets import AFFINE, SHAPE, ball, shifted, write_segmentations, write_truth
from sklearn.metrics import roc_auc_score
from tiny_app import program, save

import volumediff
from volumediff.data.seen import Roster, Seen
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.evaluate import evaluate
from volumediff.evaluation.leakage import keep
from volumediff.evaluation.segmentation_case import SegmentationRules
from volumediff.evaluation.segmentation_summary import segmentation_notes, segmentation_tables
from volumediff.evaluation.truths import Truth, find_truths
from volumediff.metrics.label_agreement import AbsentLabels, label_agreement
from volumediff.reporting.segmentation_pictures import label_picture, samples_picture
from volumediff.reporting.segmentation_views import LabelView, label_views

__all__ = ["program"]  # fixture


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_figures_are_those_of_the_parts(tmp_path):
    truths = write_truth(tmp_path / "data")
    found = shifted(truths)
    write_segmentations(tmp_path / "m", found, samples=2)
    (result,) = evaluate([tmp_path / "m"], tmp_path / "data", replicates=20)
    assert set(result.labels) == {"1", "2", "mean"}
    value = {label: {m: i.value for m, i in row.items()} for label, row in result.labels.items()}
    for v in (1, 2):
        there = [c for c in truths if (truths[c] == v).any()]
        assert value[str(v)]["dice"] == pytest.approx(
            np.mean([dice(found[c] == v, truths[c] == v) for c in there])
        )
        figures = [
            label_agreement(
                found[c] == v, truths[c] == v, spacing_mm=(2.0, 2.0, 3.0), tolerance_mm=3.0
            )
            for c in there
        ]
        for name in ("nsd", "hd95_mm", "assd_mm", "iou"):
            assert value[str(v)][name] == pytest.approx(np.mean([f[name] for f in figures]))
    assert value["mean"]["dice"] == pytest.approx((value["1"]["dice"] + value["2"]["dice"]) / 2)
    interval = result.labels["mean"]["dice"]
    assert interval.low <= interval.value <= interval.high
    assert value["mean"]["network_calls"] == 20
    assert value["mean"]["seconds"] == 4.5
    assert value["1"]["lesion_f1"] == 1
    # samples lack 3 % of the voxels: about as many parts, more surface
    assert value["1"]["components_ratio"] == pytest.approx(1, abs=0.5)
    assert value["1"]["surface_ratio"] > 1.03
    assert "ged_v" not in value["mean"]


def test_calibration_and_entropy_are_those_of_all_voxels(tmp_path):
    truths = write_truth(tmp_path / "data")
    found = shifted(truths)
    write_segmentations(tmp_path / "m", found)
    (result,) = evaluate([tmp_path / "m"], tmp_path / "data", replicates=0)
    p, y, u, wrong = [], [], [], []
    for case, label in truths.items():
        p.append(read(tmp_path / "m" / f"{case}_label-1_probseg.nii.gz").array[0].ravel())
        u.append(read(tmp_path / "m" / f"{case}_desc-entropy_map.nii.gz").array[0].ravel())
        y.append((label == 1).ravel())
        wrong.append((found[case] != label).ravel())
    p, y, u, wrong = (np.concatenate(parts) for parts in (p, y, u, wrong))
    assert result.labels["1"]["brier"].value == pytest.approx(np.mean((p - y) ** 2), abs=1e-6)
    k = np.minimum((p * 15).astype(int), 14)
    gaps = [abs((p - y)[k == b].sum()) for b in np.unique(k)]
    assert result.labels["1"]["ece"].value == pytest.approx(sum(gaps) / len(p), abs=1e-6)
    auroc = result.labels["mean"]["entropy_auroc"].value
    assert auroc == pytest.approx(roc_auc_score(wrong, u), abs=2e-3)
    # without the file the entropy is that of the probabilities
    for path in (tmp_path / "m").glob("*entropy*"):
        path.unlink()
    (again,) = evaluate([tmp_path / "m"], tmp_path / "data", replicates=0)
    assert again.labels["mean"]["entropy_auroc"].value == pytest.approx(auroc, abs=1e-3)


def test_the_rules_for_absent_labels_change_the_mean_and_are_recorded(tmp_path):
    truths = write_truth(tmp_path / "data")
    write_segmentations(tmp_path / "m", truths | {"p0": np.zeros(SHAPE, np.uint8)})
    # p2 has no label 2, and nobody says so; p0 has both, and nothing was found

    def mean(**rules):
        (found,) = evaluate(
            [tmp_path / "m"],
            tmp_path / "data",
            replicates=0,
            rules=SegmentationRules(absent=AbsentLabels(**rules)),
        )
        return {m: i.value for m, i in found.labels["2"].items()}, found

    skipped, result = mean()
    assert skipped["dice"] == pytest.approx(4 / 5)
    worst = np.sqrt((28**2) + (24**2) + (30**2))
    assert skipped["hd95_mm"] == pytest.approx(worst / 5)
    one, _ = mean(absent="one")
    assert one["dice"] == pytest.approx(5 / 6)
    left, _ = mean(missed="skip")
    assert left["hd95_mm"] == 0
    assert "diagonal" in " ".join(segmentation_notes([result]))


def test_label_maps_of_other_programs_are_read_by_the_names_of_the_cases(tmp_path):
    truths = write_truth(tmp_path / "data")
    for case, label in truths.items():
        save(tmp_path / "nnunet" / f"{case}.nii.gz", label, AFFINE)
        save(tmp_path / "other" / f"{case}_T1w_seg.nii.gz", shifted(truths)[case], AFFINE)
    lines = []
    first, second = evaluate(
        [tmp_path / "nnunet", tmp_path / "other"],
        tmp_path / "data",
        replicates=20,
        report=lines.append,
    )
    assert (first.method, second.method) == ("nnunet", "other")
    assert first.labels["mean"]["dice"].value == 1
    assert any("calibration, entropy, risk-coverage" in line for line in lines)
    # paired: on the same patients, label by label
    gain = first.differences["other"]["1"]["dice"]
    assert gain.value == pytest.approx(1 - second.labels["1"]["dice"].value)
    assert gain.low > 0
    loss = second.differences["nnunet"]["mean"]["dice"]
    assert loss.value == pytest.approx(-first.differences["other"]["mean"]["dice"].value)
    assert loss.low == pytest.approx(-first.differences["other"]["mean"]["dice"].high)


def test_labels_that_a_method_does_not_know_are_left_out_unless_named(tmp_path):
    truths = write_truth(tmp_path / "data")
    write_segmentations(
        tmp_path / "m", {c: np.where(t == 1, 1, 0).astype("u1") for c, t in truths.items()}
    )
    lines = []
    (result,) = evaluate([tmp_path / "m"], tmp_path / "data", replicates=0, report=lines.append)
    assert result.values == (1,)
    assert any("no method knows label 2 of the truth" in line for line in lines)
    (named,) = evaluate(
        [tmp_path / "m"], tmp_path / "data", replicates=0, rules=SegmentationRules((1, 2))
    )
    assert named.labels["2"]["dice"].value == 0
    assert named.labels["mean"]["dice"].value == pytest.approx(0.5)


def test_several_readers(tmp_path):
    write_truth(tmp_path / "data", readers=4)
    maps = {f"p{i}": np.where(ball((4 + i % 2, 5, 4), 6.5), 1, 0).astype("u1") for i in range(6)}
    write_segmentations(tmp_path / "one", maps)  # the mask of the second of four readers
    write_segmentations(tmp_path / "drawn", maps, probabilities=False)
    for i in range(6):  # samples that are the readers themselves
        for r in range(4):
            own = np.where(ball((4 + i % 2, 5, 4), 5.5 + r), 1, 0).astype("u1")
            save(tmp_path / "drawn" / f"p{i}_desc-sample{r}_dseg.nii.gz", own, AFFINE)
    one, drawn = evaluate([tmp_path / "one", tmp_path / "drawn"], tmp_path / "data", replicates=20)
    assert drawn.labels["mean"]["ged_v"].value == pytest.approx(0, abs=1e-9)
    assert drawn.labels["mean"]["ged_u"].value < 0
    assert drawn.labels["mean"]["hm_iou"].value == 1
    assert drawn.labels["mean"]["ci"].value == pytest.approx(1)
    assert drawn.labels["1"]["components_ratio"].value == 1
    assert drawn.labels["1"]["surface_ratio"].value == 1
    assert one.labels["mean"]["ged_v"].value > 0.05
    assert one.labels["mean"]["hm_iou"].value < 1
    better = drawn.differences["one"]["mean"]["ged_v"]
    assert better.high < 0
    # two of four have marked it: the consensus is the third reader's mask, and so is Dice
    third = np.where(ball((4, 5, 4), 7.5), 1, 0)
    assert one.cases[0].agreement[1]["dice"] == pytest.approx(dice(maps["p0"] > 0, third > 0))
    table = dict(segmentation_tables([one, drawn]))
    rows = {line.heading: line for line in table["Segmentation, mean over 1 label"]}
    assert rows["GED², with self pairs (V)"].best == 1
    assert "GED alone says little" in " ".join(segmentation_notes([one, drawn]))


def test_the_program_writes_numbers_by_method_and_label(tmp_path, program):
    truths = write_truth(tmp_path / "data")
    write_segmentations(tmp_path / "a", truths, samples=1)
    write_segmentations(tmp_path / "b", shifted(truths))
    code, table, said = program(
        *("evaluate", tmp_path / "a", tmp_path / "b", "--truth", tmp_path / "data"),
        *("--replicates", "20", "--tolerance-mm", "1", "-o", tmp_path / "e", "--absent", "one"),
    )
    assert code == 0, said
    assert "panoptic quality" in table
    assert "NSD is at a tolerance of 1 mm" in table
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert found["methods"] == {}
    figures = found["segmentation"]
    assert set(figures) == {"a", "b"}
    assert set(figures["a"]) == {"1", "2", "mean"}
    assert figures["a"]["1"]["dice"] == 1
    assert 0 < figures["b"]["2"]["nsd"] < 1
    assert figures["b"]["mean"]["hd95_mm"] > 0
    assert {"iou", "assd_mm", "volume_error", "lesion_f1", "pq"} <= set(figures["b"]["1"])
    details = found["segmentation_details"]["b"]
    assert details["rules"] == {"tolerance_mm": 1.0, "absent": "one", "missed": "worst"}
    assert details["differences"]["a"]["mean"]["dice"]["high"] < 0
    assert len(details["cases"]) == 6
    code, _, said = program(
        "evaluate", tmp_path / "a", "--truth", tmp_path / "data", "--labels", "x"
    )
    assert code == 2
    assert "--labels x: expected label values such as 1,2" in said


def test_the_report_shows_tables_panels_and_samples(tmp_path):
    truths = write_truth(tmp_path / "data")
    write_segmentations(tmp_path / "m", truths | {"p3": np.zeros(SHAPE, np.uint8)}, samples=3)
    write_segmentations(tmp_path / "other", shifted(truths), probabilities=False)
    folders = [tmp_path / "m", tmp_path / "other"]
    results = volumediff.evaluate(
        folders, tmp_path / "data", replicates=20, output=tmp_path / "e", html=True
    )
    html = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "<title>Segmentation: m</title>" in html
    for text in ("panoptic quality", "Dice, label by label", "against m"):
        assert text in html
    assert html.index('data-order="p3"') < html.index('data-order="p0"')  # the lowest Dice first
    assert html.count("data:image/png;base64,") == 2  # reliability and risk-coverage
    assert html.count("data:image/jpeg;base64,") == 6
    pages = sorted((tmp_path / "e" / "report_cases").glob("*.html"))
    assert len(pages) == 6
    case = pages[0].read_text(encoding="utf-8")
    assert "readers and samples" in case
    assert case.count("data:image/png;base64,") == 2  # planes, and readers with samples
    assert {"label_reliability.png", "label_risk_coverage.png"} <= {
        p.name for p in (tmp_path / "e").iterdir()
    }
    described = json.loads(re.search(r'id="scene">(.*?)</script>', case, re.DOTALL)[1])
    names = ["probability of 1", "probability of 2", "entropy", "disagreement of the samples"]
    assert [m["name"] for m in described["maps"]] == names
    (view, *_) = label_views(results, find_truths(tmp_path / "data"), ["p0"])
    assert list(view.samples) == ["m, sample 1", "m, sample 2", "m, sample 3"]
    assert label_picture(view) == label_picture(view)
    assert samples_picture(view)[:4] == b"\x89PNG"


def test_the_patients_right_is_on_the_left_of_a_picture():
    """Axes along R, A, S: a label with large first indices is right, and in the left half."""
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[14:17, 8:12, 8:12] = 1
    view = LabelView("p0", "", np.zeros(truth.shape, np.float32), truth, {})
    rgb = imread(io.BytesIO(label_picture(view)))[..., :3]
    cell = rgb.shape[1] // 2  # image and truth side by side
    axial = rgb[: rgb.shape[0] // 3, cell:]
    columns = np.argwhere(axial[..., 0] > axial[..., 2] + 0.1)[:, 1]  # orange
    assert len(columns) > 100
    assert columns.max() < cell / 2


def test_a_folder_with_maps_and_segmentations_gets_both(tmp_path):
    truths = write_truth(tmp_path / "data")
    write_segmentations(tmp_path / "m", truths)
    for case, label in truths.items():
        scores = label.astype("f4") + 0.1
        save(tmp_path / "m" / f"{case}_desc-anomaly_map.nii.gz", scores, AFFINE)
        (tmp_path / "m" / f"{case}_desc-anomaly_map.json").write_text('{"method": "m"}')
    found, labelled = volumediff.evaluate(
        tmp_path / "m", tmp_path / "data", replicates=0, output=tmp_path / "e"
    )
    assert found.measures["voxel_ap"].value == 1
    assert labelled.labels["mean"]["dice"].value == 1
    content = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert set(content["methods"]) == set(content["segmentation"]) == {"m"}


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    truths = write_truth(tmp_path / "data")
    write_segmentations(tmp_path / "m", truths)
    save(tmp_path / "m" / "p0_desc-sample0_dseg.nii.gz", truths["p0"], np.diag([2.0, 2, 4, 1]))
    with pytest.raises(DataError, match=r"p0_desc-sample0_dseg\.nii\.gz: expected the grid of"):
        evaluate([tmp_path / "m"], tmp_path / "data", replicates=0)
    (tmp_path / "m" / "p0_desc-sample0_dseg.nii.gz").unlink()
    doubled = read(tmp_path / "m" / "p0_label-1_probseg.nii.gz").array[0] * 2
    save(tmp_path / "m" / "p0_label-1_probseg.nii.gz", doubled, AFFINE)
    with pytest.raises(DataError, match="p0, label 1: expected probabilities in"):
        evaluate([tmp_path / "m"], tmp_path / "data", replicates=0)
    with pytest.raises(UsageError, match="absent: expected skip or one, got 'nan'"):
        volumediff.evaluate(tmp_path / "m", tmp_path / "data", absent="nan")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="localize into this folder first, or segment"):
        evaluate([tmp_path / "empty"], tmp_path / "data", replicates=0)


def test_volumes_that_a_model_has_seen_are_refused_or_left_out(tmp_path):
    truths = write_truth(tmp_path / "data", cases=7)
    found = shifted(truths) | {"p0": truths["p0"]}  # perfect where it was trained
    folder = write_segmentations(tmp_path / "m", found)
    tokens = {"file": {f"{0:016d}": "train"}, "patient": {}, "name": {}}
    record = keep(folder, Seen((Roster("runs/a", tokens),)))
    for path in folder.glob("*_dseg.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "seen": record.name}))
    with pytest.raises(DataError, match=r"has seen 1 of 7 cases: p0 \(its file in train"):
        evaluate([folder], tmp_path / "data", replicates=0)
    (result,) = evaluate([folder], tmp_path / "data", replicates=10, allow_seen=True)
    clean = result.without_seen
    assert len(clean.cases) == 6
    assert clean.labels["1"]["dice"].value < result.labels["1"]["dice"].value
    assert "LEAKAGE: 1 of the volumes" in " ".join(segmentation_notes([result]))


def test_names_of_labels_are_those_of_the_data_set(tmp_path):
    for i in range(2):
        label = np.zeros(SHAPE, np.uint8)
        label[2:6, 2:6, 2:6], label[8:10, 2:6, 2:6] = 1, 2
        save(tmp_path / "data" / "imagesTr" / f"c{i}_0000.nii.gz", label.astype("f4"), AFFINE)
        save(tmp_path / "data" / "labelsTr" / f"c{i}.nii.gz", label, AFFINE)
        save(tmp_path / "m" / f"c{i}.nii.gz", label, AFFINE)
    described = {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0, "hippocampus": 1, "fimbria": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(described))
    (result,) = evaluate([tmp_path / "m"], tmp_path / "data", replicates=0)
    tables = dict(segmentation_tables([result]))
    rows = [line.heading for line in tables["Dice, label by label"]]
    assert rows == ["hippocampus", "fimbria"]


def test_a_patient_is_known_from_the_results_where_the_truth_does_not_say():
    said = {"patient": "mouse05"}
    assert Truth("mouse05L", "mouse05L", None, {}).patient_in(said) == "mouse05"
    assert Truth("sub-1_ses-2", "sub-1", None, {}).patient_in(said) == "sub-1"
    assert Truth("mouse05L", "mouse05L", None, {}).patient_in({}) == "mouse05L"


def test_cases_of_one_patient_are_drawn_together(tmp_path):
    truths = write_truth(tmp_path / "data")
    write_segmentations(tmp_path / "m", truths)
    for i, path in enumerate(sorted((tmp_path / "m").glob("*_dseg.json"))):
        path.write_text(json.dumps({**json.loads(path.read_text()), "patient": f"mouse{i // 2}"}))
    (result,) = evaluate([tmp_path / "m"], tmp_path / "data", replicates=0)
    assert sorted(c.patient for c in result.cases) == [f"mouse{i // 2}" for i in range(6)]
