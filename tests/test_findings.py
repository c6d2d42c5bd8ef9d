"""Findings of written results against phantoms whose every number is known by hand."""

import hashlib
import io
import json
import shutil
from dataclasses import fields, replace
from itertools import pairwise, product

import nibabel as nib
import numpy as np
import pytest
from tiny_app import base, program, run, save, write_cases

from volumediff.data.grid import Grid
from volumediff.data.volume import read
from volumediff.findings import mni, place
from volumediff.findings.schema import DISCLAIMERS, CaseFindings
from volumediff.findings.urgency import (
    COMMON,
    HEAVY_ML,
    LARGE_ML,
    LEVELS,
    LIKELY,
    SMALL_ML,
    UNLIKELY,
    UNSURE,
    urgency,
)
from volumediff.inference.findings import find_in_folder
from volumediff.reporting.packet_panels import Layer, bar_mm, draw
from volumediff.reporting.prompt import MUST_NOT
from volumediff.reporting.timeline import MOST, TimelineEntry, read_steps, strip

__all__ = ["base", "program", "run"]  # fixtures

# --- the phantom ---------------------------------------------------------------------------------

# Voxel (i, j, k) of the file lies at x = 40 - 2 i, y = -30 + 3 k, z = 10 + 1.5 j: the first axis
# runs to the left, the second up, the third to the front; 2 x 1.5 x 3 mm, 0.009 ml.
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 0, 3, -30], [0, 1.5, 0, 10], [0, 0, 0, 1]])
SHAPE = (40, 20, 16)
VOXEL_ML = 0.009
THRESHOLD = 1.5
# A: 4 x 2 x 2 voxels, x from 36 to 30, so on the patient's right; B: 10 voxels in a row, left.
A = (slice(2, 6), slice(3, 5), slice(1, 3))
B = (slice(25, 35), slice(12, 13), slice(14, 15))


def phantom(*boxes):
    """Map, mask, foreground, image, pseudo-healthy volume and uncertainty, in file order."""
    mask = np.zeros(SHAPE, np.uint8)
    scores = np.full(SHAPE, 0.25, np.float32)
    image = np.zeros(SHAPE, np.float32)
    image[...] = np.linspace(100, 200, SHAPE[1])[None, :, None]
    healthy = image.copy()
    uncertainty = np.full(SHAPE, 0.1, np.float32)
    for number, box in enumerate(boxes):
        mask[box] = 1
        scores[box] = 2 + number  # A scores 2, B 3
        image[box] = healthy[box] + (40 if number == 0 else -25)
        uncertainty[box] = 0.5
    if boxes:
        scores[3, 3, 1] = 4  # the peak of A: x = 34, y = -27, z = 14.5
    return mask, scores, np.ones(SHAPE, np.uint8), image, healthy, uncertainty


