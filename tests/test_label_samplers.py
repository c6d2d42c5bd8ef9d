"""The table of samplers on label maps: exact networks, so that all losses are the sampler's."""

import runpy
from pathlib import Path

import pytest

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "label_samplers.py"))


@pytest.mark.parametrize(
    ("name", "steps", "least", "most"),
    [
        ("ancestral (DDPM)", 10, 0.3, 0.6),
        ("ddim", 10, 0.7, 0.9),
        ("dpmpp", 20, 0.9, 1.1),
        ("bits, ancestral, likeliest", 5, 0.0, 0.1),
        ("bits, ancestral, mean", 5, 0.9, 1.1),
        ("bits, discrete_ddim, mean", 2, 0.9, 1.1),
    ],
)
def test_rare_voxels_by_sampler_and_steps(name, steps, least, most):
    assert least <= TABLE["of_voxels"](name, steps, 12).rare <= most


def test_shapes_stay_whole_with_enough_steps():
    few, many = (TABLE["of_shapes"]("bits, discrete_ddim, mean", n, 8, 40).dice for n in (1, 10))
    assert many > 0.999
    assert few < many


def test_a_row_for_every_sampler():
    rows = list(TABLE["rows"](8, 4, (2,)))
    assert len(rows) == 2 + len(TABLE["SAMPLERS"])
    assert all(row.count("|") == 3 for row in rows)
