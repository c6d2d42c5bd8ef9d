"""Each layout gives the cases that a person would name; what is wrong is said in one line."""

import json
from pathlib import Path

import pytest

from volumediff.data.cases import Case, patient_of, safe_id
from volumediff.data.survey import find_cases, survey_cases, survey_sources
from volumediff.errors import DataError, UsageError

REAL = Path(__file__).parents[2] / "shared/data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def shown(cases):
    return {
        c.id: ({k: p.name for k, p in c.images.items()}, c.label and c.label.name) for c in cases
    }


def test_plain_files(tmp_path):
    touch(tmp_path, "p1_T1w.nii.gz", "p1_FLAIR.nii.gz", "p1_mask.nii.gz", "p2_T1w.nii")
    touch(tmp_path, "scan_7.nii.gz", "p2_brainmask.nii.gz", ".hidden_T1w.nii.gz", "notes.txt")
    assert shown(find_cases(tmp_path)) == {
        "p1": ({"FLAIR": "p1_FLAIR.nii.gz", "T1w": "p1_T1w.nii.gz"}, "p1_mask.nii.gz"),
        "p2": ({"T1w": "p2_T1w.nii"}, None),
        "scan_7": ({"image": "scan_7.nii.gz"}, None),
    }


def test_one_folder_per_case(tmp_path):
    touch(tmp_path, "B_001/B_001_t1.nii.gz", "B_001/B_001_seg.nii.gz")
    touch(tmp_path, "B_002/t1.nii.gz", "B_002/lesion.nii.gz", "B_003/B_003-t1n.nii.gz")
    assert shown(find_cases(tmp_path)) == {
        "B_001": ({"t1": "B_001_t1.nii.gz"}, "B_001_seg.nii.gz"),
        "B_002": ({"t1": "t1.nii.gz"}, "lesion.nii.gz"),
        "B_003": ({"t1n": "B_003-t1n.nii.gz"}, None),
    }


def test_a_folder_with_a_dicom_series_is_a_case(tmp_path):
    touch(tmp_path, "p1/001.dcm")
    (tmp_path / "p1/001.dcm").write_bytes(bytes(128) + b"DICM")
    assert find_cases(tmp_path) == [Case("p1", "p1", {"image": tmp_path / "p1"})]


def test_channels_are_ordered_and_required(tmp_path):
    touch(tmp_path, "p1_T1w.nii.gz", "p1_FLAIR.nii.gz", "p2_T1w.nii.gz")
    with pytest.raises(DataError, match=r"case p2: missing channel 'FLAIR': it has T1w"):
        find_cases(tmp_path, channels=["FLAIR", "T1w"])
    cases, problems = survey_cases(tmp_path, channels=["flair", "T1w"])
    assert [list(c.images) for c in cases] == [["flair", "T1w"]]
    assert [p.id for p in problems] == ["p2"]


def test_participants_table(tmp_path):
    touch(tmp_path, "sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz")
    rows = [
        "participant_id age sex split patient_id",
        "sub-01 39 m train x",
        "sub-02 n/a f test x",
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(rows).replace(" ", "\t"))
    one, two = find_cases(tmp_path, layout="folder")
    assert one.attributes == {"age": 39.0, "sex": "m", "split": "train", "patient_id": "x"}
    assert "age" not in two.attributes
    assert one.patient == two.patient == "x"
    (tmp_path / "participants.tsv").write_text("name\tage\nsub-01\t39\n")
    with pytest.raises(DataError, match=r"participants.tsv: expected a column 'participant_id'"):
        find_cases(tmp_path)


def nnunet(root, **changes):
    touch(root, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(root, "imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz")
    info = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz", "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps(info | changes))
    return root


