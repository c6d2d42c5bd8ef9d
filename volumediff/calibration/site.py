"""Calibration of a method on another site: thresholds of its own, and how far it has drifted.

RUN/calibration/<method>/site-<hash of the volumes>/<weights>-<fingerprint>.safetensors holds
thresholds and scores of k healthy volumes of the site; the normalization stays that of the run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Method
from volumediff.calibration.collect_maps import recalibrate
from volumediff.calibration.healthy import outside_example
from volumediff.calibration.of_run import calibration_path, counted
from volumediff.data.cases import Case
from volumediff.data.files import digests
from volumediff.data.survey import AUTO, Spec
from volumediff.errors import DataError, UsageError
from volumediff.metrics.detection import rates
from volumediff.metrics.drift import critical, ks_of_histograms, ks_of_samples
from volumediff.runs.inputs import find_inputs
from volumediff.runs.trained import Trained
from volumediff.storage.digests import sha256
from volumediff.storage.locks import exclusive

__all__ = [
    "MAPS_BOUND",
    "Drift",
    "Site",
    "SiteCalibration",
    "drift_between",
    "find_site",
    "site_calibration",
]

# The statistic of the maps bounds the change of the false alarm rate at any threshold: beyond this
# a rate of 5 % may have become 15 %. Voxels of one volume depend on each other: there is no test.
MAPS_BOUND = 0.1


@dataclass(frozen=True, eq=False)
class Site:
    """Healthy volumes of one site.

    Arguments:
        name: made of the content of the files; names and places of them do not count
        cases: the volumes
        digests: SHA-256 of every file
    """

    name: str
    cases: tuple[Case, ...]
    digests: frozenset[str]


@dataclass(frozen=True)
class Drift:
    """How far healthy volumes of a site are from those that the run was calibrated on.

    Arguments:
        scores: Kolmogorov-Smirnov statistic of the volume scores
        scores_bound: what it exceeds by chance in one of twenty sites without drift
        maps: the statistic of the finished maps, pooled over voxels
        false_alarms: share of the site's healthy voxels above the run's threshold
        rate: the same share of the run's own
    """

    scores: float
    scores_bound: float
    maps: float
    false_alarms: float | None
    rate: float | None

    def lines(self) -> list[str]:
        """What there is to say, the warning last."""
        said = [
            f"healthy scores drift by KS {self.scores:.2f} (bound {self.scores_bound:.2f}), "
            f"maps by KS {self.maps:.2f} (bound {MAPS_BOUND:.2f})"
        ]
        if self.false_alarms is not None:
            said.append(
                f"the run's own threshold marks {self.false_alarms:.1%} of the site's healthy "
                f"voxels, {self.rate:.1%} of the run's"
            )
        if self.scores > self.scores_bound or self.maps > MAPS_BOUND:
            said.append(
                "warning: the site is not like the run's healthy volumes; maps and scores are "
                "comparable within the site only"
            )
        return said


@dataclass(frozen=True, eq=False)
class SiteCalibration:
    """What the healthy volumes of a site say of a method.

    Arguments:
        site: name of the site, made of the content of its files
        calibration: with thresholds of the site
        drift: how far its maps and scores are from the run's
        threshold: of the method's own rule; None where it takes none of a calibration
    """

    site: str
    calibration: Calibration
    drift: Drift
    threshold: float | None


def find_site(
    trained: Trained,
    source: Path | str,
    *,
    channels: Sequence[str] | None = None,
    layout: Spec = AUTO,
) -> Site:
    """The healthy volumes of a site.

    Arguments:
        source: folder or manifest
        channels: names of the images; None takes those of the run
        layout: of the folder

    Raises:
        UsageError: nothing there, or no usable case
        DataError: one of the cases cannot be used
    """
    names = trained.image_names(channels)
    patients = trained.config.data.patients
    cases, bad = find_inputs(source, channels=names, layout=layout, patients=patients)
    if bad:
        name, reason = next(iter(bad.items()))
        raise DataError(f"site {source}: case {name}: {reason}; correct or remove it.")
    files = frozenset(d for case in cases for d in digests(case).values())
    name = sha256(*sorted(files))[:12]
    return Site(f"site-{name}", tuple(cases), files)


def site_calibration(
    trained: Trained,
    method: Method,
    name: str,
    site: Site,
    *,
    own: Calibration | None,
    seed: int = 0,
    limit: int | None = None,
    again: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Calibration, Drift]:
    """Thresholds of a method on a site, and the drift of the site's healthy volumes.

    Arguments:
        own: calibration on the run's own healthy volumes
        limit: most volumes to use
        again: whether what is stored for the site is fitted anew

    Raises:
        UsageError: the method needs no calibration, or more volumes
    """
    if own is None:
        raise UsageError(
            f"site: the method '{name}' has nothing that is calibrated; leave the site out, or "
            "use threshold=healthy_fpr."
        )
    path = calibration_path(trained, method, name)
    path = path.parent / site.name / path.name
    try:
        with nullcontext() if path.is_file() else exclusive(path):
            if not again and path.is_file():
                found = Calibration.load(path)
            else:
                cases = site.cases[:limit]
                report(f"calibrating {name} on {len(cases)} healthy volumes of {site.name}")
                outside = _examples(trained, cases, report)
                examples = counted(outside, len(cases), report)
                with trained.config.memory.arithmetic():
                    found = recalibrate(own, method, trained.model, examples, seed=seed)
                found.save(path)
        method.threshold(found)
    except ValueError as error:
        raise UsageError(f"site: method '{name}': {error}") from None
    return found, drift_between(method, own, found)


def _examples(
    trained: Trained, cases: Sequence[Case], report: Callable[[str], None]
) -> Iterator[Example]:
    for case in cases:
        example, lines = outside_example(trained, case)
        for line in lines:
            report(line)
        yield example


def drift_between(method: Method, own: Calibration, other: Calibration) -> Drift:
    """The drift from one set of healthy volumes to another."""
    threshold = method.threshold(own) if method.threshold.calibrated else None
    shares = [None if threshold is None else rates(c.healthy, threshold).fpr for c in (own, other)]
    return Drift(
        scores=ks_of_samples(own.scores, other.scores),
        scores_bound=critical(own.volumes, other.volumes),
        maps=ks_of_histograms(own.healthy, other.healthy),
        false_alarms=shares[1],
        rate=shares[0],
    )
