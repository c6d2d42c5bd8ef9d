"""Translated channels against measured ones: PSNR and SSIM by other means, tables, refusals."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_app import program, save
from tiny_runs import phantom

import volumediff
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.translation import evaluate_translations, measured_cases
from volumediff.evaluation.translation_case import measure_translation
from volumediff.metrics.image_similarity import psnr, ssim_map, unit_range

__all__ = ["program"]  # a fixture

AFFINE = np.diag([2.0, 2, 2, 1])
SHAPE = (14, 16, 13)


def image(seed):
    """An object that touches no face, in [20, 220], 0 around it."""
    rng = np.random.default_rng(seed)
    x = np.zeros(SHAPE, np.float32)
    x[2:-2, 2:-2, 2:-2] = rng.uniform(20, 220, [n - 4 for n in SHAPE])
    return x


def write_truth(root, count=6):
    for i in range(count):
        save(root / f"sub-{i}_T1w.nii.gz", image(i), AFFINE)
        save(root / f"sub-{i}_FLAIR.nii.gz", image(100 + i), AFFINE)
    return root


def write_drawn(root, method, change, count=6, channel="FLAIR"):
    """Translations as `translate` writes them."""
    for i in range(count):
        name = f"sub-{i}_desc-translated"
        save(root / f"{name}_{channel}.nii.gz", change(image(100 + i), i), AFFINE)
        facts = {"case": f"sub-{i}", "patient": f"sub-{i}", "method": method}
        (root / f"{name}.json").write_text(json.dumps(facts))
    return root


def noisy(scale):
    def change(x, i):
        noise = np.random.default_rng(7 + i).normal(0, scale, SHAPE)
        return np.where(x > 0, x + noise, 0).astype(np.float32)

    return change


def test_psnr_is_that_of_a_known_error():
    inside = np.zeros(SHAPE, bool)
    inside[3:9] = True
    u = np.random.default_rng(0).uniform(0, 0.5, SHAPE).astype(np.float32)
    w = np.where(inside, u + 0.1, 1 - u).astype(np.float32)  # what is outside does not count
    assert psnr(u, w, inside) == pytest.approx(20.0, abs=1e-4)
    assert psnr(u, u, inside) == np.inf
    half = u.copy()
    half[3:6] += 0.2
    assert psnr(u, half, inside) == pytest.approx(-10 * np.log10(0.02), abs=1e-4)


def test_ssim_is_that_of_monai_away_from_the_borders():
    monai = pytest.importorskip("monai.metrics.regression")
    rng = np.random.default_rng(1)
    u, w = (rng.uniform(0, 1, (17, 18, 19)).astype(np.float32) for _ in range(2))
    w = (0.6 * u + 0.4 * w).astype(np.float32)
    x, y = (torch.from_numpy(a)[None, None] for a in (u, w))
    expected, _ = monai.compute_ssim_and_cs(
        x,
        y,
        spatial_dims=3,
        kernel_size=(11, 11, 11),
        kernel_sigma=(1.5, 1.5, 1.5),
        data_range=1.0,
        kernel_type="gaussian",
    )
    found = ssim_map(u, w)[5:-5, 5:-5, 5:-5]
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=2e-5)
    assert 0.3 < found.mean() < 0.95
    np.testing.assert_allclose(ssim_map(u, u), 1.0)


def test_figures_do_not_depend_on_the_unit_of_an_image():
    x, y = image(0), image(1)
    inside = x > 0
    for a in (y, 1000 * y + 40):
        u, w = unit_range(x, inside), unit_range(a, inside)
        assert (w.min(), w.max()) == (0.0, 1.0)
        np.testing.assert_allclose(
            psnr(u, w, inside), psnr(u, unit_range(y, inside), inside), atol=1e-3
        )
    assert (unit_range(np.full(SHAPE, 3.0, np.float32), inside) == 0).all()
    with pytest.raises(ValueError, match="expected a mask with a voxel inside"):
        unit_range(x, inside & False)


def test_a_table_of_methods_with_intervals_by_patient_and_paired_differences(program, tmp_path):
    truth = write_truth(tmp_path / "truth")
    good = write_drawn(tmp_path / "good", "good", noisy(10.0))
    poor = write_drawn(tmp_path / "poor", "poor", noisy(60.0))
    better, worse = volumediff.evaluate([good, poor], truth, output=tmp_path / "out", html=True)
    assert (better.method, worse.method) == ("good", "poor")
    values = [c.channels["FLAIR"]["psnr"] for c in better.cases]
    found = better.channels["FLAIR"]["psnr"]
    assert found.value == pytest.approx(np.mean(values))
    assert found.low < found.value < found.high
    gap = better.differences["poor"]["FLAIR"]["psnr"]
    assert gap.low > 3
    assert gap.value == pytest.approx(found.value - worse.channels["FLAIR"]["psnr"].value)
    assert better.channels["FLAIR"]["ssim"].value > worse.channels["FLAIR"]["ssim"].value
    # by hand, for one case
    x, y = image(100), read(good / "sub-0_desc-translated_FLAIR.nii.gz").array[0]
    inside = x > 0
    u, w = unit_range(x, inside), unit_range(y, inside)
    assert better.cases[0].channels["FLAIR"]["psnr"] == pytest.approx(psnr(u, w, inside))
    assert better.cases[0].channels["FLAIR"]["ssim"] == pytest.approx(
        ssim_map(u, w)[inside].mean()
    )
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["translation"]["good"]["channels"]["FLAIR"]["psnr"]["value"] == found.value
    assert len(content["translation"]["poor"]["cases"]) == 6
    page = (tmp_path / "out" / "report.html").read_text()
    assert "FLAIR PSNR in dB" in page
    assert page.count('loading="lazy"') == 6
    case = (tmp_path / "out" / "report_cases" / "sub-0.html").read_text()
    assert case.count("data:image/png;base64,") == 1
    code, out, said = program("evaluate", good, poor, "--truth", truth)
    assert code == 0, said
    assert "FLAIR SSIM" in out
    assert "6 cases of 6 patients" in out


def test_figures_are_inside_of_the_brain_mask_where_there_is_one(tmp_path):
    truth = write_truth(tmp_path / "truth", 1)
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:10, 4:10, 4:9] = 1

    def outside(x, i):
        return np.where(mask > 0, x, x[::-1]).astype(np.float32)

    drawn = write_drawn(tmp_path / "a", "a", outside, 1)
    (before,) = volumediff.evaluate(drawn, truth)
    assert before.channels["FLAIR"]["psnr"].value < 20
    save(truth / "sub-0_brainmask.nii.gz", mask, AFFINE)
    (after,) = volumediff.evaluate(drawn, truth)
    assert after.channels["FLAIR"]["psnr"].value == np.inf


def test_lesions_are_those_of_a_segmentation_on_both_images_and_of_labels(tmp_path):
    truth = write_truth(tmp_path / "truth", 2)
    label = (image(100) > 150).astype(np.uint8)
    label[:7] = 0
    save(truth / "sub-0_label.nii.gz", label, AFFINE)
    drawn = write_drawn(
        tmp_path / "a", "a", lambda x, i: np.where(x > 180, 60, x).astype(np.float32), 2
    )
    cases = measured_cases(truth)

    def segments(channels):
        assert set(channels) == {"T1w", "FLAIR"}
        return (channels["FLAIR"].array[0] > 150).astype(np.uint8)

    found = measure_translation(
        {"FLAIR": drawn / "sub-0_desc-translated_FLAIR.nii.gz"},
        cases["sub-0"],
        policy=ReadPolicy(),
        by=None,
        segments=segments,
    )
    x = image(100)
    both, real = ((x > 150) & (x <= 180)).sum(), (x > 150).sum()
    assert found.lesions["lesion_dice"] == pytest.approx(2 * both / (both + real))
    inside = ((x > 150) & (label > 0)).sum()
    assert found.lesions["lesion_dice_measured"] == pytest.approx(
        2 * inside / (real + label.sum())
    )
    (result,) = evaluate_translations(
        {drawn: {"sub-1": {"FLAIR": drawn / "sub-1_desc-translated_FLAIR.nii.gz"}}},
        cases,
        segments=lambda channels: np.zeros(SHAPE, np.uint8),
    )
    assert np.isnan(result.channels[""]["lesion_dice"].value), "nothing to find is no Dice of 1"


def test_what_cannot_be_compared_is_one_line(program, tmp_path):
    truth = write_truth(tmp_path / "truth", 2)
    drawn = write_drawn(tmp_path / "a", "a", noisy(5.0), 2)
    other = write_drawn(tmp_path / "b", "b", noisy(5.0), 2, channel="T2w")
    with pytest.raises(DataError, match="expected a measured T2w to compare with, got the images"):
        volumediff.evaluate(other, truth)
    with pytest.raises(
        DataError, match="expected the same channels in every folder, got FLAIR and T2w"
    ):
        volumediff.evaluate([drawn, other], truth)
    maps = tmp_path / "maps"
    save(maps / "sub-0_desc-anomaly_map.nii.gz", image(0), AFFINE)
    with pytest.raises(UsageError, match="has no translations, and"):
        volumediff.evaluate([drawn, maps], truth)
    save(drawn / "sub-1_desc-translated_FLAIR.nii.gz", image(0), AFFINE * 1.5)
    code, _, said = program("evaluate", drawn, "--truth", truth)
    assert code == 1
    assert said.strip().count("\n") == 0
    assert "sub-1" in said


def test_volumes_that_the_run_has_seen_are_refused(program, tmp_path):
    from test_translation import TRANSLATION, write_pairs
    from tiny_runs import tiny

    from volumediff.training.loop import train

    data = write_pairs(tmp_path / "data", 4)
    train(tiny(data, tmp_path / "run", *TRANSLATION, "optim.steps=2"))
    out = tmp_path / "out"
    code, _, said = program("translate", data, "--run", tmp_path / "run", "-o", out)
    assert code == 0, said
    code, _, said = program("evaluate", out, "--truth", data)
    assert code == 1
    assert "the model has seen 4 of 4 cases" in said
    code, shown, said = program("evaluate", out, "--truth", data, "--allow-seen")
    assert code == 0, said
    assert "LEAKAGE: 4 of the volumes were seen before" in " ".join(shown.split())
    # cases without a measured channel are left out, and said
    new = tmp_path / "new"
    save(new / "x_T1w.nii.gz", phantom(90), np.diag([3.0, 3, 3, 1]))
    assert nib.load(new / "x_T1w.nii.gz").shape == (8, 8, 8)
