"""The figures in the documentation are those that the script draws."""

from xml.etree import ElementTree

import pytest

from volumediff import config
from volumediff.documentation.figures import FIGURES, IMAGES


@pytest.mark.parametrize("name", FIGURES)
def test_the_figure_on_the_disk_is_the_drawn_one(name):
    assert (IMAGES / name).read_text(encoding="utf-8") == FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_everything_lies_inside_of_the_frame(name):
    root = ElementTree.fromstring(FIGURES[name]())
    width, height = (float(root.get(side)) for side in ("width", "height"))
    corners = [
        tuple(map(float, pair.split(",")))
        for polygon in root.iter("{http://www.w3.org/2000/svg}polygon")
        for pair in polygon.get("points").split()
    ]
    assert corners
    assert all(0 < x < width and 0 < y < height for x, y in corners)


def test_every_shipped_pipeline_has_a_figure():
    shipped = {name.rpartition("_")[0] for name in config.shipped("pipelines")}
    assert {f"pipeline_{name}.svg" for name in shipped} | {"pipelines.svg"} == set(FIGURES)
