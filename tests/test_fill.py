"""Missing channels filled in: drawn by a translation run, said in every output, never silently."""

import json

import nibabel as nib
import numpy as np
import pytest
from test_translation import TRANSLATION, write_pairs
from tiny_app import program, save
from tiny_runs import phantom, tiny

import volumediff
from volumediff.data.volume import read
from volumediff.errors import UsageError
from volumediff.training.loop import train

__all__ = ["program"]  # a fixture

AFFINE = np.diag([3.0, 3, 3, 1])
QUICK = {"method": "ddpm", "sampler": {"steps": 2}, "threshold": "best", "post": []}
WORDS = ("--method", "ddpm", "sampler.steps=2", "threshold=best", "post=[]")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs that translate T1w to FLAIR, localize on both, and segment FLAIR alone; two cases."""
    folder = tmp_path_factory.mktemp("fill")
    data = write_pairs(folder / "data")
    for i in range(6):
        label = (phantom(i) > 150).astype(np.uint8)
        save(data / f"sub-{i:02d}_label.nii.gz", label, AFFINE)
    both = ("data.channels=[T1w,FLAIR]", "data.split={validation: 0.2, calibration: 0.3}")
    train(tiny(data, folder / "flair", *TRANSLATION, "optim.steps=2"))
    train(tiny(data, folder / "both", *both, "optim.steps=2"))
    words = ("data.channels=[FLAIR]", "recipe={name: label_diffusion, labels: [1]}")
    train(tiny(data, folder / "lesions", *words, "optim.steps=2"))
    for i in (70, 71):
        save(folder / "new" / f"new-{i}_T1w.nii.gz", phantom(i), AFFINE)
    y = np.where(phantom(71) > 0, 200 - phantom(71), 0).astype(np.float32)
    save(folder / "new" / "new-71_FLAIR.nii.gz", y, AFFINE)
    return folder


def facts_of(folder, case, name="desc-anomaly_map"):
    return json.loads((folder / f"{case}_{name}.json").read_text())


def test_without_fill_a_case_that_lacks_a_channel_is_refused(place, program, tmp_path):
    words = ("localize", place / "new", "--run", place / "both", "-o", tmp_path / "out", *WORDS)
    code, _, said = program(*words)
    assert code == 1
    assert "new-70: missing channel 'FLAIR'" in said
    assert (tmp_path / "out" / "new-71_desc-anomaly_map.nii.gz").is_file()


def test_a_missing_channel_is_drawn_and_every_output_says_so(place, program, tmp_path):
    out, run = tmp_path / "out", place / "both"
    fill = ("--fill", place / "flair")
    words = ("localize", place / "new", "--run", run, "-o", out, *WORDS, *fill)
    code, _, said = program(*words)
    assert code == 0, said
    assert "cases without FLAIR get it from T1w" in said
    facts = facts_of(out, "new-70")
    assert facts["filled"]["FLAIR"]["from"] == ["T1w"]
    assert facts["filled"]["FLAIR"]["run"] == str(place / "flair")
    assert facts["inputs"]["FLAIR"]["file"] == "translated FLAIR"
    assert any(
        w.startswith("FLAIR was not measured: it was drawn from T1w") for w in facts["warnings"]
    )
    findings = facts_of(out, "new-70", "desc-anomaly_findings")
    assert "FLAIR was not measured" in findings["statement"]
    seen = json.loads((out / facts["seen"]).read_text())
    assert str(place / "flair") in json.dumps(seen), "what the translation run has seen counts"
    # a measured channel is never replaced
    facts = facts_of(out, "new-71")
    assert facts["filled"] == {}
    assert facts["inputs"]["FLAIR"]["file"] == "new-71_FLAIR.nii.gz"
    loaded = volumediff.load(run)
    plain = loaded.localize(
        [str(place / "new" / f"new-71_{c}.nii.gz") for c in ("T1w", "FLAIR")], **QUICK
    )
    stored = nib.load(out / "new-71_desc-anomaly_map.nii.gz").get_fdata()
    np.testing.assert_allclose(plain.map, stored, atol=1e-6)
    # what is drawn is what `translate` draws, and the map is that of the pair
    source = str(place / "new" / "new-70_T1w.nii.gz")
    drawn = volumediff.load(place / "flair").translate(source)
    pair = loaded.localize([source, drawn.to_nibabel()], **QUICK)
    filled = loaded.localize(source, fill=place / "flair", **QUICK)
    stored = nib.load(out / "new-70_desc-anomaly_map.nii.gz").get_fdata()
    np.testing.assert_allclose(filled.map, stored, atol=1e-6)
    np.testing.assert_array_equal(pair.foreground, filled.foreground)
    x = [v.array for v in filled.localized.examination.images.values()]
    np.testing.assert_allclose(x[1], read(drawn.save(tmp_path / "d")[0]).array, atol=1e-6)
    # results with and without are not mixed in one folder
    code, _, said = program(*words[:-2])
    assert code == 2
    assert "other settings" in said


def test_a_run_of_the_drawn_channel_alone_segments_what_it_was_drawn_from(
    place, program, tmp_path
):
    source, out = place / "new" / "new-70_T1w.nii.gz", tmp_path / "out"
    words = ("segment", source, "--run", place / "lesions", "-o", out, "samples=1")
    code, _, said = program(*words, "--fill", place / "flair")
    assert code == 0, said
    (sidecar,) = out.glob("*_dseg.json")
    facts = json.loads(sidecar.read_text())
    assert list(facts["filled"]) == ["FLAIR"]
    assert [e["file"] for e in facts["inputs"].values()] == ["translated FLAIR", source.name]
    assert "FLAIR was not measured" in facts["warnings"][0]
    result = volumediff.load(place / "lesions").segment(source, fill=place / "flair", samples=1)
    (stored,) = out.glob("*_dseg.nii.gz")
    np.testing.assert_array_equal(result.labels, nib.load(stored).get_fdata())


def test_images_in_memory_are_told_apart_by_their_number(place):
    run = volumediff.load(place / "both")
    image = nib.load(place / "new" / "new-70_T1w.nii.gz")
    assert list(run.localize(image, fill=place / "flair", **QUICK).facts["filled"]) == ["FLAIR"]
    pair = [image, nib.load(place / "new" / "new-71_FLAIR.nii.gz")]
    assert run.localize(pair, fill=place / "flair", **QUICK).facts["filled"] == {}
    with pytest.raises(UsageError, match="expected T1w,FLAIR, or T1w, of which"):
        run.localize(image, channels=["T2w"], fill=place / "flair", **QUICK)


def test_runs_that_cannot_fill_are_one_line(place, program, tmp_path):
    words = ("localize", place / "new", "--run", place / "both", "-o", tmp_path / "out", *WORDS)
    code, _, said = program(*words, "--fill", place / "lesions")
    assert code == 2
    assert "was not trained to translate" in said
    train(
        tiny(
            place / "data",
            tmp_path / "t1",
            "data.channels=[T1w,FLAIR]",
            "optim.steps=2",
            "recipe={name: translation, targets: [T1w]}",
        )
    )
    lesions = ("segment", place / "new", "--run", place / "lesions", "-o", tmp_path / "out")
    code, _, said = program(*lesions, "--fill", tmp_path / "t1")
    assert code == 2
    assert "draws T1w, and" in said
    assert "takes FLAIR; use a translation run that draws one of these" in said