def test_nnunet_raw(tmp_path):
    cases = find_cases(nnunet(tmp_path))
    assert shown(cases) == {
        "a": ({"T1": "a_0000.nii.gz", "T2": "a_0001.nii.gz"}, "a.nii.gz"),
        "b": ({"T1": "b_0000.nii.gz", "T2": "b_0001.nii.gz"}, None),
    }
    assert [c.attributes["split"] for c in cases] == ["train", "test"]
    touch(tmp_path, "imagesTr/c_0001.nii.gz", "imagesTr/odd.nii.gz")
    cases, problems = survey_cases(tmp_path)
    assert len(cases) == 2
    assert ["missing channel 'T1'" in p.message for p in problems] == [False, True]
    with pytest.raises(DataError, match=r"got .png"):
        find_cases(nnunet(tmp_path, file_ending=".png"))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset.json: expected a data set description"):
        find_cases(tmp_path)


def test_bids(tmp_path):
    touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    touch(tmp_path, "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz", "sub-02/anat/sub-02_FLAIR.nii.gz")
    touch(tmp_path, "sub-02/anat/sub-02_run-1_T1w.nii.gz", "sub-02/anat/sub-02_run-2_T1w.nii.gz")
    touch(tmp_path, "derivatives/truth/sub-02/anat/sub-02_label-lesion_mask.nii.gz")
    touch(tmp_path, "derivatives/bet/sub-02/anat/sub-02_desc-brain_mask.nii.gz")
    touch(tmp_path, "derivatives/x/sub-02/anat/sub-02_desc-smooth_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t50\nsub-02\t60\n")
    cases = find_cases(tmp_path)
    assert shown(cases) == {
        "sub-01_ses-a": ({"T1w": "sub-01_ses-a_T1w.nii.gz"}, None),
        "sub-01_ses-b": ({"T1w": "sub-01_ses-b_T1w.nii.gz"}, None),
        "sub-02": (
            {
                "FLAIR": "sub-02_FLAIR.nii.gz",
                "run-1_T1w": "sub-02_run-1_T1w.nii.gz",
                "run-2_T1w": "sub-02_run-2_T1w.nii.gz",
            },
            "sub-02_label-lesion_mask.nii.gz",
        ),
    }
    assert [c.patient for c in cases] == ["sub-01", "sub-01", "sub-02"]
    assert [c.attributes["age"] for c in cases] == [50, 50, 60]
    with pytest.raises(DataError, match=r"sub-02: .*several files fit: name one of run-1_T1w"):
        find_cases(tmp_path, channels=["T1w"])
    touch(tmp_path, "sub-02/anat/sub-02_dseg.nii.gz")
    with pytest.raises(DataError, match="2 labels fit"):
        find_cases(tmp_path)


def datalist(root, **content):
    (root / "list.json").write_text(json.dumps(content))
    return root / "list.json"


def test_datalist(tmp_path):
    touch(tmp_path, "x/a.nii.gz", "x/a_seg.nii.gz", "x/b_0000.nii.gz", "x/b_0001.nii.gz")
    path = datalist(
        tmp_path,
        training=[{"image": "./x/a.nii.gz", "label": "x/a_seg.nii.gz", "fold": 2, "patient": "P"}],
        test=[{"image": ["x/b_0000.nii.gz", "x/b_0001.nii.gz"]}],
        modality={"0": "T1", "1": "T2"},
    )
    one, two = find_cases(path)
    assert (one.id, one.patient, one.label.name) == ("a", "P", "a_seg.nii.gz")
    assert one.attributes == {"split": "train", "fold": 2.0}
    assert {k: p.name for k, p in two.images.items()} == {
        "T1": "b_0000.nii.gz",
        "T2": "b_0001.nii.gz",
    }
    assert two.attributes == {"split": "test"}


@pytest.mark.parametrize(
    "name", ["../secret.nii.gz", "/etc/passwd", "x/../../s.nii.gz", "link/s.nii.gz", 3]
)
def test_datalist_paths_stay_below_the_root(name, tmp_path):
    inner = tmp_path / "inner"
    touch(tmp_path, "secret.nii.gz", "inner/x/a.nii.gz")
    (inner / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"leaves|expected a path"):
        find_cases(datalist(inner, training=[{"image": name}]))


