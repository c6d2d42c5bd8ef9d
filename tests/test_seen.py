"""Volumes that a model has seen: who is recognised by what, through all runs, and what follows."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_reconstruction_methods import PARTS, autoencoder_words
from tiny_app import PLAIN, WINDOW, program, save
from tiny_runs import phantom, tiny

from volumediff.data.cases import Case, patient_of
from volumediff.data.seen import Match, Roster, Seen, roster
from volumediff.data.splits import Split
from volumediff.errors import DataError
from volumediff.evaluation.evaluate import evaluate
from volumediff.evaluation.summary import coverage
from volumediff.inference.localize_files import localize
from volumediff.inference.options import LocalizeOptions
from volumediff.runs.auxiliary_models import Borrowed
from volumediff.runs.trained import load_trained
from volumediff.samples.seen_record import seen_by
from volumediff.storage import records
from volumediff.training.loop import train

__all__ = ["program"]  # a fixture

AFFINE = np.diag([3.0, 3, 3, 1])
SPLIT = "data.split={seed: 0, validation: 0.2, calibration: 0.2, test: 0.2}"


def sha(content):
    return hashlib.sha256(content).hexdigest()


def volume(folder, name, seed):
    return save(folder / f"{name}_T1w.nii.gz", phantom(seed), AFFINE)


def asked(seen, digests=(), patients=(), names=()):
    return seen.find(digests=digests, patients=patients, names=names)


# what is recognised


def test_a_case_is_recognised_by_content_patient_and_name(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"one")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "FLAIR.nii").write_bytes(b"two")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "FLAIR.nii").write_bytes(b"three")
    cases = {
        "train": [
            Case("x_ses-1", "x", {"T1w": tmp_path / "a.nii"}),
            Case("y", "y", {"FLAIR": tmp_path / "b" / "FLAIR.nii"}),
        ],
        "calibration": [Case("z", "z", {"FLAIR": tmp_path / "c" / "FLAIR.nii"})],
    }
    found = roster("runs/a", cases)
    short = {kind: set(tokens) for kind, tokens in found.parts.items()}
    assert short["file"] == {sha(b)[:16] for b in (b"one", b"two", b"three")}
    assert short["patient"] == {sha(b)[:16] for b in (b"x", b"y", b"z")}
    # a name that two cases have in common is the name of none
    assert short["name"] == {sha(b)[:16] for b in (b"x_ses-1", b"y", b"z", b"a")}
    seen = Seen((found,))
    assert asked(seen, digests=[sha(b"three")]) == Match("file", "calibration", "runs/a")
    assert asked(seen, patients=["x"]) == Match("patient", "train", "runs/a")
    assert asked(seen, names=["new", "a"]) == Match("name", "train", "runs/a")
    assert asked(seen, digests=[sha(b"four")], patients=["w"], names=["FLAIR"]) is None
    # a patient is no case, and no file
    assert asked(seen, patients=["x_ses-1"], names=["x"]) is None
    # content is proof and comes first, in whichever run it was
    other = Seen(
        (Roster("runs/b", {"file": {}, "patient": {sha(b"w")[:16]: "train"}, "name": {}}),)
    )
    both = asked(other | seen, digests=[sha(b"three")], patients=["w"])
    assert both == Match("file", "calibration", "runs/a")


def test_records_join_without_repetition_and_come_back_from_the_disk(tmp_path):
    a, b = (Seen((roster(name, {"train": [Case(name, name, {})]}),)) for name in "ab")
    whole = a | b | a | Seen(unknown=("m",)) | Seen(unknown=("m", "n"))
    assert [r.of for r in whole.rosters] == ["a", "b"]
    assert whole.unknown == ("m", "n")
    whole.save(tmp_path / "seen.json")
    assert Seen.load(tmp_path / "seen.json") == whole
    assert "sub-01" not in repr(roster("r", {"train": [Case("sub-01", "sub-01", {})]}))
    records.write(tmp_path / "seen.json", {"rosters": [{"of": "a"}], "unknown": []})
    with pytest.raises(DataError, match=r"seen\.json: damaged: rosters\.0\.parts"):
        Seen.load(tmp_path / "seen.json")


def test_slices_are_of_the_patient_that_they_were_cut_from():
    assert patient_of("p07_visit2_slice45") == "p07"
    assert patient_of("sub-01_ses-1_slice-3") == "sub-01"


# from training to figures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten patients, two of them with two sessions."""
    folder = tmp_path_factory.mktemp("seen") / "data"
    for i in range(10):
        volume(folder, f"sub-{i:02d}_ses-1", i)
    for i in (0, 1):
        volume(folder, f"sub-{i:02d}_ses-2", 20 + i)
    return folder


