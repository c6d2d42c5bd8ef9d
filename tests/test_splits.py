"""Patients are never in two parts, and a split depends on seed and patients alone."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from volumediff.data.cases import Case
from volumediff.data.splits import PARTS, Split, split_cases
from volumediff.errors import DataError
from volumediff.storage import records


def cases(patients=40, visits=3, split=None):
    return [
        Case(f"p{i}_v{v}", f"p{i}", {"T1w": Path("x")}, None, {"split": split(i)} if split else {})
        for i in range(patients)
        for v in range(1 + i % visits)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_patients_are_in_one_part_and_every_case_is_used(seed):
    everything = cases()
    split = split_cases(everything, (0.6, 0.2, 0.1, 0.1), seed=seed)
    where = {c: part for part in PARTS for c in getattr(split, part)}
    assert len(where) == len(everything)
    by_patient = {}
    for case in everything:
        by_patient.setdefault(case.patient, set()).add(where[case.id])
    assert all(len(parts) == 1 for parts in by_patient.values())
    assert Counter(p for (p,) in by_patient.values()) == {
        "train": 24,
        "validation": 8,
        "calibration": 4,
        "test": 4,
    }


def test_split_depends_on_the_seed_but_not_on_the_order():
    everything = cases()
    shuffled = random.Random(0).sample(everything, len(everything))
    assert split_cases(everything, seed=3) == split_cases(shuffled, seed=3)
    assert split_cases(everything, seed=3) != split_cases(everything, seed=4)
    # pinned: a release that moves patients between parts would leak
    assert split_cases(cases(6, 1), (0.5, 0.5, 0.0, 0.0)).train == PINNED


PINNED = ("p1_v0", "p3_v0", "p5_v0")


def test_small_sets_fill_every_part_that_is_asked_for():
    split = split_cases(cases(4, 1))
    assert [len(getattr(split, part)) for part in PARTS] == [1, 1, 1, 1]
    split = split_cases(cases(5, 1), (1.0, 0.0, 0.0, 0.0))
    assert len(split.train) == 5


def test_file_round_trip(tmp_path):
    split = split_cases(cases())
    split.save(tmp_path / "splits.json")
    assert Split.load(tmp_path / "splits.json") == split
    content = json.loads((tmp_path / "splits.json").read_text())
    # the same patient's other visit moved by hand
    moved = next(c for c in content["train"] if c.endswith("_v1"))
    content["train"].remove(moved)
    content["test"].append(moved)
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"splits\.json: damaged or edited: does not"):
        Split.load(tmp_path / "splits.json")
    del content["sha256"]
    records.write(tmp_path / "splits.json", content)
    with pytest.raises(DataError, match="patient p"):
        Split.load(tmp_path / "splits.json")
    for text in ("{", "[]", '{"train": []}'):
        (tmp_path / "splits.json").write_text(text)
        with pytest.raises(DataError, match=r"splits\.json: damaged"):
            Split.load(tmp_path / "splits.json")


def test_a_case_in_two_parts_is_refused():
    with pytest.raises(DataError, match="case a is in train and in test"):
        Split(train=("a",), test=("a",))


def test_attribute_is_honoured():
    named = cases(20, 2, lambda i: "calibration" if i % 5 == 0 else "Training")
    split = split_cases(named, (0.75, 0.25, 0.0, 0.0), by_attribute=True)
    assert {c.split("_")[0] for c in split.calibration} == {"p0", "p5", "p10", "p15"}
    assert len({c.split("_")[0] for c in split.validation}) == 4  # a quarter of 16
    assert not split.test
    complete = cases(4, 1, lambda i: ("train", "val", "calibration", "test")[i])
    split = split_cases(complete, by_attribute=True)
    assert (split.train, split.validation) == (("p0_v0",), ("p1_v0",))
    with pytest.raises(DataError, match="case p0_v0 has the attribute split='nothing'"):
        split_cases(cases(3), by_attribute=True)
    torn = [
        Case("a", "p", {}, None, {"split": "train"}),
        Case("b", "p", {}, None, {"split": "test"}),
    ]
    with pytest.raises(DataError, match="patient p"):
        split_cases(torn, by_attribute=True)


def test_impossible_requests():
    with pytest.raises(ValueError, match="sum 1"):
        split_cases(cases(), (0.5, 0.2, 0.1, 0.1))
    with pytest.raises(DataError, match="got none"):
        split_cases([])


def test_calibration_volumes_are_reserved_where_there_are_enough():
    """max(10 %, 5) patients, as long as that is at most a quarter of them."""
    fractions = (0.8, 0.1, 0.1, 0.0)
    for n, expected in ((8, 1), (19, 2), (20, 5), (24, 5), (50, 5), (60, 6), (100, 10)):
        before = split_cases(cases(n, 1), fractions)
        after = split_cases(cases(n, 1), fractions, least_calibration=5)
        assert len(after.calibration) == max(expected, len(before.calibration))
        assert len(after.validation) == len(before.validation)
        assert sum(map(len, (after.train, after.validation, after.calibration))) == n
        enough = len(after.calibration) >= 5
        assert ("thresholds of localization take 5" in after.note(5)) is not enough
    none = split_cases(cases(40, 1), (0.9, 0.1, 0.0, 0.0), least_calibration=5)
    assert none.calibration == ()


def test_the_default_split_reserves_what_the_default_method_needs():
    from volumediff.anomaly.method_files import read_method
    from volumediff.calibration.collect_maps import least_volumes
    from volumediff.inference.options import LocalizeOptions
    from volumediff.settings.sections import SplitRule

    method = read_method(LocalizeOptions.method)
    assert SplitRule().least_calibration >= least_volumes(method) > 1
