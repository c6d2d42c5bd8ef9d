"""Every file below a root that looks like data is in a case, or is named once with a reason."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_app import program, save

from volumediff.data.account import left_out, refuse_left_out
from volumediff.data.check import check
from volumediff.data.layouts.folder import Folder
from volumediff.data.survey import find_cases, survey_cases, surveyed_once
from volumediff.errors import DataError, UsageError

__all__ = ["program"]  # a fixture

DICOM = bytes(128) + b"DICM"
BARE = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"  # no preamble: the first element comes first


def touch(root, *names, content=b""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def written(root, content):
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def accounted(root, layout="auto"):
    """File -> `case`, or the message and the severity of the row that names it."""
    cases, problems = survey_cases(root, layout)
    found = []
    for case in cases:
        files = [*case.images.values(), *case.label_files.values()]
        found += [(p.relative_to(root).as_posix(), "case") for p in files]
    for problem in problems:
        found += [
            (
                Path(os.path.relpath(os.path.realpath(f), os.path.realpath(root))).as_posix(),
                problem,
            )
            for f in problem.files
        ]
    often = Counter(name for name, _ in found)
    assert max(often.values(), default=1) == 1, often  # named once
    return {n: w if w == "case" else (w.severity, w.message) for n, w in found}


def test_every_kind_of_file_is_named_once(tmp_path):
    touch(tmp_path, "a_T1w.nii.gz", "a_mask.nii.gz", "b.mgz", "c.mha", "d.nrrd", "e.hdr", "e.img")
    touch(tmp_path, "f.npy", "g.mnc", "h.nii.gz.part", "i.zip", "lost.img", "x_seg.nii.gz")
    touch(tmp_path, "deep/er/T1w.nii.gz", "a_brain_mask.nii.gz", "a_T1w_pve_0.nii.gz")
    touch(tmp_path, "clinical.xlsx", "notes.json", "a_T1w.json", "README.txt", ".hidden.nii")
    touch(tmp_path, "p1/T1w.nii.gz", "p1/raw/IM0001", content=DICOM)
    found = accounted(tmp_path)
    read = {"a_T1w.nii.gz", "a_mask.nii.gz", "b.mgz", "c.mha", "d.nrrd", "e.hdr", "p1/T1w.nii.gz"}
    assert {name for name, what in found.items() if what == "case"} == read
    reasons = {name: what for name, what in found.items() if what != "case"}
    expected = {
        "f.npy": ("warning", ".npy files are not read; convert them to NIfTI"),
        "g.mnc": ("warning", ".mnc files are not read"),
        "h.nii.gz.part": ("warning", "unfinished downloads"),
        "i.zip": ("warning", "archives are not opened; unpack them"),
        "lost.img": ("warning", ".img files are not read"),
        "x_seg.nii.gz": ("error", "has a label"),
        "deep/er/T1w.nii.gz": ("warning", "2 folders deep"),
        "a_brain_mask.nii.gz": ("info", "are no labels"),
        "a_T1w_pve_0.nii.gz": ("warning", "begins with the name of a_T1w.nii.gz"),
        "clinical.xlsx": ("info", "tables are not read"),
        "notes.json": ("info", "descriptions are not read"),
        "p1/raw/IM0001": ("warning", "give each series a folder of its own"),
    }
    assert set(reasons) == set(expected)
    for name, (severity, words) in expected.items():
        assert reasons[name][0] == severity, name
        assert words in reasons[name][1], (name, reasons[name])


def test_the_account_is_that_of_a_folder_by_any_of_its_names(tmp_path, monkeypatch):
    """A link to the data and the folder in which the program runs give the same account."""
    touch(tmp_path, "data/a_T1w.nii.gz", "data/f.npy")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    wanted = [p.message for p in survey_cases(tmp_path / "data")[1]]
    assert wanted == [".npy files are not read; convert them to NIfTI: f.npy."]
    assert [p.message for p in survey_cases(tmp_path / "link")[1]] == wanted
    monkeypatch.chdir(tmp_path / "data")
    assert [p.message for p in survey_cases(".")[1]] == wanted


def test_dicom_trees_are_found_and_what_is_odd_in_a_series_is_named(tmp_path):
    for study, series in (("2019", "T1"), ("2019", "T2"), ("2020", "T1")):
        touch(tmp_path, *(f"pat7/{study}/{series}/{i:03d}" for i in range(3)), content=DICOM)
    touch(tmp_path, *(f"pat8/{i}.dcm" for i in range(3)), content=BARE)
    touch(tmp_path, "pat8/9.npy", "pat8/10.dcm")  # whoever reads the series judges 10.dcm
    touch(tmp_path, "DICOMDIR", content=DICOM)
    cases, problems = survey_cases(tmp_path)
    assert {c.id: c.patient for c in cases} == {
        "pat7_2019_T1": "pat7",
        "pat7_2019_T2": "pat7",
        "pat7_2020_T1": "pat7",
        "pat8": "pat8",
    }
    assert cases[0].images == {"image": tmp_path / "pat7/2019/T1"}
    (odd,) = problems
    assert [f.name for f in odd.files] == ["9.npy"]
    # the folder of one series alone
    (alone,), (odd,) = survey_cases(tmp_path / "pat8")
    assert alone.id == "pat8"
    assert [f.name for f in odd.files] == ["9.npy"]


def test_nested_volumes_are_found_and_what_is_odd_is_named(tmp_path):
    touch(tmp_path, "pat1/2019/T1w/scan.nii.gz", "pat1/2019/FLAIR/scan.nii.gz")
    touch(tmp_path, "pat1/2019/lesion/drawn.nii.gz", "pat1/2020/pat1_T1w.nii.gz")
    touch(tmp_path, "pat2/study/T1w.nii.gz", "pat2/study/mask.nii.gz", "pat2/study/labels/m.nii")
    touch(tmp_path, "pat3/T1w.nii.gz", "pat3/old/T1w.nii.gz", "derivatives/a/b/T1w.nii.gz")
    cases, _ = survey_cases(tmp_path)
    said = {c.id: (c.patient, *sorted(c.images), c.label and c.label.name) for c in cases}
    assert said == {
        "pat1_2019": ("pat1", "FLAIR", "T1w", "drawn.nii.gz"),
        "pat1_2020": ("pat1", "T1w", None),
        "pat2_study": ("pat2", "T1w", "mask.nii.gz"),
        "pat3": ("pat3", "T1w", None),
    }
    found = accounted(tmp_path)
    assert {name: what[0] for name, what in found.items() if what != "case"} == {
        "pat2/study/labels/m.nii": "warning",
        "pat3/old/T1w.nii.gz": "warning",
        "derivatives/a/b/T1w.nii.gz": "info",
    }


def test_orphan_labels_are_named_in_every_convention(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    written(
        raw,
        {
            "channel_names": {"0": "T1"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": 3,
            "file_ending": ".nii.gz",
        },
    )
    touch(raw, *(f"imagesTr/c_{i}_0000.nii.gz" for i in range(3)))
    touch(raw, "labelsTr/c_0.nii", "labelsTr/C_1.nii.gz", "labelsTr/c_2_0000.nii.gz")
    touch(raw, "labelsTr/d.nii.gz")
    labels = [c.label and c.label.name for c in find_cases(raw)]
    assert labels == ["c_0.nii", "C_1.nii.gz", None]  # another ending, another case
    found = accounted(raw)
    assert found["labelsTr/c_2_0000.nii.gz"][1].endswith("rename it to c_2.nii.gz.")
    assert found["labelsTr/d.nii.gz"][0] == "warning"
    bids = tmp_path / "bids"
    touch(bids, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/T1w_extra.nii.gz")
    mask = "derivatives/m/sub-0{0}/anat/sub-0{0}{1}_label-lesion_mask.nii.gz"
    touch(bids, mask.format(2, ""), mask.format(1, "_ses-1"))
    touch(bids, mask.format(1, "_space-MNI152NLin6Asym"))
    touch(bids, "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    found = accounted(bids)
    assert "no image" in found[mask.format(2, "")][1]
    assert "no image" in found[mask.format(1, "_ses-1")][1]
    assert "another space" in found[mask.format(1, "_space-MNI152NLin6Asym")][1]
    assert "begins with sub-01_" in found["sub-01/anat/T1w_extra.nii.gz"][1]
    preprocessed = found["derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    assert preprocessed[0] == "info"


def test_two_files_for_one_place_are_an_error_with_both_names(tmp_path):
    touch(tmp_path / "plain", "p1_T1w.nii.gz", "p1_T1w.mgz")
    with pytest.raises(DataError, match=r"p1_T1w\.nii\.gz and p1_T1w\.mgz are both its image"):
        find_cases(tmp_path / "plain")
    touch(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/func/sub-1_T1w.nii.gz")
    with pytest.raises(DataError, match=r"anat/sub-1_T1w.nii.gz are both its T1w"):
        find_cases(tmp_path / "bids")
    raw = tmp_path / "raw"
    touch(raw, "imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nii", "labelsTr/a.nii.gz")
    written(raw, {"channel_names": {"0": "CT"}})
    with pytest.raises(DataError, match=r"a_0000.nii.gz and a_0000.nii are both its CT"):
        find_cases(raw)


def test_left_out_files_are_counted_and_refused_on_demand(tmp_path):
    touch(tmp_path, "a_T1w.nii.gz", "a_brain_mask.nii.gz")
    _, problems = survey_cases(tmp_path)
    assert left_out(problems, tmp_path) is None  # left out by rule
    refuse_left_out(problems)
    touch(tmp_path, "f.npy", "g.npy")
    _, problems = survey_cases(tmp_path)
    assert left_out(problems, "DATA").startswith("2 files are in no case; `volumediff check DATA`")
    with pytest.raises(UsageError, match=r"strict: .*2 \.npy files are not read"):
        refuse_left_out(problems)


@pytest.mark.parametrize("words", [["check"], ["train", "wavelet_64"], ["prepare"], ["evaluate"]])
def test_commands_count_and_refuse(words, tmp_path, program):
    save(tmp_path / "a.nii", np.ones((4, 4, 4), np.float32), np.eye(4))
    touch(tmp_path, "f.npy")
    data = f"data.root={tmp_path}" if words[0] == "train" else str(tmp_path)
    more = {"prepare": ["-o", str(tmp_path / "out")], "evaluate": ["--truth", data]}
    given = [*words, *more.get(words[0], ()), *(() if words[0] == "evaluate" else (data,))]
    given += [str(tmp_path / "results")] if words[0] == "evaluate" else []
    code, out, error = program(*given, "--strict")
    assert code == (1 if words == ["check"] else 2)
    assert "f.npy" in out + error
    code, out, error = program(*given)
    assert "1 file" in out + error
    assert "in no case" in out + error


def test_a_command_lists_a_folder_once(tmp_path, program, monkeypatch):
    """Account, cases and channels of a run come from one reading; the next command reads anew."""
    for name in ("a_T1w", "a_T2w", "b_T1w"):
        save(tmp_path / f"data/{name}.nii", np.ones((4, 4, 4), np.float32), np.eye(4))
    reads, read_folder = [], Folder.read
    monkeypatch.setattr(
        Folder, "read", lambda self, root: reads.append(root) or read_folder(self, root)
    )
    with surveyed_once():
        assert len(survey_cases(tmp_path / "data")[0]) == 2
        cases, problems = survey_cases(tmp_path / "data", channels=["T2w"])
        assert ([c.id for c in cases], [p.id for p in problems]) == (["a"], ["b"])
        assert len(survey_cases(tmp_path / "data")[1]) == 0, "one's problems are not another's"
    assert len(reads) == 1
    survey_cases(tmp_path / "data")
    assert len(reads) == 2
    program("prepare", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--channels", "T9")
    assert len(reads) == 3


def test_discovery_is_quick(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(1000):
        (tmp_path / f"images/p{i:05d}_T1w.nii.gz").touch()
        (tmp_path / f"labels/p{i:05d}_T1w.nii.gz").touch()
    start = time.process_time()
    cases, problems = survey_cases(tmp_path)
    spent = time.process_time() - start
    assert len(cases) == 1000
    assert all(case.label is not None for case in cases)
    assert not problems
    assert spent < 0.6  # about 0.1 s


def test_check_tells_each_case_when_it_is_read(tmp_path):
    from volumediff.data.check import Checking

    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii", np.ones((4, 4, 4), np.float32), np.eye(4))
    batches = Checking(*survey_cases(tmp_path)).lines()
    assert next(batches) == []
    assert {line.case for line in next(batches)} == {"a"}
    (tmp_path / "b.nii").unlink()  # nothing was read ahead
    assert [line.code for line in next(batches)] == ["refused"]
    assert not any(line.files for line in check([tmp_path]))