@pytest.fixture(scope="module")
def run(data):
    return train(tiny(data, data.parent / "run", SPLIT, WINDOW, "optim.steps=1"))


def sick(folder, cases):
    """Volumes (name -> file or seed) with lesions at the same place, and their masks."""
    for name, source in cases.items():
        target = folder / f"{name}_T1w.nii.gz"
        if isinstance(source, Path):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        else:
            volume(folder, name, source)
        lesion = np.zeros((8, 8, 8), np.uint8)
        lesion[3:5, 3:5, 3:5] = 1
        save(folder / f"{name}_mask.nii.gz", lesion, AFFINE)
    return folder


def patients(run):
    """Part -> numbers of its patients."""
    split = Split.load(run / "splits.json")
    parts = ("train", "validation", "calibration", "test")
    return {p: sorted({split.patients[c] for c in getattr(split, p)}) for p in parts}


def test_a_run_records_all_parts_but_the_test_part(run):
    seen, parts = seen_by(run), patients(run)
    for part, names in parts.items():
        assert names
        for name in names:
            match = asked(seen, patients=[name])
            assert match == (None if part == "test" else Match("patient", part, str(run)))
    assert seen.unknown == ()


@pytest.fixture(scope="module")
def localized(data, run):
    """Maps of: another session of a training patient, a calibration file under another name, a
    patient of the test part, and two strangers."""
    parts = patients(run)
    (copied, held) = parts["calibration"][0], parts["test"][0]
    folder = data.parent / "mixed"
    truth = sick(
        folder / "truth",
        {
            f"{parts['train'][0]}_ses-9": 40,
            "other": data / f"{copied}_ses-1_T1w.nii.gz",
            f"{held}_ses-1": data / f"{held}_ses-1_T1w.nii.gz",
            "new-1": 41,
            "new-2": 42,
        },
    )
    words = ("threshold=best", "post=[]")
    trained = load_trained(run, device="cpu")
    found = localize(trained, truth, folder / "out", LocalizeOptions("intensity", words))
    assert not found.failed
    return folder, f"{parts['train'][0]}_ses-9"


@pytest.fixture
def mixed(localized, tmp_path):
    """A copy of them: maps, truth, and the other session."""
    folder, again = localized
    shutil.copytree(folder, tmp_path / "mixed")
    return tmp_path / "mixed" / "out", tmp_path / "mixed" / "truth", again


def test_evaluate_refuses_volumes_that_were_seen_and_says_which(run, mixed, program):
    out, truth, again = mixed
    code, table, said = program("evaluate", out, "--truth", truth)
    assert code == 1
    assert table == ""
    assert said.count("\n") == 1
    assert f"has seen 2 of 5 cases: other (its file in calibration of {run})" in said
    assert f"{again} (its patient in train of {run})" in said
    assert "Leave them out of the truth, or go on with allow_seen" in said
    assert not (out / "evaluation.json").exists()
    # the run's folder is not needed to know it
    record = json.loads((out / "new-1_desc-anomaly_map.json").read_text())["seen"]
    assert (out / record).is_file()


