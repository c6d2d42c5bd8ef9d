"""Outputs of a BIDS data set: where they lie, what is beside them, who finds them again."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from child_processes import run_program
from tiny_app import PLAIN, base, label_run, program, run
from tiny_runs import phantom, tiny, write_data

from volumediff import bids_app, cli
from volumediff.colours import label_colour
from volumediff.data.cases import Case
from volumediff.data.survey import find_cases
from volumediff.evaluation.evaluate import evaluate
from volumediff.inference.findings import find_in_folder
from volumediff.outputs.case_files import case_files
from volumediff.outputs.label_tables import write_label_tables
from volumediff.reporting.findings_page import Gallery
from volumediff.training.loop import train

__all__ = ["base", "program", "run"]  # fixtures

AFFINE = np.diag([3.0, 3, 3, 1])
LOCALIZE = ("--method", "smoothing", "threshold={name: fixed, value: 0.1}", "post=[]")
FIRST = "sub-91/anat/sub-91_acq-mprage"
LATER = "sub-92/ses-1/anat/sub-92_ses-1_run-2"


def write_bids(root, suffix="T1w"):
    """Two subjects, the second with a session, a lesion mask of the first."""
    images = {FIRST: 101, LATER: 102}
    for stem, seed in images.items():
        image = nib.Nifti1Image(phantom(seed), AFFINE)
        image.header.set_xyzt_units("mm", "sec")
        path = root / f"{stem}_{suffix}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
    truth = root / "derivatives/manual" / f"{FIRST}_desc-lesion_mask.nii.gz"
    truth.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image((phantom(101) > 150).astype(np.uint8), AFFINE), truth)
    (root / "dataset_description.json").write_text('{"Name": "phantoms", "BIDSVersion": "1.10.0"}')
    return root


def content(path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "images", "expected"),
    [
        ("sub-1", ["sub-1/anat/sub-1_T1w.nii.gz"], "sub-1/anat/sub-1"),
        ("sub-1", ["sub-1/anat/sub-1_acq-a_run-2_T1w.nii"], "sub-1/anat/sub-1_acq-a_run-2"),
        (
            "sub-1_ses-b",
            ["sub-1/ses-b/pet/sub-1_ses-b_trc-FDG_space-T1w_desc-x_pet.nii.gz"],
            "sub-1/ses-b/pet/sub-1_ses-b_trc-FDG_space-T1w",
        ),
        (
            "sub-1",  # what two channels share
            ["sub-1/anat/sub-1_acq-a_run-1_T1w.nii.gz", "sub-1/anat/sub-1_acq-b_run-1_FLAIR.nii"],
            "sub-1/anat/sub-1_run-1",
        ),
        ("sub-1", ["sub-1_T1w.nii.gz"], "sub-1"),  # a file that lies in no data set
        ("sub-1", ["sub-1/sub-1_T1w.nii.gz"], "sub-1"),  # no folder of a data type
        ("sub-1", ["sub-2/anat/sub-1_T1w.nii.gz"], "sub-1"),
        ("mine", ["sub-1/anat/sub-1_T1w.nii.gz"], "mine"),  # another name was asked for
        ("p7", ["p7/T1w.nii.gz"], "p7"),
        ("sub-1", ["sub-1/anat/sub-1_T1w.nii.gz", "FLAIR.nii.gz"], "sub-1"),
    ],
)
def test_outputs_lie_beside_each_other_as_the_images_do(tmp_path, case, images, expected):
    paths = {str(i): tmp_path / "raw" / name for i, name in enumerate(images)}
    files = case_files(tmp_path / "out", Case(case, case, paths))
    wanted = tmp_path / "out" / f"{expected}_dseg.nii.gz"
    assert files.path("dseg") == wanted
    assert bool(files.sources) is ("/" in expected)
    if files.sources:
        assert files.sources[0] == f"bids:raw:{images[0]}"
        assert files.links == {"raw": (tmp_path / "raw").as_uri()}


# --- whole folders -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory, base, run):
    """(data, localized, segmented, translated), by the program."""
    from volumediff.api.files import localize_files, segment_files, translate_files
    from volumediff.api.loading import load

    root = tmp_path_factory.mktemp("bids")
    data = write_bids(root / "data")
    quiet = {"progress": lambda line: None}
    fixed = ("threshold={name: fixed, value: 0.1}", "post=[]")
    words = {"method": "smoothing", "overrides": fixed}
    localize_files(load(run), data, root / "localized", **words, **quiet)
    gallery = Gallery(root / "localized")
    find_in_folder(root / "localized", data, look=gallery.add)
    gallery.write()
    (root / "localized" / "errors").mkdir()
    (root / "localized" / "errors" / "sub-90.txt").write_text("as of a case that failed")
    words = {"overrides": ("samples=2", "sampler.steps=2"), "write_samples": True}
    segment_files(load(label_run(base)), data, root / "segmented", **words, **quiet)
    pairs = write_data(root / "pairs")
    for path in list(pairs.glob("*_T1w.nii.gz")):
        shutil.copy(path, path.with_name(path.name.replace("T1w", "FLAIR")))
    recipe = ("data.channels=[T1w,FLAIR]", "recipe={name: translation, targets: [FLAIR]}")
    train(tiny(pairs, root / "run", *recipe, "optim.steps=2"))
    words = {"overrides": ("sampler.steps=2",)}
    translate_files(load(root / "run"), data, root / "translated", **words, **quiet)
    return data, *(root / name for name in ("localized", "segmented", "translated"))


def test_a_folder_of_results_is_a_derivative_data_set(folders):
    data, localized, segmented, translated = folders
    for folder, task in (
        (localized, "localize"),
        (segmented, "segment"),
        (translated, "translate"),
    ):
        about = content(folder / "dataset_description.json")
        assert about["DatasetType"] == "derivative"
        assert about["DatasetLinks"] == {"data": data.as_uri()}
        assert about["SourceDatasets"] == [{"URL": data.as_uri()}]
        made = about["GeneratedBy"][0]
        assert made["Name"] == "volumediff"
        assert made["Description"].startswith(f"{task}, ")
        name = {"localize": "desc-anomaly_map", "segment": "dseg", "translate": "desc-translated"}
        digest = content(folder / f"{FIRST}_{name[task]}.json")["weights_sha256"]
        assert digest in made["Description"]  # what made the results is named by its bytes
        for stem in (FIRST, LATER):
            assert list(folder.glob(f"{stem}_*.nii.gz"))
        assert not list(folder.glob("*.nii.gz"))


def test_keys_beside_the_images_are_those_of_bids(folders):
    data, localized, segmented, translated = folders
    mask = content(localized / f"{LATER}_desc-anomaly_mask.json")
    source = f"bids:data:{LATER}_T1w.nii.gz"
    assert mask["Type"] == "Lesion"
    assert mask["Sources"] == [source]
    assert mask["SpatialReference"] == source
    assert (data / source.removeprefix("bids:data:")).is_file()
    assert content(localized / f"{LATER}_desc-foreground_mask.json")["Type"] == "ROI"
    labels = content(segmented / f"{FIRST}_dseg.json")
    assert labels["Manual"] is False
    assert labels["volumes_ml"]  # the record of the case and the keys are one file
    assert content(segmented / f"{FIRST}_label-1_probseg.json")["Sources"] == labels["Sources"]
    assert content(translated / f"{FIRST}_desc-translated_FLAIR.json")["SkullStripped"] is False
    table = [line.split("\t") for line in (segmented / "dseg.tsv").read_text().splitlines()]
    assert table[0] == ["index", "name", "color"]
    assert table[2] == ["1", "label 1", label_colour(1)]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_validator_of_bids_passes(folders, number):
    validator = shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("needs the validator of BIDS: pip install bids-validator-deno")
    done = run_program([validator, folders[number], "--format", "json", "--no-color"], code=None)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
    # there are no authors of results, and no JSON beside the table of labels
    others = {(i["code"], i.get("location")) for i in issues}
    expected = {
        ("TOO_FEW_AUTHORS", "/dataset_description.json"),
        ("SIDECAR_KEY_RECOMMENDED", "/dseg.tsv"),
    }
    assert others <= expected
    assert done.returncode == 0


def test_results_are_found_again(folders, program, tmp_path):
    data, localized, segmented, _ = folders
    result = evaluate([localized], data, replicates=20)[0]
    assert [case.case for case in result.cases] == ["sub-91"]  # the one with a truth
    labels = evaluate([segmented], data, replicates=20)[0]
    assert [case.samples for case in labels.cases] == [2]
    for folder, kind in ((localized, "anomaly"), (segmented, "label")):
        before = content(localized / f"{LATER}_desc-anomaly_findings.json")
        assert program("findings", folder, "--images", data)[0] == 0
        found = content(folder / f"{LATER}_desc-{kind}_findings.json")
        assert found["case"] == "sub-92_ses-1"
        assert kind == "label" or found == before


def test_finished_cases_are_skipped_and_a_file_alone_is_its_case(folders, run, program):
    data, localized, _, _ = folders
    words = ("--run", run, "-o", localized, *LOCALIZE, "--no-report")
    code, out, _ = program("localize", data, *words)
    assert code == 0
    assert "2 already finished" in out
    code, out, _ = program("localize", data / f"{FIRST}_T1w.nii.gz", *words)
    assert code == 0
    assert "1 already finished" in out


def test_results_below_a_data_set_are_no_truth(folders):
    """Results in derivatives/, where BIDS apps write them, are not taken for labels."""
    data, _, segmented, _ = folders
    shutil.copytree(segmented, data / "derivatives" / "volumediff")
    try:
        labels = {case.id: case.label for case in find_cases(data)}
    finally:
        shutil.rmtree(data / "derivatives" / "volumediff")
    assert labels["sub-92_ses-1"] is None
    assert "manual" in labels["sub-91"].parts


# --- tables of labels ----------------------------------------------------------------------------


def test_tables_of_labels_say_the_same_to_every_program(tmp_path):
    """Read back as ITK-SNAP and 3D Slicer do: numbers by white space, the name in quotes."""
    names = {1: "liver", 2: "left kidney", 14: "spleen"}
    write_label_tables(tmp_path, "dseg", names)
    snap = {}
    for line in (tmp_path / "dseg.label").read_text().splitlines():
        if not line.startswith("#"):
            numbers, name = line.split('"')[:2]
            index, red, green, blue, alpha, visible, mesh = numbers.split()
            snap[int(index)] = (name, (int(red), int(green), int(blue)))
            assert (alpha, visible, mesh) == (("0",) * 3 if index == "0" else ("1",) * 3)
    slicer = {}
    for line in (tmp_path / "dseg.ctbl").read_text().splitlines():
        if not line.startswith("#"):
            index, name, *colour, alpha = line.split()
            slicer[int(index)] = (name.replace("_", " "), tuple(map(int, colour)))
            assert alpha == ("0" if index == "0" else "255")
    rows = [line.split("\t") for line in (tmp_path / "dseg.tsv").read_text().splitlines()[2:]]
    assert {int(index): name for index, name, _ in rows} == names
    for value, name in names.items():
        colour = tuple(bytes.fromhex(label_colour(value)[1:]))
        assert snap[value] == slicer[value] == (name, colour)
    assert {int(index): colour for index, _, colour in rows}[14] == label_colour(14)
    (tmp_path / "dseg.label").write_text("edited")
    write_label_tables(tmp_path, "dseg", names)
    assert (tmp_path / "dseg.label").read_text() == "edited"


# --- the BIDS app --------------------------------------------------------------------------------


@pytest.fixture
def app(capsys):
    """(words) -> (exit code, stdout, stderr) of the app, in this process."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            bids_app.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_the_app_works_on_participants_and_then_on_the_group(app, run, tmp_path):
    data, out = write_bids(tmp_path / "data"), tmp_path / "out"
    method = ("--method", "intensity", "--set", "threshold=best", "post=[]")
    shared = ("--run", run, *method, "--device", "cpu")
    code, _, told = app(data, out, "participant", "--participant_label", "92", *shared)
    assert code == 0, told
    assert sorted(p.name for p in out.glob("sub-*")) == ["sub-92"]
    code, _, told = app(data, out, "participant", "--participant-label", "sub-91", "92", *shared)
    assert (code, told.count("finished before")) == (0, 1)
    assert list(out.glob(f"{FIRST}_desc-anomaly_map.nii.gz"))
    assert list(out.glob(f"{LATER}_desc-anomaly_map.nii.gz"))
    code, _, told = app(data, tmp_path / "visit", "participant", "--session-label", "1", *shared)
    assert code == 0, told
    assert sorted(p.name for p in (tmp_path / "visit").glob("sub-*")) == ["sub-92"]
    code, _, told = app(data, out, "group")
    assert code == 0, told
    assert (out / "report.html").is_file()
    code, _, told = app(data, out, "group", "--same-names", "--allow-seen")
    assert code == 0, told
    assert f"--truth {data} --report --same-names --allow-seen" in told
    # the same results as those of the command
    alone = tmp_path / "alone"
    words = ["localize", str(data), "-o", str(alone), "--no-report", "--run", str(run), *PLAIN]
    with pytest.raises(SystemExit):
        cli.main(words)
    name = f"{FIRST}_desc-anomaly_map.nii.gz"
    assert (alone / name).read_bytes() == (out / name).read_bytes()


