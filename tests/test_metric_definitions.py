"""One definition of every metric, and how its numbers are written and marked in tables."""

import itertools
import re

import numpy as np
import pytest

from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.evaluation.figures import MEASURES
from volumediff.evaluation.generation_metrics import generation_metric
from volumediff.evaluation.metric_definitions import METRICS
from volumediff.evaluation.table_line import Line, plain
from volumediff.metrics.bootstrap import Interval
from volumediff.metrics.definition import Better, MetricDefinition, Notation
from volumediff.metrics.label_agreement import AGREEMENT
from volumediff.metrics.readers import READERS

EVERY = [(kind, name) for kind, metrics in METRICS.items() for name in metrics]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids="-".join)
def test_definitions_are_full_sentences(kind, name):
    metric = METRICS[kind][name]
    assert re.fullmatch(r"[A-Z0-9].{20,}\.", metric.definition), metric.definition
    assert metric.range
    assert not metric.unit or metric.notation is Notation.AMOUNT
    assert metric.explanation.startswith(metric.definition)
    assert metric.better.value in metric.explanation


def test_headings_of_a_kind_differ():
    for kind, metrics in METRICS.items():
        titles = [m.title.strip() for m in metrics.values()]
        assert len(set(titles)) == len(titles), kind


def test_what_is_measured_is_defined():
    names = set(METRICS["localization"])
    assert names - {"positive", "positive_fifo"} == set(MEASURES)
    assert set(AGREEMENT) | set(READERS) <= set(METRICS["segmentation"])
    assert all(set(COST_METRICS) <= set(METRICS[k]) for k in METRICS if k != "generation")
    assert generation_metric("label_3_ml").title == "volume of label 3 in ml"


def test_numbers_are_written_as_what_they_are():
    def written(notation, *values):
        return [notation.text(v) for v in values]

    assert written(Notation.SHARE, 0.30004, 1.0, -0.0482) == ["0.300", "1.000", "-0.048"]
    counts = written(Notation.COUNT, 46.458, 6.0, 9.96, 3.25, 0.125, 0.0)
    assert counts == ["46", "6", "10", "3.2", "0.12", "0"]
    amounts = written(Notation.AMOUNT, 262.44, 1234.5, 0.01234, 2.0)
    assert amounts == ["262", "1234", "0.0123", "2"]
    assert Notation.COUNT.text(2.0, "+") == "+2"
    for notation in Notation:
        assert written(notation, float("nan"), float("inf")) == ["", ""]


def pairs_of(draws):
    """All paired differences, as an evaluation makes them."""

    def between(a, b):
        low, high = np.percentile(a - b, (2.5, 97.5))
        return Interval(float((a - b).mean()), float(low), float(high), 0.95, len(a))

    return [[None if a is b else between(a, b) for b in draws] for a in draws]


@pytest.mark.parametrize("better", [Better.HIGHER, Better.LOWER])
def test_the_best_is_better_than_every_other_beyond_doubt(better):
    """Brute force over orders: where one method wins all pairs it is marked, else none."""
    noise = np.random.default_rng(0).normal(size=400)
    sign = 1 if better is Better.HIGHER else -1
    metric = MetricDefinition("m", "A metric.", "any", better)
    clear = [sign * (level + 0.01 * noise * (i + 1)) for i, level in enumerate((0.9, 0.5, 0.3))]
    for order in itertools.permutations(range(3)):
        draws = [clear[i] for i in order]
        cells = [plain(float(d.mean())) for d in draws]
        assert Line("m", metric, cells, pairs=pairs_of(draws)).best == order.index(0)
    close = [clear[0], clear[0] + sign * 0.02 + noise, clear[2]]  # larger on average, uncertain
    cells = [plain(float(d.mean())) for d in close]
    assert Line("m", metric, cells, pairs=pairs_of(close)).best is None


def test_ties_counts_costs_and_unpaired_numbers_have_no_best():
    draws = [np.full(9, 0.3004), np.full(9, 0.3)]  # certain, and too small to be written
    cells = [plain(float(d[0])) for d in draws]
    metric = MetricDefinition("m", "A metric.", "any")
    assert Line("m", metric, cells, pairs=pairs_of(draws)).best is None
    draws = [np.full(9, 9.0), np.full(9, 3.0)]
    cells = [plain(float(d[0])) for d in draws]
    assert Line("m", metric, cells, pairs=pairs_of(draws)).best == 0
    assert Line("m", metric, cells).best is None  # nothing is known of the difference
    assert Line("m", metric, [cells[0], plain(float("nan"))], pairs=pairs_of(draws)).best is None
    for one in (METRICS["localization"]["false_positives"], *COST_METRICS.values()):
        assert Line("m", one, cells, pairs=pairs_of(draws)).best is None
