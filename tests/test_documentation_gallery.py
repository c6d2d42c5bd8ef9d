"""The gallery shows every method that ships, and its pictures are small."""

import re

import pytest

from volumediff import config
from volumediff.documentation.pages import PAGES

PAGE = (PAGES / "examples" / "gallery.md").read_text(encoding="utf-8")
PICTURES = PAGES / "images" / "gallery"
# map, method, AP, calls
ROWS = re.findall(
    r"^\| !\[Map of (\w+)\]\((.+?)\) \| \[(\w+)\].*\| ([\d.]+) \| (\d+) \|", PAGE, re.M
)


@pytest.mark.parametrize("kind", ["anomaly", "segmentation"])
def test_every_method_is_there_once(kind):
    reference = {"anomaly": "localization", "segmentation": "segmentation"}[kind]
    linked = re.findall(rf"\[(\w+)\]\(\.\./reference/{reference}-methods\.md#\1\)", PAGE)
    assert sorted(linked) == config.shipped(kind)


def test_every_row_has_the_picture_of_its_method_and_figures_that_can_be():
    rows = re.findall(
        r"^\| !\[Map of (\w+)\]\((.+?)\) \| \[(\w+)\].*\| (\S+) \| (\d+) \|", PAGE, re.M
    )
    assert len(rows) > 10
    for name, picture, linked, ap, _ in rows:
        assert name == linked
        assert picture == f"../images/gallery/{name}.webp"
        assert 0 < float(ap) <= 1
    shown = {f"{name}.webp" for name, *_ in ROWS} | {"case.webp"}
    assert shown == {path.name for path in PICTURES.iterdir()}


def test_a_constant_map_has_the_average_precision_of_chance():
    aps = {name: float(ap) for name, _, _, ap, _ in ROWS}
    assert 0 < aps["prevalence"] < 0.05  # the share of the lesion in the brain
    assert aps["prevalence"] < aps["scan"]


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_500_000