def test_an_app_segments_with_a_run_of_labels(app, base, tmp_path):
    data, out = write_bids(tmp_path / "data"), tmp_path / "out"
    words = ("--run", label_run(base), "--participant-label", "91", "--device", "cpu")
    code, _, told = app(data, out, "participant", *words)
    assert code == 0, told
    assert "volumediff segment" in told
    assert (out / f"{FIRST}_dseg.nii.gz").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("{data}", "{out}", "subject"), 2, "invalid choice: 'subject'"),
        (("{data}", "{out}"), 2, "required: analysis_level"),
        (("{data}", "{out}", "participant", "--participant-label", "7"), 2, "no images of sub-7"),
        (
            ("{data}", "{out}", "participant", "--session-label", "9"),
            2,
            "has ses-9",
        ),
        (("{out}", "{out}", "participant"), 2, "expected a BIDS data set"),
        (("{data}", "{out}", "group", "--participant-label", "91"), 2, "leave the labels out"),
        (("{data}", "{out}", "group"), 2, "expected a folder of results"),
        (("--version",), 0, "volumediff "),
    ],
)
def test_an_app_ends_with_the_codes_of_the_program(app, tmp_path, words, code, said):
    data = write_bids(tmp_path / "data")
    ended, shown, told = app(*(w.format(data=data, out=tmp_path / "out") for w in words))
    assert ended == code
    assert said in shown + told
