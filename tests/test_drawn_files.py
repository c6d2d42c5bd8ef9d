"""Healthy volumes written as files: what is drawn in training, once and as a data set."""

from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from accelerate import Accelerator
from drawn_heads import NUMBERS, SPACING, STRUCTURES, head

import volumediff
from volumediff import randomness
from volumediff.api.training import run_config
from volumediff.config import build
from volumediff.data.grid import Grid
from volumediff.data.splits import split_cases
from volumediff.data.survey import find_cases
from volumediff.errors import UsageError
from volumediff.samples import drawn_files, sources
from volumediff.storage.cache import Cache

SECTIONS = {
    "space": "voxel",
    "kernel": "gaussian",
    "network": {"name": "unet", "widths": [4]},
    "recipe": "healthy",
    "data": {
        "preprocessing": {"spacing_mm": 2.0, "shape": [44, 44, 44]},
        "drawn": {"label_maps": "", "contrast": "tissue", "drawing": {"rim": 0.0}},
    },
}
PLACE = Grid((44, 44, 44), np.diag([*SPACING, 1.0]))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Draws from two label maps of one head, which needs no alignment."""
    arrays = {"structures": head()[1].numpy(), "numbers": np.array(NUMBERS)}
    monkeypatch.setattr(drawn_files, "mni152", lambda: None)
    monkeypatch.setattr(drawn_files, "prepare_label_map", lambda *_: (arrays, SPACING, PLACE))
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (maps / name).write_text("")
    drawn = {**SECTIONS["data"]["drawn"], "label_maps": str(maps)}
    return {**SECTIONS, "data": {**SECTIONS["data"], "drawn": drawn}}


def test_the_files_are_what_the_configuration_draws(config, tmp_path):
    table = volumediff.draw(config, tmp_path / "out", each=2, seed=5)
    cases = find_cases(table.parent)
    assert [c.id for c in cases] == ["a-000", "a-001", "b-000", "b-001"]
    contrast = build("contrast", "tissue", where="contrast")
    drawing = run_config(config).data.drawn.drawing
    for case in cases:
        name, number = case.id.split("-")
        image = nib.load(case.images["drawn"])
        np.testing.assert_allclose(image.affine, PLACE.affine)
        expected, inside = drawing(
            head()[1],
            STRUCTURES,
            contrast=contrast,
            spacing_mm=SPACING,
            key=randomness.key(5, "draw", name, int(number)),
        )
        got = image.get_fdata()
        np.testing.assert_allclose(got, expected[0].numpy(), atol=1e-6)
        assert not got[~inside[0].numpy()].any()
    whole = [nib.load(c.images["drawn"]).get_fdata() for c in cases]
    assert all(np.abs(a - b).max() > 0.05 for a, b in pairwise(whole))
    again = volumediff.draw(config, tmp_path / "again", each=1, seed=5)
    first = nib.load(find_cases(again.parent)[0].images["drawn"]).get_fdata()
    np.testing.assert_array_equal(first, whole[0])


def test_volumes_of_one_label_map_are_never_in_two_parts(config, tmp_path):
    table = volumediff.draw(config, tmp_path / "out", each=3)
    cases = find_cases(table.parent)
    split = split_cases(cases, (0.5, 0.0, 0.5, 0.0), seed=1)
    assert {i[0] for i in split.train} & {i[0] for i in split.calibration} == set()
    assert len(split.train) == len(split.calibration) == 3


def test_nothing_is_drawn_over_files_or_without_label_maps(config, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("mine")
    with pytest.raises(UsageError, match="expected a new or an empty folder, it has files"):
        volumediff.draw(config, tmp_path / "full", each=1)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["x.txt"]
    with pytest.raises(UsageError, match=r"data\.drawn: expected label maps and a contrast"):
        volumediff.draw(config, tmp_path / "out", each=1, overrides=["data.drawn=null"])
    with pytest.raises(UsageError, match=r"needs data\.preprocessing\.shape"):
        volumediff.draw(
            config, tmp_path / "out", each=1, overrides=["data.preprocessing.shape=null"]
        )
    with pytest.raises(UsageError, match="each: expected at least one volume per label map"):
        volumediff.draw(config, tmp_path / "out", each=0)
    assert not (tmp_path / "out").exists()


def test_a_share_of_nothing_aligns_no_label_map(config, tmp_path):
    """The section may stand for `draw` alone."""
    nothing = run_config(config, ["data.drawn.share=0"])
    cache = Cache(tmp_path / "cache", print)
    assert sources.drawn_volumes(nothing, Accelerator(cpu=True), cache) is None
