"""Whatever comes from outside is taken or refused in one line: no traceback, no long wait.

The same few examples run each time, and with them what once failed. At length, with new ones:

    python -m pytest tests/test_fuzz.py --hypothesis-profile long
"""

import contextlib
import json
import math
import shutil
import time
import traceback

import nibabel as nib
import numpy as np
import pytest
import yaml
from artefacts import ARTEFACTS, OLD
from bad_volumes import content, voxels
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    dicom_edits,
    header_edits,
    json_values,
    mutated,
    table,
    words,
    yaml_texts,
)
from test_dicom_files import series
from tiny_app import base, program, run, save, write_cases

from volumediff.config import load, overridden
from volumediff.config.yaml_text import Unfit, parse_yaml
from volumediff.data.dicom_files.geometry import geometry_of
from volumediff.data.dicom_files.headers import frames_of_series
from volumediff.data.survey import survey_cases
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError, printable
from volumediff.findings.schema import read_findings
from volumediff.outputs.sidecar import read_facts
from volumediff.settings.run_config import load_run_config
from volumediff.storage import seal

_ = base, program, run  # fixtures

SECONDS = 20.0  # of the processor, with types checked at every call, on a busy machine


def told(read_it):
    """What a reader gives, or None where it refuses; anything but one line is raised."""
    began = time.process_time()
    said = ""
    try:
        found = read_it()
    except (DataError, UsageError) as error:
        found, said = None, str(error)
    assert len(said) < 3000
    assert "Traceback" not in said
    assert time.process_time() - began < SECONDS
    return found


# --- YAML and words -------------------------------------------------------------------------


@given(yaml_texts)
@example("a: &a [*a]\n")
@example("seed: 2024-13-45\n")
@example("seed: !!int x\n")
@example("seed: " + "9" * 5000)
@example("? [a]\n: b\n")
@example("a: 0x_\n")
@example("<<: 1\n")
@example("=: 1\n")
@example("a: =\n")
@example("\ufeffa: 1\n")
@example("a: 0b_\n")
@example("a: +\n- b")
def test_yaml_is_what_pyyaml_reads_or_is_refused(text):
    try:
        value = parse_yaml(text)
    except Unfit:
        return
    try:
        expected = yaml.load(text, Loader=yaml.CSafeLoader)
    except ValueError:  # an impossible date, which is text here
        return
    assert repr(value) == repr(expected) or "datetime" in repr(expected)


@given(yaml_texts)
@example("data: {only: {a: [[[]]]}}\n")
@example("kernel: {name: [a]}\n")
@example("space: {1: 2}\n")
@example("task: [a]\n")
@example("output: {a: 1}\nspace: voxel\n")
@example("network: {name: unet, widths: {a: 1}}\nspace: voxel\nkernel: gaussian\n")
def test_a_configuration_is_read_or_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    told(lambda: load(path))
    told(lambda: load_run_config(path))


@given(words)
@example("seed=" + "[" * 3000)
@example("=1")
@example(".=1")
@example("a..b=1")
@example("optim=")
@example("optim.lr=.nan")
@example("method=/")
@example("method=[a]")
@example("method=\x00")
@example("data.root=\ud800")
@example("start_from=~")
@example("space={name: {}}")
def test_an_override_is_applied_or_refused(word):
    told(lambda: overridden({"optim": {"lr": 1}, "space": "voxel"}, [word]))
    told(lambda: load_run_config("wavelet_64", [word]))


# --- volumes --------------------------------------------------------------------------------

SMALL = voxels((3, 4, 5))


def edited(edits):
    raw = bytearray(content(SMALL))
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, 1)[0]
    for name, element, value in edits:
        field = header[name]
        if field.ndim:
            field[element % len(field)] = value
        elif name == "magic":
            raw[344 + element % 4] = value
        else:
            header[name] = value
    return bytes(raw)