def written(folder, *boxes, facts=(), steps=(), affine=AFFINE):
    """The phantom as volumediff localize leaves it; returns output and input folder."""
    out, data = folder / "out", folder / "data"
    mask, scores, foreground, image, healthy, uncertainty = phantom(*boxes)
    source = save(data / "sub-7_T1w.nii.gz", image, affine)
    for name, array in (
        ("desc-anomaly_map", scores),
        ("desc-anomaly_mask", mask),
        ("desc-foreground_mask", foreground),
        ("desc-pseudohealthy_image", healthy),
        ("desc-uncertainty_map", uncertainty),
        ("desc-ensemble_map", 2 * uncertainty),
    ):
        save(out / f"sub-7_{name}.nii.gz", array, affine)
    sidecar = {
        "patient": "sub-7",
        "method": "scan",
        "supervision": "unsupervised",
        "scope": "any deviation",
        "fingerprint": "f",
        "weights_sha256": "w",
        "score": 4.0,
        "threshold": THRESHOLD,
        "threshold_rule": "Fixed(value=1.5)",
        "probability": {"edges": [0.0, 1.0, 2.5], "values": [0.05, 0.4, 0.8]},
        "inputs": {
            "T1w": {
                "file": source.name,
                "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            }
        },
        "trace": list(steps),
        **dict(facts),
    }
    (out / "sub-7_desc-anomaly_map.json").write_text(json.dumps(sidecar))
    return out, data


def found(folder, data, **options):
    work = find_in_folder(folder, data, **options)
    assert not work.failed
    return json.loads((folder / "sub-7_desc-anomaly_findings.json").read_text(encoding="utf-8"))


def test_two_boxes_have_the_numbers_computed_by_hand(tmp_path):
    got = found(*written(tmp_path, A, B))
    assert (got["format"], got["version"]) == ("volumediff-findings", 1)
    assert got["foreground_ml"] == pytest.approx(40 * 20 * 16 * VOXEL_ML)
    a, b = got["findings"]
    assert (a["id"], b["id"]) == ("001", "002")
    # both are between 0.1 and 10 ml or below: A has 16 voxels, B 10
    assert a["volume_ml"] == pytest.approx(16 * VOXEL_ML)
    assert b["volume_ml"] == pytest.approx(10 * VOXEL_ML)
    assert a["foreground_share"] == pytest.approx(16 / 12800)
    # A: fifteen voxels of 2 and one of 4
    assert a["mean_score"] == pytest.approx(34 / 16)
    assert a["peak_score"] == 4
    assert a["severity"] == pytest.approx(34 * VOXEL_ML)
    assert b["severity"] == pytest.approx(30 * VOXEL_ML)
    # i 2..5, j 3..4, k 1..2
    assert a["place"]["centre_mm"] == [33.0, -25.5, 15.25]
    assert a["place"]["peak_mm"] == [34.0, -27.0, 14.5]
    assert a["place"]["box_low_mm"] == [29.0, -28.5, 13.75]
    assert a["place"]["box_high_mm"] == [37.0, -22.5, 16.75]
    # i 25..34: x from -28 to -10, and half a voxel on each side
    assert b["place"]["box_low_mm"] == [-29.0, 10.5, 27.25]
    assert b["place"]["box_high_mm"] == [-9.0, 13.5, 28.75]
    # the foreground reaches from x = -38 to 40, y = -30 to 15, z = 10 to 38.5
    assert (a["place"]["laterality"], b["place"]["laterality"]) == ("right", "left")
    assert (a["place"]["front_back"], a["place"]["up_down"]) == ("posterior", "inferior")
    assert (b["place"]["front_back"], b["place"]["up_down"]) == ("anterior", "middle")
    assert a["place"]["region"].startswith("right, posterior third, inferior third")
    assert a["place"]["template"] is None
    # probabilities: steps at 1 and 2.5; A has fifteen voxels at 0.4 and one at 0.8
    assert a["probability"] == pytest.approx((15 * 0.4 + 0.8) / 16)
    assert (a["peak_probability"], b["probability"]) == (0.8, 0.8)
    assert a["uncertainty"] == pytest.approx(0.5)
    assert a["relative_uncertainty"] == pytest.approx(0.5)


def test_intensities_are_compared_with_the_pseudo_healthy_volume(tmp_path):
    out, data = written(tmp_path, A, B)
    a, b = found(out, data)["findings"]
    (bright,), (dark,) = a["intensities"], b["intensities"]
    planes = np.linspace(100, 200, 20)
    assert bright["channel"] == "T1w"
    assert bright["expected"] == pytest.approx((planes[3] + planes[4]) / 2, rel=1e-5)
    assert bright["contrast"] == pytest.approx(40, rel=1e-5)
    assert (bright["direction"], dark["direction"]) == ("brighter", "darker")
    assert dark["contrast"] == pytest.approx(-25, rel=1e-5)
    image = np.asarray(nib.load(data / "sub-7_T1w.nii.gz").dataobj)
    low, high = np.percentile(image, (2, 98))
    assert dark["relative"] == pytest.approx(-25 / (high - low), rel=1e-4)


def test_corners_join_a_finding_and_gaps_do_not(tmp_path):
    corner = (slice(6, 8), slice(5, 6), slice(3, 4))  # touches A at a corner
    (one,) = found(*written(tmp_path / "a", A, corner))["findings"]
    assert one["volume_ml"] == pytest.approx(18 * VOXEL_ML)
    apart = (slice(7, 8), slice(5, 6), slice(3, 4))
    assert len(found(*written(tmp_path / "b", A, apart))["findings"]) == 2


def test_the_order_of_the_axes_in_the_file_changes_nothing(tmp_path):
    mine = found(*written(tmp_path / "a", A, B))["findings"]
    out, data = written(tmp_path / "b", A, B)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    for path in [*out.glob("*.nii.gz"), *data.glob("*.nii.gz")]:
        image = nib.load(path)
        save(path, np.asarray(image.dataobj)[::-1], image.affine @ flip)
    facts = json.loads((out / "sub-7_desc-anomaly_map.json").read_text(encoding="utf-8"))
    source = data / "sub-7_T1w.nii.gz"
    facts["inputs"]["T1w"]["sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
    (out / "sub-7_desc-anomaly_map.json").write_text(json.dumps(facts))
    assert found(out, data)["findings"] == mine


def test_an_empty_mask_is_an_empty_list_and_a_sentence(tmp_path):
    got = found(*written(tmp_path, facts={"probability": None}.items()), packets=True)
    assert got["findings"] == []
    assert got["statement"].startswith("Nothing found: no region is above the threshold.")
    assert not (tmp_path / "out" / "findings").exists()


def test_no_mask_is_not_an_empty_one(tmp_path):
    out, data = written(tmp_path, A)
    (out / "sub-7_desc-anomaly_mask.nii.gz").unlink()
    got = found(out, data)
    assert got["findings"] == []
    assert "no findings were looked for" in got["statement"]


def test_what_is_not_known_is_null(tmp_path):
    out, data = written(tmp_path, A, facts={"probability": None}.items())
    for name in ("uncertainty_map", "ensemble_map", "pseudohealthy_image"):
        (out / f"sub-7_desc-{name}.nii.gz").unlink()
    got = found(out, data)
    (a,) = got["findings"]
    assert a["probability"] is a["uncertainty"] is a["relative_uncertainty"] is None
    assert a["intensities"] == []
    assert "no calibrated probability; no uncertainty" in a["urgency"]["reason"]
    assert got["threshold"]["calibrated_probability"] is False


def test_equal_outputs_give_equal_bytes_and_say_no_time_or_place(tmp_path):
    first, second = (written(tmp_path / name, A) for name in "ab")
    found(*first, packets=True)
    found(*second, packets=True)
    names = sorted(p.relative_to(first[0]) for p in first[0].rglob("*") if p.is_file())
    assert any(p.suffix == ".png" for p in names)
    for name in names:
        assert (first[0] / name).read_bytes() == (second[0] / name).read_bytes(), name
    text = (first[0] / "sub-7_desc-anomaly_findings.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert set(json.loads(text)) == {f.name for f in fields(CaseFindings)}
    assert json.loads(text)["disclaimers"] == list(DISCLAIMERS)


def test_another_input_is_refused(tmp_path):
    out, data = written(tmp_path, A)
    save(data / "sub-7_T1w.nii.gz", np.ones(SHAPE, np.float32), AFFINE)
    work = find_in_folder(out, data)
    assert (
        "expected the volume that was localized or segmented, got another" in work.failed["sub-7"]
    )


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "side"),
    [
        (np.linspace(-30, -10, 9), "left"),
        (np.linspace(10, 30, 9), "right"),
        (np.linspace(-4, 4, 9), "midline"),
        (np.linspace(-20, 20, 9), "bilateral"),
        (np.concatenate([np.linspace(10, 30, 99), [-6.0]]), "right"),  # one voxel across
        (np.concatenate([np.linspace(6, 30, 8), [-6.0, -7.0]]), "bilateral"),
    ],
)
def test_laterality_is_against_the_middle_of_the_foreground(x, side):
    assert place.laterality(x, 0.0) == side
    assert place.laterality(x + 100, 100.0) == side


def test_the_frame_is_that_of_every_foreground_voxel():
    rng = np.random.default_rng(0)
    foreground = rng.random((5, 6, 7)) > 0.8
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (1.0, 2.0, 3.0), (5, 6, 7)
    points = place.world(np.argwhere(foreground), affine)
    frame = place.frame_of(foreground, affine)
    np.testing.assert_allclose(frame.low_mm, points.min(0))
    np.testing.assert_allclose(frame.high_mm, points.max(0))
    assert place.frame_of(np.zeros((2, 2, 2), bool), affine) is None
    values = (-1.0, 0.0, 2.9, 3.0, 5.9, 6.0, 9.0, 11.0)
    assert [place.third(v, 0.0, 9.0) for v in values] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_the_template_is_used_where_the_file_says_so(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    for code, expected in ((1, False), (2, False), (4, True)):
        image.set_sform(np.eye(4), code)
        image.set_qform(np.eye(4), code)
        nib.save(image, tmp_path / "a.nii.gz")
        assert mni.in_mni(read(tmp_path / "a.nii.gz").native) is expected
    assert not mni.in_mni(Grid((2, 2, 2), np.eye(4)))
    # the centrum semiovale is white, a point far outside is nothing
    offsets = np.array(list(product((-1.0, 0, 1), repeat=3)))
    white = mni.template_place(offsets + np.array([-26.0, -22, 34]), np.array([-26.0, -22, 34]))
    assert white.white > 0.9
    outside = mni.template_place(offsets + 500, np.array([6.0, 64, 3]))
    assert (outside.grey, outside.white, outside.other) == (0, 0, 1)
    # the first seed of Dosenbach et al. (2010) is vmPFC at (6, 64, 3)
    assert (outside.seed, outside.seed_distance_mm) == ("right vmPFC", 0)


# --- urgency -------------------------------------------------------------------------------------

RULES = [
    # volume, severity, threshold, probability, relative uncertainty, level
    (0.05, 0.1, 1.0, None, None, "routine"),
    (0.05, 0.1, 1.0, 0.6, None, "soon"),  # probable
    (0.05, 0.1, 1.0, 0.6, 0.7, "routine"),  # probable, but the seeds differ
    (0.05, 0.1, 1.0, 0.01, 0.9, "routine"),  # never below routine
    (SMALL_ML, 0.2, 1.0, None, None, "soon"),
    (1.0, 2.0, 1.0, 0.3, 0.2, "soon"),
    (1.0, 2.0, 1.0, 0.05, None, "routine"),
    (1.0, HEAVY_ML, 1.0, None, None, "now"),  # heavy
    (1.0, HEAVY_ML, 2.0, None, None, "soon"),  # the same, with a threshold of 2
    (1.0, HEAVY_ML, 0.0, None, None, "soon"),  # no unit without a threshold
    (1.0, HEAVY_ML, None, None, None, "soon"),
    (LARGE_ML, 11.0, 1.0, None, None, "now"),
    (LARGE_ML, 11.0, 1.0, 0.05, None, "routine"),  # improbable, however large
    (LARGE_ML, 11.0, 1.0, 0.5, 0.9, "soon"),  # one level only
    (LARGE_ML, 11.0, 1.0, 0.9, 0.5, "now"),  # the limit itself is no doubt
]


@pytest.mark.parametrize(("volume", "severity", "threshold", "p", "u", "level"), RULES)
def test_the_rule_of_urgency(volume, severity, threshold, p, u, level):
    got = urgency(volume, severity, threshold=threshold, probability=p, relative_uncertainty=u)
    assert got.level == level
    assert ("no calibrated probability" in got.reason) == (p is None)
    assert ("no uncertainty" in got.reason) == (u is None)
    if u == 0.9 and level == "soon":
        assert "seeds differ by 90% of the map, above 50%: one level lower" in got.reason


@pytest.mark.parametrize("volume", [0.01, SMALL_ML, 1.0, LARGE_ML, 100.0])
@pytest.mark.parametrize("severity", [0.1, HEAVY_ML, 1000.0])
@pytest.mark.parametrize(("p", "tail"), [(0.09, None), (0.09, 0.05), (None, 0.21), (1.0, 0.5)])
def test_nothing_improbable_or_common_in_healthy_volumes_is_urgent(volume, severity, p, tail):
    got = urgency(volume, severity, threshold=1.0, probability=p, healthy_tail=tail)
    assert got.level == "routine"
    assert f"below {UNLIKELY:g}" in got.reason or f"above {COMMON:.0%}" in got.reason


def test_a_finding_is_compared_with_those_of_healthy_volumes(tmp_path):
    """Peak 4, 16 voxels; mass (15 * 2 + 4 - 16 * 1.5) * 0.009 = 0.09 ml above the threshold."""
    rows = [[5.0, 0.01, 0.01], [1.6, 0.01, 0.01], [None] * 3, [None] * 3, [None] * 3]
    rates = {"volumes": 5, "voxels": 0.001, "findings": 0.4, "affected": 0.4}
    facts = {"healthy_findings": rows, "healthy_rates": rates, "finding_ml": 0.05}
    got = found(*written(tmp_path / "a", A, facts=facts.items()))
    tail = got["findings"][0]["healthy_tail"]
    assert (tail["peak"], tail["extent"], tail["mass"]) == pytest.approx(
        (2 / 6, 1 / 6, 1 / 6), rel=1e-5
    )
    assert tail["probability"] == pytest.approx(2 / 6)  # volume 0 is as extreme by its peak
    assert got["findings"][0]["urgency"]["level"] == "routine"
    assert "in 33% of healthy volumes" in got["findings"][0]["urgency"]["reason"]
    assert got["threshold"]["healthy"] == rates
    usual = "a healthy volume has 0.4 findings on average, and 60% of healthy volumes have none"
    assert usual in got["statement"]
    empty = found(*written(tmp_path / "b", facts=facts.items()))["statement"]
    assert empty.startswith("Nothing found: no region of at least 0.05 ml is above the threshold.")
    assert usual in empty


def test_urgency_is_monotone():
    grids = {
        "volume": (0.01, SMALL_ML, 1.0, LARGE_ML, 50.0),
        "severity": (0.0, 1.0, HEAVY_ML, 100.0),
        "p": (0.0, UNLIKELY, 0.3, LIKELY, 1.0),
        "u": (2.0, UNSURE, 0.0),  # falling
        "tail": (1.0, COMMON, 0.01),  # falling
    }

    def level(point):
        found = urgency(
            point["volume"],
            point["severity"],
            threshold=1.0,
            probability=point["p"],
            relative_uncertainty=point["u"],
            healthy_tail=point["tail"],
        )
        return LEVELS.index(found.level)

    for name in grids:
        others = [n for n in grids if n != name]
        for values in product(*(grids[n] for n in others)):
            fixed = dict(zip(others, values, strict=True))
            levels = [level({**fixed, name: v}) for v in grids[name]]
            assert all(a <= b for a, b in pairwise(levels)), (name, fixed, levels)


# --- packets -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The packet of the first of two findings."""
    out, data = written(tmp_path_factory.mktemp("packed"), A, B)
    found(out, data, packets=True, most=1)
    return out / "findings" / "sub-7" / "001"


def test_a_packet_is_whole_and_its_hashes_are_those_of_its_files(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "001")
    manifest = json.loads((folder / "packet.json").read_text(encoding="utf-8"))
    names = {entry["file"] for entry in manifest["files"]}
    assert names == {p.name for p in folder.iterdir()} - {"packet.json"}
    assert {"image.png", "overlay.png", "healthy.png", "difference.png"} < names
    assert {"uncertainty.png", "prompt.json", "prompt.txt"} < names
    for entry in manifest["files"]:
        content = (folder / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
        assert not entry["file"].endswith(".png") or content.startswith(b"\x89PNG")


def test_a_prompt_has_facts_and_prohibitions_and_no_name(packed):
    prompt = json.loads((packed / "prompt.json").read_text(encoding="utf-8"))
    text = (packed / "prompt.txt").read_text(encoding="utf-8")
    assert prompt["must_not"] == list(MUST_NOT)
    assert all(line in text for line in (*MUST_NOT, *DISCLAIMERS, prompt["question"]))
    facts = " ".join(prompt["facts"])
    assert "right, posterior third, inferior third" in facts
    assert "Size: 0.144 ml" in facts
    assert "box of 8 x 6 x 3 mm" in facts
    assert "brighter" in facts
    assert "contrast +40" in facts
    assert [p["file"] for p in prompt["pictures"]][:2] == ["image.png", "overlay.png"]
    for content in (text, json.dumps(prompt)):
        assert "sub-7" not in content
        assert str(packed.parents[3]) not in content


def test_packets_of_an_earlier_run_go(tmp_path):
    out, data = written(tmp_path, A)
    for name in ("pseudohealthy_image", "uncertainty_map"):
        (out / f"sub-7_desc-{name}.nii.gz").unlink()
    old, foreign = (out / "findings" / "sub-7" / name for name in ("009", "notes"))
    for folder in (old, foreign):
        folder.mkdir(parents=True)
    (old / "packet.json").write_text("{}")
    found(out, data, packets=True)
    assert sorted(p.name for p in old.parent.iterdir()) == ["001", "notes"]
    names = {p.name for p in (old.parent / "001").iterdir()}
    assert names == {"image.png", "overlay.png", "prompt.json", "prompt.txt", "packet.json"}


def test_a_picture_has_the_left_on_the_left_and_a_true_scale():
    from matplotlib import image as images

    x = np.zeros((20, 20, 20), np.float32)
    x[2:6, 15:19, 10] = 1  # left and anterior
    png = draw(Layer("t", x, "gray", (0.0, 1.0)), (4, 17, 10), spacing_mm=(1.0, 1.0, 1.0))
    pixels = images.imread(io.BytesIO(png))[..., :3].mean(-1)
    axial = pixels[60:, : pixels.shape[1] // 3]
    # the block is the only white area; letters and the bar are thin
    rows, columns = np.nonzero(axial > 0.97)
    assert np.median(columns) < axial.shape[1] / 2
    assert np.median(rows) < axial.shape[0] / 2
    assert [bar_mm(v) for v in (2.0, 9.0, 60.0, 180.0, 1000.0)] == [1, 2, 20, 50, 100]


# --- the steps of a method -----------------------------------------------------------------------


def test_steps_come_in_the_order_of_the_trace(tmp_path):
    names = [f"harmonise/0.{9 - i}00/{kind}" for i in range(2) for kind in ("map", "mask")]
    out, _ = written(tmp_path, A)
    entries = []
    for number, name in enumerate(reversed(names)):
        path = out / f"sub-7_desc-s{number}_map.nii.gz"
        save(path, np.full(SHAPE, float(number), np.float32), AFFINE)
        entries.append({"name": name, "file": path.name})
    entries.append({"name": "gone/map", "file": "sub-7_desc-gone_map.nii.gz"})
    steps = read_steps(out, {"trace": entries}, 3)
    assert [s.name for s in steps] == names[::-1]
    assert [float(s.slab.max()) for s in steps] == [0, 1, 2, 3]
    assert steps[0].slab.shape == (40, 16)  # R, A of the canonical axes
    assert [s.is_mask for s in steps] == [True, False, True, False]
    assert read_steps(out, {}, 3) == ()
    many = [{**entries[0], "name": str(i)} for i in range(100)]
    some = read_steps(out, {"trace": many}, 3)
    assert len(some) == MOST
    assert (some[0].name, some[-1].name) == ("0", "99")


def test_a_strip_is_a_png_and_repeatable():
    steps = [TimelineEntry(f"{i}/map", np.full((6, 8), i, np.float32)) for i in range(9)]
    truth = np.zeros((6, 8), bool)
    truth[2:4, 2:4] = True
    png = strip(steps, aspect=1.5, outline=truth)
    assert png.startswith(b"\x89PNG")
    assert png == strip(steps, aspect=1.5, outline=truth)
    other = [replace(steps[0], slab=steps[0].slab + 9), *steps[1:]]
    assert png != strip(other, aspect=1.5, outline=truth)


# --- the program ---------------------------------------------------------------------------------


def test_localize_writes_what_the_command_writes_again(run, program, tmp_path):
    data, out = write_cases(tmp_path / "data", count=2), tmp_path / "out"
    words = ("--method", "ddpm", "sampler.steps=2", "post=[]", "threshold=otsu")
    command = (
        "localize",
        data,
        "--run",
        run,
        "-o",
        out,
        *words,
        "ensemble={name: mean, seeds: 2}",
    )
    code, _, said = program(*command)
    assert code == 0, said
    before = {p.name: p.read_bytes() for p in out.glob("*_findings.json")}
    assert set(before) == {f"new-{i}_desc-anomaly_findings.json" for i in range(2)}
    entries = json.loads(before["new-0_desc-anomaly_findings.json"])["findings"]
    mask = np.asarray(nib.load(out / "new-0_desc-anomaly_mask.nii.gz").dataobj)
    assert sum(f["volume_ml"] for f in entries) == pytest.approx(mask.sum() * 0.027, rel=1e-4)
    assert all(f["relative_uncertainty"] is not None for f in entries)
    code, _, told = program(
        "findings", out, "--images", data, "--packets", "--most", 1, "--report"
    )
    assert code == 0
    assert f"open {out / 'findings.html'} in a browser" in told
    assert {p.name: p.read_bytes() for p in out.glob("*_findings.json")} == before
    page = (out / "findings.html").read_text(encoding="utf-8")
    assert "not for diagnosis" in page
    first, second = sorted((out / "findings_cases").glob("*.html"))
    assert [p.name for p in (first, second)] == ["new-0.html", "new-1.html"]
    assert all(f'href="findings_cases/{p.name}"' in page for p in (first, second))
    assert first.read_text(encoding="utf-8").count("data-place=") == min(12, len(entries))
    code, said, _ = program(*command)  # the ledger still knows every file
    assert "2 already finished" in said


def test_the_command_says_what_it_needs(run, program, tmp_path):
    data = write_cases(tmp_path / "other", count=1)
    (tmp_path / "empty").mkdir()
    code, _, said = program("findings", tmp_path / "empty", "--images", data)
    assert code == 2
    assert "expected results of a localization or segmentation, found none" in said
    out, _ = written(tmp_path, A)
    code, _, said = program("findings", out, "--images", data)
    assert code == 2
    assert "expected the images that" in said