def test_with_leave_figures_come_with_and_without_them(mixed, program, tmp_path):
    out, truth, again = mixed
    words = (
        "--truth",
        truth,
        "--allow-seen",
        "--report",
        "--replicates",
        20,
        "-o",
        tmp_path / "r",
    )
    code, table, said = program("evaluate", out, *words)
    assert code == 0, said
    found = json.loads((tmp_path / "r" / "evaluation.json").read_text())["methods"]["intensity"]
    assert {leak["case"]: leak["match"]["by"] for leak in found["seen"]["leaks"]} == {
        again: "patient",
        "other": "file",
    }
    # without them: exactly the figures of an evaluation that never had them
    clean = tmp_path / "clean"
    shutil.copytree(truth, clean)
    for name in (again, "other"):
        for path in clean.glob(f"{name}_*"):
            path.unlink()
    code, other, said = program(
        "evaluate", out, "--truth", clean, "--replicates", 20, "-o", tmp_path / "c"
    )
    assert code == 0, said
    assert "LEAKAGE" not in other
    rest = json.loads((tmp_path / "c" / "evaluation.json").read_text())["methods"]["intensity"]
    assert rest["seen"]["leaks"] == []
    assert rest["without_seen"] is None
    for name, value in rest["measures"].items():
        assert found["without_seen"]["measures"][name] == pytest.approx(value, nan_ok=True), name
    assert [c["case"] for c in found["without_seen"]["cases"]] == [
        c["case"] for c in rest["cases"]
    ]
    assert found["measures"]["voxel_ap"]["value"] != rest["measures"]["voxel_ap"]["value"]
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    for text in (table, page):
        assert "LEAKAGE: 2 of the volumes were seen before" in text
        assert "3 volumes of 3 patients" in text
    assert "Without the volumes that were seen before:" in table
    assert ">Localization without the volumes that a model has seen before</h2>" in page


def test_patients_with_the_same_name_are_others_but_equal_files_are_not(mixed, program, tmp_path):
    out, truth, again = mixed
    words = ("--truth", truth, "-o", tmp_path / "r", "--replicates", 0)
    code, _, said = program("evaluate", out, *words, "--same-names")
    assert code == 1
    assert "has seen 1 of 5 cases: other" in said
    assert "or go on with allow_seen" in said, "same_names would not help"
    for path in truth.glob("other_*"):
        path.unlink()
    code, _, said = program("evaluate", out, *words)
    assert code == 1
    assert "same_names if they are other people" in said
    code, table, said = program("evaluate", out, *words, "--same-names")
    assert code == 0, said
    assert "1 of the volumes share names with volumes that were seen" in " ".join(table.split())
    found = json.loads((tmp_path / "r" / "evaluation.json").read_text())["methods"]["intensity"]
    assert found["seen"] == {"leaks": [], "unknown": [], "same_names": 1}
    assert again in [c["case"] for c in found["cases"]]


def test_one_method_that_has_seen_a_case_takes_it_from_all(mixed, tmp_path):
    out, truth, again = mixed
    other = tmp_path / "other"
    shutil.copytree(out, other)
    empty = Seen()
    empty.save(other / f"seen-{sha(empty.to_json().encode())[:12]}.json")
    for path in other.glob("*_desc-anomaly_map.json"):
        facts = json.loads(path.read_text())
        facts |= {"method": "stranger", "seen": f"seen-{sha(empty.to_json().encode())[:12]}.json"}
        path.write_text(json.dumps(facts))
    results = evaluate([other, out], truth, replicates=0, allow_seen=True)
    assert [len(r.leakage.leaks) for r in results] == [0, 2]
    kept = [[c.case for c in r.without_seen.cases] for r in results]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 3
    assert again not in kept[0]


def test_where_all_were_seen_there_is_nothing_without_them(mixed):
    out, truth, again = mixed
    for path in truth.iterdir():
        if not path.name.startswith((again, "other")):
            path.unlink()
    results = evaluate([out], truth, replicates=0, allow_seen=True)
    assert results[0].without_seen is None
    assert "LEAKAGE: 2 of the volumes" in coverage(results)
    assert coverage(results).endswith("No volume is left without them.")


@pytest.mark.parametrize("damaged", ["{", "[1]", "3"])
def test_a_damaged_sidecar_is_no_licence(mixed, damaged):
    out, truth, _ = mixed
    next(out.glob("*_map.json")).write_text(damaged)
    with pytest.raises(DataError, match=r"_map\.json: .*; localize again"):
        evaluate([out], truth, replicates=0)