@given(header_edits())
@example([("scl_slope", 0, 4.6e-41)])
@example([("dim", 0, 7), ("dim", 5, 0)])
@example([("dim", 1, 32767), ("dim", 2, 32767)])
@example([("vox_offset", 0, math.nan)])
@example([("pixdim", 1, math.inf)])
@example([("srow_x", 0, math.nan)])
@example([("datatype", 0, 0)])
@example([("scl_slope", 0, 3.4e38)])
def test_a_header_is_read_as_nibabel_reads_it_or_refused(tmp_path, edits):
    path = tmp_path / "v.nii"
    raw = edited(edits)
    path.write_bytes(raw)
    volume = told(lambda: read(path))
    if volume is None:
        return
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine[:3, :3])) > 0
    if {name for name, _, _ in edits} <= {"scl_slope", "scl_inter", "intent_code", "xyzt_units"}:
        theirs = nib.Nifti1Image.from_bytes(raw).get_fdata(dtype=np.float64)
        ours = np.asarray(volume.array, np.float64)
        if np.isfinite(theirs).all():
            np.testing.assert_allclose(np.sort(ours.ravel()), np.sort(theirs.ravel()), rtol=1e-5)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    data = np.arange(4 * 5 * 3).reshape(4, 5, 3).astype(np.int16)
    return series(tmp_path_factory.mktemp("dicom") / "series", data=data)


@given(dicom_edits())
@example([(0, "ImagePositionPatient", None)])
@example([(1, "PixelSpacing", "1")])
@example([(1, "Rows", 65535), (1, "Columns", 65535)])
@example([(2, "NumberOfFrames", "99999999999")])
@example([(0, "ImageOrientationPatient", "0\\0\\0\\0\\0\\0")])
@example([(0, "RescaleSlope", "1e400")])
@example([(1, "SliceThickness", "nan")])
def test_a_series_is_read_whole_or_refused(slices, tmp_path_factory, edits):
    import pydicom
    from pydicom.dataelem import DataElement

    folder = tmp_path_factory.mktemp("series")
    for path in sorted(slices.iterdir()):
        shutil.copyfile(path, folder / path.name)
    for number, name, value in edits:
        path = folder / f"{number:03d}.dcm"
        with pydicom.config.disable_value_validation():
            slice_ = pydicom.dcmread(path)
            if value is None:
                slice_.pop(name, None)
            else:
                tag, kind = pydicom.datadict.tag_for_keyword(name), type(value)
                vr = pydicom.datadict.dictionary_VR(tag)
                slice_[tag] = DataElement(tag, "UN" if vr == "DS" else vr, b"")
                raw = value if kind is int else value.encode()
                if kind is int:
                    slice_[tag] = DataElement(tag, "US", raw)
                else:
                    slice_[tag] = pydicom.dataelem.convert_raw_data_element(
                        pydicom.dataelem.RawDataElement(
                            pydicom.tag.Tag(tag), "OB", len(raw), raw, 0, False, True
                        )
                    )
                    slice_[tag].VR = "OB"
            slice_.save_as(path)
    geometry = told(lambda: geometry_of(frames_of_series(folder, None).frames, folder))
    if geometry is not None:
        assert np.isfinite(geometry.affine).all()
        assert geometry.shape[2] == 3 or geometry.remarks is not None


# --- descriptions ---------------------------------------------------------------------------

