"""False alarms in healthy volumes: those evaluated count first, then those of the calibration."""

from types import SimpleNamespace

from volumediff.evaluation.healthy import HealthyRates, healthy_rates

KNOWN = {"volumes": 5, "voxels": 0.001, "findings": 0.4, "affected": 0.4}


def case(*, abnormal, findings, marked):
    found = None if findings is None else SimpleNamespace(candidates=findings)
    return SimpleNamespace(abnormal=abnormal, lesions=found, marked=marked)


def test_evaluated_healthy_volumes_come_first():
    cases = [
        case(abnormal=False, findings=2, marked=0.01),
        case(abnormal=False, findings=0, marked=0.0),
        case(abnormal=True, findings=9, marked=0.5),
    ]
    got = healthy_rates.__wrapped__(cases, {"healthy_rates": KNOWN})
    assert got == HealthyRates(2, True, 0.005, 1.0, 0.5)
    assert got.sentence == (
        "1 findings per healthy volume, 50% of them with any, 0.50% of their voxels marked (2 "
        "volumes, evaluated)"
    )


def test_else_those_of_the_calibration():
    sick = [case(abnormal=True, findings=9, marked=0.5)]
    got = healthy_rates.__wrapped__(sick, {"healthy_rates": KNOWN})
    assert got == HealthyRates(5, False, 0.001, 0.4, 0.4)
    assert "calibration, each left out in turn" in got.sentence
    assert healthy_rates.__wrapped__(sick, {}) is None
    unmasked = [case(abnormal=False, findings=None, marked=float("nan"))]
    assert healthy_rates.__wrapped__(unmasked, {}) is None