def test_a_record_that_is_gone_or_changed_is_no_licence(mixed):
    out, truth, _ = mixed
    (record,) = out.glob("seen-*.json")
    text = record.read_text()
    changed = json.loads(text)
    changed["rosters"] = []
    record.write_text(json.dumps(changed))
    with pytest.raises(DataError, match="damaged or edited"):
        evaluate([out], truth, replicates=0)
    del changed["sha256"]
    records.write(record, changed)
    with pytest.raises(DataError, match="was changed after it was written; localize again"):
        evaluate([out], truth, replicates=0)
    record.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        evaluate([out], truth, replicates=0, allow_seen=True)


def test_a_patient_that_only_the_truth_knows_is_found(run, program, tmp_path):
    """Files that are called otherwise than their patients, as in many data sets."""
    patient = patients(run)["validation"][0]
    truth = sick(tmp_path / "truth", {"scan77": 60, "scan78": 61})
    lines = ["id,image:T1w,label,patient"]
    lines += [
        f"{n},{n}_T1w.nii.gz,{n}_mask.nii.gz,{p}"
        for n, p in (("scan77", patient), ("scan78", "stranger"))
    ]
    (truth / "cases.csv").write_text("\n".join(lines) + "\n")
    files = tmp_path / "files"
    files.mkdir()
    for path in truth.glob("*_T1w.nii.gz"):
        shutil.copy(path, files)
    assert program("localize", files, "--run", run, "-o", tmp_path / "out", *PLAIN)[0] == 0
    sidecar = json.loads(next((tmp_path / "out").glob("scan77*_map.json")).read_text())
    assert sidecar["patient"] != patient
    with pytest.raises(DataError, match=r"scan77 \(its patient in validation of"):
        evaluate([tmp_path / "out"], truth, replicates=0)


def test_the_volumes_of_a_site_have_been_seen(run, program, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    site = tmp_path / "site"
    for i in range(4):
        volume(site, f"there-{i}", 70 + i)
    truth = sick(
        tmp_path / "truth",
        {"renamed": site / "there-2_T1w.nii.gz", "there-3_ses-2": 80, "new": 81},
    )
    words = ("--method", "intensity", "threshold={name: healthy_fpr, min_volumes: 2}")
    words = (truth, "-o", tmp_path / "out", *words, "--site", site)
    code, _, said = program("localize", "--run", tmp_path / "run", *words)
    assert code == 0, said
    with pytest.raises(DataError) as caught:
        evaluate([tmp_path / "out"], truth, replicates=0)
    assert "has seen 2 of 3 cases" in str(caught.value)
    assert "renamed (its file in calibration of the site site-" in str(caught.value)
    assert "there-3_ses-2 (its patient in calibration of the site" in str(caught.value)


def test_maps_that_do_not_say_are_said_to_be_unknown(mixed, program, tmp_path):
    out, truth, _ = mixed
    for path in out.glob("*_desc-anomaly_map.json"):
        facts = json.loads(path.read_text())
        del facts["seen"]
        path.write_text(json.dumps(facts))
    words = ("--truth", truth, "--replicates", 0, "-o", tmp_path / "r", "--report")
    code, table, said = program("evaluate", out, *words)
    assert code == 0, said
    assert "It is not known which volumes were seen by the model of" in " ".join(table.split())
    assert "It is not known which" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "r" / "evaluation.json").read_text())["methods"]["intensity"]
    assert len(found["seen"]["unknown"]) == 1


# through other runs


def others(folder):
    """Patients of nobody else's, for the runs that lend."""
    for i in range(5):
        volume(folder, f"lent-{i}", 90 + i)
    return folder


def members(seen):
    return {r.of: len(r.parts["patient"]) for r in seen.rosters}


def test_a_latent_run_has_seen_what_its_autoencoder_has(data, tmp_path):
    words = autoencoder_words("{name: kl, widths: [4, 8], strides: [[2, 2, 2]], blocks: 1}")
    codec = train(tiny(others(tmp_path / "d"), tmp_path / "kl", *words, "optim.steps=1"))
    space = f"space={{name: latent, autoencoder: {codec}}}"
    run = train(tiny(data, tmp_path / "ldm", SPLIT, WINDOW, space, "optim.steps=1"))
    shutil.rmtree(codec)  # the run stands alone
    seen = seen_by(run)
    assert members(seen) == {str(run): 8, str(codec): 5}
    assert asked(seen, patients=["lent-3"]).of == str(codec)