NNUNET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
DATALIST = {
    "training": [
        {"image": "a_0000.nii.gz", "label": "a.nii.gz", "id": "a", "age": 3, "fold": 0},
        {"image": ["a_0000.nii.gz"], "label": None},
    ],
    "validation": [],
    "modality": {"0": "MRI"},
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return save(tmp_path_factory.mktemp("image") / "a.nii.gz", SMALL, np.eye(4))


def surveyed(root, layout="auto"):
    found = told(lambda: survey_cases(root, layout))
    if found is not None:
        cases, _ = found
        top = (root if root.is_dir() else root.parent).resolve()
        for case in cases:
            assert printable(case.id) == case.id
            assert "/" not in case.id
            for path in case.images.values():
                assert path.resolve().is_relative_to(top)


@given(mutated(NNUNET))
@example({**NNUNET, "channel_names": ["T1"]})
@example({**NNUNET, "channel_names": 3})
@example({**NNUNET, "labels": {"a": 10**400}})
@example({**NNUNET, "labels": {"a": True}})
def test_a_dataset_json_is_read_or_refused(image, tmp_path_factory, described):
    root = tmp_path_factory.mktemp("nnunet")
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(image, root / name)
    (root / "dataset.json").write_text(json.dumps(described))
    surveyed(root)
    surveyed(root, "nnunet")


@given(mutated(DATALIST))
@example({"training": [{"image": "../a.nii.gz"}]})
@example({"training": [{"image": "a_0000.nii.gz", "id": "\ud800"}]})
@example({"training": [{"image": "a_0000.nii.gz", "age": 10**400}]})
@example({"training": {"image": "a_0000.nii.gz"}})
def test_a_datalist_is_read_or_refused(image, tmp_path_factory, described):
    root = tmp_path_factory.mktemp("list")
    for name in ("a_0000.nii.gz", "a.nii.gz"):
        shutil.copyfile(image, root / name)
    (root / "dataset.json").write_text(json.dumps(described))
    surveyed(root)
    surveyed(root / "dataset.json")


@given(table(["participant_id", "session_id", "split", "sex"]))
@example("participant_id\tage\nsub-01\t" + "9" * 400)
@example("participant_id\nsub-01\nsub-01\n")
@example("\x00\n\t")
def test_a_table_of_participants_is_read_or_refused(image, tmp_path_factory, text):
    root = tmp_path_factory.mktemp("table")
    for name in ("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"):
        shutil.copyfile(image, root / name)
    (root / "participants.tsv").write_text(text, encoding="utf-8", errors="surrogatepass")
    surveyed(root)


# --- sidecars and what a run keeps -----------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(run, tmp_path_factory):
    from volumediff.inference.localize_files import localize
    from volumediff.inference.options import LocalizeOptions
    from volumediff.runs.trained import load_trained

    home = tmp_path_factory.mktemp("outputs")
    data, out = write_cases(home / "data", count=1), home / "out"
    words = ("normalize=raw", "threshold=otsu", "post=[]")
    trained = load_trained(run, device="cpu")
    localize(trained, data, out, LocalizeOptions("intensity", words), report=lambda line: None)
    return out


@given(st.data())
def test_a_sidecar_is_read_or_refused(outputs, tmp_path_factory, data):
    (path,) = outputs.glob("*_map.json")
    place = tmp_path_factory.mktemp("facts") / path.name
    found = data.draw(mutated(json.loads(path.read_text())))
    place.write_text(json.dumps(found))
    facts = told(lambda: read_facts(place))
    assert facts is None or all("/" not in step["file"] for step in facts.get("trace", ()))
    told(lambda: read_findings(place))


@pytest.mark.parametrize("kind", [k for k in ARTEFACTS if k not in ("checkpoint", "config")])
@given(data=st.data())
def test_what_a_run_keeps_is_read_or_refused(kind, tmp_path_factory, data):
    write, read_it = ARTEFACTS[kind]
    place = tmp_path_factory.mktemp("kept")
    write(place, OLD)
    (path,) = (p for p in place.rglob("*") if p.is_file() and p.name not in (".lock",))
    if path.suffix == ".safetensors":  # numbers and header alike, under a fitting digest or not
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(raw)
    else:
        body = json.loads(path.read_text())
        body.pop("sha256")
        found = data.draw(mutated(body) | json_values)
        line = path.suffix == ".jsonl"
        if isinstance(found, dict) and found:
            path.write_bytes(seal.seal_json(found, line=line) + (b"\n" if line else b""))
        else:
            path.write_text(json.dumps(found) + "\n")
    with contextlib.suppress(Foreign):
        told(lambda: guarded(read_it, place))


class Foreign(Exception):
    """Raised by the lambda of the test, which looks for its one value, and not by the package."""


def guarded(read_it, place):
    try:
        return read_it(place)
    except (DataError, UsageError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if frames[-1].filename.endswith("artefacts.py"):
            raise Foreign from error
        raise
