"""Findings of segmentations: the parts of every label, measured on what was written."""

import hashlib
import json

import numpy as np
import pytest
from segmented_sets import AFFINE, SHAPE, write_segmentations
from tiny_app import program, save

from volumediff.errors import UsageError
from volumediff.findings.schema import LABEL_DISCLAIMERS
from volumediff.inference.findings import find_in_folder

__all__ = ["program"]  # fixture

VOXEL_ML = 0.012


def written(root, label):
    """One case as `segment` leaves it, with its image; returns output and input folder."""
    rng = np.random.default_rng(0)
    image = save(root / "data" / "p0_T1w.nii.gz", rng.normal(100, 5, SHAPE).astype("f4"), AFFINE)
    out = write_segmentations(root / "out", {"p0": label})
    facts = json.loads((out / "p0_dseg.json").read_text())
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    facts["inputs"] = {"T1w": {"file": image.name, "sha256": digest}}
    (out / "p0_dseg.json").write_text(json.dumps(facts))
    return out, root / "data"


def two_labels():
    """Label 1 in two parts, label 2 that touches one of them."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 1:5, 1:4] = 1
    label[10:12, 8:10, 6:8] = 1
    label[5:7, 1:5, 1:4] = 2
    return label


def test_every_part_of_a_label_is_a_finding(tmp_path):
    out, data = written(tmp_path, two_labels())
    lines = []
    work = find_in_folder(out, data, report=lines.append)
    assert not work.failed
    got = json.loads((out / "p0_desc-label_findings.json").read_text(encoding="utf-8"))
    found = got["findings"]
    assert [f["id"] for f in found] == ["001", "002", "003"]
    sizes = sorted((f["label"], round(f["volume_ml"] / VOXEL_ML)) for f in found)
    assert sizes == [(1, 8), (1, 48), (2, 24)]  # labels that touch are two findings
    for f in found:
        assert 0.6 < f["probability"] < 0.86
        assert f["probability"] == pytest.approx(f["mean_score"])
        assert f["uncertainty"] is None
    assert "label 1 0.672 ml in 2 parts; label 2 0.288 ml in 1 part." in got["statement"].lower()
    assert got["disclaimers"] == list(LABEL_DISCLAIMERS)
    assert not got["threshold"]["calibrated_probability"]


def test_variance_is_the_uncertainty_of_a_finding(tmp_path):
    out, data = written(tmp_path, two_labels())
    for v in (1, 2):
        spread = np.full(SHAPE, 0.04 * v * v, np.float32)
        save(out / f"p0_label-{v}_desc-variance_map.nii.gz", spread, AFFINE)
    find_in_folder(out, data)
    found = json.loads((out / "p0_desc-label_findings.json").read_text())["findings"]
    for f in found:
        assert f["uncertainty"] == pytest.approx(0.2 * f["label"], rel=1e-4)
        assert f["relative_uncertainty"] == pytest.approx(
            f["uncertainty"] / f["mean_score"], rel=1e-4
        )


def test_nothing_and_label_maps_alone(tmp_path):
    out, data = written(tmp_path / "a", np.zeros(SHAPE, np.uint8))
    find_in_folder(out, data)
    got = json.loads((out / "p0_desc-label_findings.json").read_text())
    assert got["findings"] == []
    assert got["statement"].startswith("Nothing found: no voxel has a label.")
    out, data = written(tmp_path / "b", two_labels())
    for path in out.glob("*probseg*"):
        path.unlink()
    find_in_folder(out, data)
    found = json.loads((out / "p0_desc-label_findings.json").read_text())["findings"]
    assert [f["mean_score"] for f in found] == [1.0, 1.0, 1.0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="results of a localization or segmentation, found none"):
        find_in_folder(tmp_path / "empty", data)


def test_the_program_writes_packets_and_a_page(tmp_path, program):
    out, data = written(tmp_path, two_labels())
    code, said, err = program(
        *("findings", out, "--images", data, "--packets", "--most", "2", "--report")
    )
    assert code == 0, err
    assert "3 findings" in said
    packets = sorted((out / "findings" / "p0").iterdir())
    assert [p.name for p in packets] == ["001", "002"]
    prompt = (packets[0] / "prompt.txt").read_text(encoding="utf-8")
    assert "mean probability" in prompt
    assert "anomaly" not in prompt.lower().replace("no lesion", "")
    page = (out / "findings.html").read_text(encoding="utf-8")
    assert "parts of the labels of a segmentation" in page
    assert "label 2" in (out / "findings_cases" / "p0.html").read_text(encoding="utf-8")