def test_a_run_has_seen_what_the_run_has_that_it_began_with(run, tmp_path):
    words = (WINDOW, f"start_from={run}", "optim.steps=1")
    begun = train(tiny(others(tmp_path / "d"), tmp_path / "begun", *words))
    assert members(seen_by(begun)) == {str(begun): 5, str(run): 8}
    # the other run may go on or go away
    assert members(seen_by(train(tiny(tmp_path / "d", begun, *words)))) == members(seen_by(begun))


def test_a_run_that_was_moved_away_is_not_the_one_that_took_its_name(data, tmp_path):
    first = train(tiny(others(tmp_path / "d"), tmp_path / "run", WINDOW, "optim.steps=1"))
    moved = first.rename(tmp_path / "moved")
    words = (SPLIT, WINDOW, f"start_from={moved}", "optim.steps=1")
    second = train(tiny(data, tmp_path / "run", *words))
    assert sorted(len(r.parts["patient"]) for r in seen_by(second).rosters) == [5, 8]
    assert asked(seen_by(second), patients=["lent-3"]) is not None


def test_a_classifier_has_seen_its_own_volumes_and_those_of_its_states(run, data, tmp_path):
    folder = others(tmp_path / "d")
    rows = [f"lent-{i}\t{'sick' if i % 2 else 'healthy'}" for i in range(5)]
    (folder / "participants.tsv").write_text("participant_id\tgroup\n" + "\n".join(rows) + "\n")
    words = ["task=state_classifier", "optim.steps=1", WINDOW]
    words += [f"classifier={{name: encoder, of: {run}, widths: [4, 8], groups: 2}}"]
    words += ["recipe={name: class_conditional, attribute: group, values: [healthy, sick]}"]
    words += ["recipe.drop=0", "data.split={validation: 0.2}"]
    of = train(tiny(folder, tmp_path / "classifier", *words))
    found = Borrowed(load_trained(run, device="cpu")).load("classifier", of)
    assert members(found.seen) == {str(of): 5, str(run): 8}


def test_the_run_of_a_first_pass_counts(run, program, tmp_path):
    words = [*autoencoder_words(PARTS["soft_intro_vae"]), WINDOW, "optim.steps=1"]
    first = train(tiny(others(tmp_path / "d"), tmp_path / "first", *words))
    truth = sick(tmp_path / "truth", {"lent-2_ses-2": 95, "new": 96})
    words = ["--method", "phanes", "sampler.steps=2", "threshold=best", "editing.resampling=1"]
    words += ["--no-trace", f"first.run={first}"]
    code, _, said = program("localize", truth, "--run", run, "-o", tmp_path / "out", *words)
    assert code == 0, said
    with pytest.raises(DataError, match=rf"lent-2_ses-2 \(its patient in \w+ of {first}\)"):
        evaluate([tmp_path / "out"], truth, replicates=0)


def test_a_split_that_is_kept_keeps_its_record_and_one_that_is_not_is_recorded_anew(tmp_path):
    folder = others(tmp_path / "d")
    config = tiny(folder, tmp_path / "run", "optim.steps=1")
    run = train(config)
    before = (run / "seen.json").read_bytes()
    volume(folder, "late", 99)
    train(tiny(folder, run, "optim.steps=2"))
    assert (run / "seen.json").read_bytes() == before
    assert asked(seen_by(run), patients=["late"]) is None
    # a run that has none gets it from its split
    (run / "seen.json").unlink()
    assert "which has no seen.json" in seen_by(run).unknown[0]
    train(tiny(folder, run, "optim.steps=2"))
    assert (run / "seen.json").read_bytes() == before
    # no step was kept: the split is drawn anew, with whoever came
    shutil.rmtree(run / "checkpoints")
    train(tiny(folder, run, "optim.steps=2"))
    assert asked(seen_by(run), patients=["late"]) is not None
