"""What the calibrations of a `Run` share: the method in question, and the volumes of a site."""

from collections.abc import Mapping, Sequence
from typing import Any

from volumediff.anomaly.methods._base import Method
from volumediff.api.arguments import Place, Report
from volumediff.api.overrides import words_of
from volumediff.calibration.of_run import calibration_for, load_method
from volumediff.calibration.site import SiteCalibration, find_site, site_calibration
from volumediff.data.survey import Spec
from volumediff.runs.trained import Trained

__all__ = ["calibrate_site", "method_for"]


def method_for(
    trained: Trained,
    method: Place,
    overrides: Sequence[str],
    components: Mapping[str, Any],
    classifier: Place | None,
    report: Report,
) -> Method:
    """The method that the arguments of `Run.calibrate` name."""
    trained.localizes()
    words = [*overrides, *words_of(components)]
    return load_method(trained, str(method), words, runs={"classifier": classifier}, report=report)


def calibrate_site(
    trained: Trained,
    method: Method,
    name: str,
    site: Place,
    *,
    channels: Sequence[str] | None,
    layout: Spec,
    seed: int,
    volumes: int | None,
    report: Report,
) -> SiteCalibration:
    """See `Run.calibrate_site`."""
    place = find_site(trained, site, channels=channels, layout=layout)
    own = calibration_for(trained, method, name, seed=seed, report=report)
    found, drift = site_calibration(
        trained,
        method,
        name,
        place,
        own=own,
        seed=seed,
        limit=volumes,
        again=True,
        report=report,
    )
    return SiteCalibration(place.name, found, drift, method.threshold(found))
