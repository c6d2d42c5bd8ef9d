"""Lesion-free slabs: no voxel of a crop is near a lesion, by brute force; patients stay apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_app import program, save

from volumediff.data.augmentation import Augmentation
from volumediff.data.lesion_free import AXES, LesionFree
from volumediff.data.seen import Seen
from volumediff.errors import UsageError
from volumediff.recipes.healthy import Healthy
from volumediff.samples.dataset import Crop, Keyed
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.cache import Cache
from volumediff.training.setup import _with_windows

__all__ = ["program"]

SHAPE = (10, 12, 16)
SPACING = (2.0, 1.0, 3.0)


def volume(folder, name, lesion, **attributes):
    """A volume in [-1, 1] whose voxels say where they are, by 1/4000, and 0.9 in the lesion."""
    cache = Cache(folder / "cache", lambda line: None)
    x = np.zeros((1, *SHAPE), np.float32)
    x[0] = np.where(lesion, 0.9, np.arange(x[0].size).reshape(SHAPE) / 4000)
    arrays = {"x": x, "foreground": np.ones_like(x, bool), "label": lesion[None].astype(np.uint8)}
    info = {"spacing_mm": list(SPACING)}
    return TrainingVolume(name, attributes, cache.entry(name, {}, lambda: (arrays, info)))


def ball():
    lesion = np.zeros(SHAPE, bool)
    lesion[3:5, 6:8, 2:4] = True
    return lesion


@pytest.mark.parametrize("planes", list(AXES))
@pytest.mark.parametrize("margin_mm", [0.0, 3.0, 6.5])
def test_free_planes_are_those_without_a_lesion_near(planes, margin_mm):
    lesion = np.random.default_rng(1).random(SHAPE) < 0.0015
    rule = LesionFree(planes, margin_mm)
    got = rule.free(torch.from_numpy(lesion[None].astype(np.uint8)), spacing_mm=SPACING)
    where = np.argwhere(lesion)[:, rule.axis]
    step = SPACING[rule.axis]
    expected = [not any(abs(p - q) * step <= margin_mm for q in where) for p in range(len(got))]
    assert got.tolist() == expected
    for size, stride in ((2, 1), (4, 2), (4, 4)):
        starts = [
            s
            for s in range(max(-(-len(expected) // stride) - size // stride, 0) + 1)
            if all(expected[s * stride : s * stride + size])
        ]
        assert rule.starts(got, size=size, stride=stride) == starts


@pytest.mark.parametrize("augment", [None, Augmentation(flip=(0, 1, 2))])
def test_no_crop_touches_a_lesion_or_what_is_near(tmp_path, augment):
    rule = LesionFree("axial", 3.0)
    dataset = Keyed(
        volumes=[volume(tmp_path, "sick", ball())],
        recipe=Healthy(),
        seed=0,
        statistics=Statistics({}),
        crop=Crop((10, 12, 4), (1, 1, 1)),
        located=True,
        augment=augment,
        lesion_free=rule,
    )
    near = np.zeros(SHAPE, bool)
    near[:, :, 1:5] = True  # one plane of 3 mm on each side
    forbidden = set(np.flatnonzero(near).tolist())
    samples = [dataset[(epoch, 0)] for epoch in range(40)]
    for sample in samples:
        assert sample.x.max() < 0.8
        assert not forbidden & set((sample.x.numpy().ravel() * 4000).round().astype(int).tolist())
    assert len({float(s.x.min()) for s in samples}) > 4  # crops from everywhere else
    anywhere = replace(dataset, lesion_free=None)
    assert max(float(anywhere[(epoch, 0)].x.max()) for epoch in range(40)) > 0.8
    if augment is None:  # coordinates are those of the crop
        at = samples[0].coordinates[2, 0, 0]
        first = round(float(samples[0].x.min()) * 4000)
        whole = Crop(SHAPE, (1, 1, 1)).coordinates(SHAPE, 0)[2, 0, 0]
        torch.testing.assert_close(at, whole[first : first + 4])


def test_volumes_without_a_slab_are_left_out_and_said(tmp_path):
    everywhere = np.zeros(SHAPE, bool)
    everywhere[0, 0, ::2] = True
    volumes = [
        volume(tmp_path, "healthy", np.zeros(SHAPE, bool), group="healthy"),
        volume(tmp_path, "unmarked", np.zeros(SHAPE, bool), group="sick"),
        volume(tmp_path, "slab", ball()),
        volume(tmp_path, "none", everywhere),
    ]
    rule, lines = LesionFree("axial", 0.0), []
    crop = Crop((10, 12, 4), (1, 1, 1))
    kept = _with_windows(crop, volumes, rule, lines.append)
    assert [v.id for v in kept] == ["healthy", "slab"]
    assert "2 volumes have no lesion-free slab of 4 axial planes" in lines[0]
    with pytest.raises(UsageError, match="none of 1 volumes has 4 axial planes"):
        _with_windows(crop, volumes[3:], rule, lines.append)
    with pytest.raises(UsageError, match="expected training crops that fit between lesions"):
        _with_windows(None, volumes, rule, lines.append)
    with pytest.raises(ValueError, match="expected planes out of sagittal"):
        LesionFree("oblique")


def test_a_patient_whose_slabs_train_is_refused_in_evaluations(program, tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    lesion = np.zeros((16, 16, 16), np.uint8)
    lesion[4:7, 4:7, 2:4] = 1
    for patient in range(6):
        for visit in (1, 2):
            name = f"p{patient}_visit{visit}"
            x = rng.uniform(50, 100, lesion.shape).astype(np.float32)
            save(tmp_path / "data" / f"{name}_T1w.nii.gz", x, affine)
            save(tmp_path / "data" / f"{name}_mask.nii.gz", lesion, affine)
    words = [f"data.root={tmp_path / 'data'}", f"output={tmp_path / 'run'}", "crop=[16,16,4]"]
    words += ["data.lesion_free={planes: axial, margin_mm: 4.0}", "optim.steps=2"]
    words += ["data.preprocessing.shape=[16,16,16]", "data.preprocessing.spacing_mm=4"]
    words += ["network={name: unet, widths: [8, 8], blocks: 1, norm: voxel, coordinates: true}"]
    words += ["data.split={validation: 0.2, calibration: 0.0, test: 0.2}", "validation.best=null"]
    words += ["memory.dtype=float32", "data.workers=0", "validation.previews=0", "optim.warmup=0"]
    code, _, said = program("train", "patch_64", *words)
    assert code == 0, said
    split = json.loads((tmp_path / "run" / "splits.json").read_text())
    split = split.get("content", split)
    parts = {part: {i.split("_")[0] for i in split[part]} for part in ("train", "test")}
    assert len(split["train"]) == 2 * len(parts["train"]) > 0
    assert not parts["train"] & parts["test"]
    seen = Seen.load(tmp_path / "run" / "seen.json")
    for part, patients in parts.items():
        for patient in patients:  # what evaluations refuse by: any other volume of the patient
            match = seen.find(digests=[], patients={patient}, names={f"{patient}_visit9"})
            assert (match is not None and match.part == "train") == (part == "train")