def test_decathlon_is_a_datalist(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    info = {
        "modality": {"0": "CT"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert shown(find_cases(tmp_path)) == {"a": ({"image": "a.nii.gz"}, "a.nii.gz")}


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"training": 3}', "[" * 100_000, "\udcff"])
def test_broken_json_is_one_line(text, tmp_path):
    (tmp_path / "list.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"list\.json"):
        find_cases(tmp_path / "list.json")


def test_nothing_found(tmp_path):
    with pytest.raises(DataError, match="nothing is there"):
        find_cases(tmp_path / "none")
    with pytest.raises(DataError, match="no case found as layout 'folder'"):
        find_cases(tmp_path)
    touch(tmp_path, "a_mask.nii.gz")
    with pytest.raises(DataError, match=r"has a label .* but no image"):
        find_cases(tmp_path)
    touch(tmp_path, "a_T1w.nii.gz", "a_seg.nii.gz")
    with pytest.raises(DataError, match=r"a_seg.nii.gz and a_mask.nii.gz are both its label"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("sub-01_ses-2", "sub-01"),
        ("aomic_sub-0001", "sub-0001"),
        ("p07_visit2", "p07"),
        ("p07-tp1_run-2", "p07"),
        ("glioma_DU7294", "glioma_DU7294"),
        ("trial_running", "trial_running"),
    ],
)
def test_patients(name, patient):
    assert patient_of(name) == patient


def test_ids_are_safe_file_names():
    assert safe_id("sub-01_T1.w") == "sub-01_T1.w"
    names = ["größe", "a b", "a/b", "..", ".x", "脳", "皮", "x" * 200]
    cleaned = [safe_id(n) for n in names]
    assert len(set(cleaned)) == len(names)
    assert all(safe_id(c) == c for c in cleaned)


@needs_real
def test_real_folders():
    healthy = find_cases(REAL / "healthy_t1", channels=["T1w"])
    assert len(healthy) == 62
    assert sum(c.attributes["split"] == "calibration" for c in healthy) == 6
    pathology = {c.id: c for c in find_cases(REAL / "pathology")}
    assert pathology["ms_p07"].label.name == "ms_p07_mask.nii.gz"
    assert set(pathology["stroke_isles"].images) == {"ADC", "DWI", "FLAIR"}
    assert pathology["stroke_cstar"].label is None
    assert {c.id for c in find_cases(REAL / "ct", channels=["ct"])} == {"abdomen", "lung"}


@pytest.mark.parametrize("names", [[3], 3, "T1w", {"0": ["T1w"]}, {"0": None}, {"a": 1.5}])
def test_channel_names_of_another_type_are_one_line(tmp_path, names):
    listed = {"channel_names": names, "training": [{"image": ["a.nii", "b.nii"]}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"list\.json: expected 'channel_names' such as .*, got"):
        find_cases(tmp_path / "list.json")
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    with pytest.raises(DataError, match=r"dataset\.json: expected 'channel_names' such as"):
        find_cases(tmp_path, "nnunet")


def test_a_number_without_end_is_a_problem_of_its_case(tmp_path):
    listed = {"training": [{"image": "a.nii", "age": 10**400}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match="'age' is a number without end"):
        find_cases(tmp_path / "list.json")


# --- several sources, files alone, tables --------------------------------------------------------


def test_a_file_alone_is_the_case_that_it_is_in_its_folder(tmp_path):
    """Path by path, in every convention: the same id, patient and channel as in the data set."""
    touch(
        tmp_path / "plain", "sub-10001_cavity_T1w.nii.gz", "p7_visit2_FLAIR.nii", "scan_7.nii.gz"
    )
    touch(tmp_path / "cases", "B_001/B_001_t1.nii.gz", "p2/T1w.nii.gz", "p3/p3-x_flair.nii.gz")
    touch(tmp_path / "bids", "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.nii.gz")
    touch(tmp_path / "bids", "sub-02/anat/sub-02_FLAIR.nii.gz", "sub-03/sub-03_T1w.nii.gz")
    touch(tmp_path / "raw", "imagesTr/a_1_0000.nii.gz")
    description = {"channel_names": {"0": "image"}, "file_ending": ".nii.gz"}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(description))
    touch(tmp_path / "table", "scans/one.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz")
    rows = (
        "id,image:ct,patient,age\nx1,scans/one.nii.gz,q,63\nx2,sub-01/anat/sub-01_T1w.nii.gz,r,5"
    )
    (tmp_path / "table" / "cases.csv").write_text(rows)
    (tmp_path / "plain" / "participants.tsv").write_text("participant_id\tage\np7\t41\n")
    count = 0
    for root in sorted(tmp_path.iterdir()):
        for case in find_cases(root):
            ((_, path),) = case.images.items()
            (alone,) = find_cases(path)
            assert (alone.id, alone.patient) == (case.id, case.patient)
            assert alone.images == case.images
            known = {k: v for k, v in case.attributes.items() if k != "split"}
            assert {k: v for k, v in alone.attributes.items() if k != "split"} == known
            count += 1
    assert count == 12
    (named,) = find_cases(tmp_path / "plain" / "p7_visit2_FLAIR.nii", channels=["T2w"])
    assert list(named.images) == ["T2w"]


def test_a_case_folder_given_alone_is_one_case(tmp_path):
    touch(tmp_path, "p1/T1w.nii.gz", "p1/FLAIR.nii.gz", "p1/mask.nii.gz")
    (case,) = find_cases(tmp_path / "p1")
    assert case.id == "p1"
    assert list(case.images) == ["FLAIR", "T1w"]
    assert case == find_cases(tmp_path)[0]


def test_a_table_of_cases_wins_over_every_look(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "BraTS2021_00000/BraTS2021_00000_t1.nii.gz")
    (tmp_path / "prepared.json").write_text("{}")
    table = tmp_path / "cases.csv"
    table.write_text("id,image:T1w\nmine,sub-01/anat/sub-01_T1w.nii.gz\n")
    for given in (tmp_path, table):
        (case,) = find_cases(given)
        assert (case.id, list(case.images)) == ("mine", ["T1w"])
    (alone,) = find_cases(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz")
    assert alone.id == "mine"
    # and the layout can be named all the same
    assert [c.id for c in find_cases(tmp_path, "bids")] == ["sub-01"]


def test_several_sources_are_one_set_without_doubles(tmp_path):
    touch(tmp_path, "a/p1_T1w.nii.gz", "b/p2_T1w.nii.gz", "b/p1_FLAIR.nii.gz", "c/notes.txt")
    cases, _ = survey_sources([tmp_path / "a", tmp_path / "b" / "p2_T1w.nii.gz"])
    assert [c.id for c in cases] == ["p1", "p2"]
    with pytest.raises(UsageError, match=r"a and .*b: both have a case called p1; rename one"):
        survey_sources([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="got none"):
        survey_sources([])
    with pytest.raises(DataError, match=r"notes.txt: expected a volume \(.nii, .nii.gz\), a fold"):
        survey_sources([tmp_path / "c" / "notes.txt"])


def test_channels_beside_a_file_alone(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz")
    path = tmp_path / "sub-01/anat/sub-01_FLAIR.nii.gz"
    (case,) = find_cases(path, channels=["T1w", "FLAIR"])
    assert (case.id, list(case.images)) == ("sub-01", ["T1w", "FLAIR"])
    with pytest.raises(UsageError, match="expected the channels T1w, T2w, and they do not lie"):
        find_cases(path, channels=["T1w", "T2w"])
    touch(tmp_path, "other/x_T1w.nii.gz", "other/sub-01/sub-01_T1w.nii.gz")
    with pytest.raises(UsageError, match=r"is in no case of .* as layout bids"):
        find_cases(tmp_path / "other/x_T1w.nii.gz", "bids")
