"""Localization with a trained run, file by file.

    file ─ read ─ preprocess ─▶ x ─ method ─▶ map, mask, … ─ to the file's grid ─▶ NIfTI, JSON

The findings are measured on what was written, so that they can be measured again.

What is drawn for a volume depends on the seed and on the bytes of its file, not on its name, its
place in the folder, or what else is in there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

import volumediff
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.rows import Row
from volumediff.anomaly.threshold import HealthyFPR, Validation
from volumediff.data.cases import Case
from volumediff.data.preprocessing import Prepared
from volumediff.inference.batch import Result, Summary, process
from volumediff.inference.calibrate import calibration_for, load_method
from volumediff.inference.classifier import load_classifier
from volumediff.inference.cost import counted
from volumediff.inference.export import write_localization
from volumediff.inference.findings.work import write_findings
from volumediff.inference.inputs import find_inputs, prepared_case
from volumediff.inference.leakage import keep, seen_with
from volumediff.inference.regions import (
    check_region,
    find_regions,
    missing_reasons,
    region_on,
)
from volumediff.inference.saliency import read_saliency, saliency_maps
from volumediff.inference.site import Site, find_site, site_calibration
from volumediff.inference.trained import Trained
from volumediff.memory.shortage import explained
from volumediff.randomness import key
from volumediff.training.folder import sha256

__all__ = ["localize", "provenance", "versions"]

PACKAGES = ("volumediff", "torch", "numpy", "nibabel")
REGION = "region"  # name of its file among a case's inputs
# The rate of the healthy-FPR threshold that is recorded beside the row's own.
RECORDED_RATE = HealthyFPR().rate


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = volumediff.__version__ if name == "volumediff" else None
    return found


def provenance(trained: Trained) -> dict[str, Any]:
    """Where results come from: run, weights and versions."""
    return {
        "run": str(trained.run.resolve()),
        "checkpoint": trained.checkpoint,
        "weights_sha256": trained.digest,
        "device": str(trained.device),
        "versions": versions(),
    }


def localize(
    trained: Trained,
    source: Path | str,
    out: Path | str,
    *,
    method: str,
    overrides: Sequence[str] = (),
    classifier: Path | str | None = None,
    saliency: Path | None = None,
    channels: Sequence[str] | None = None,
    seed: int = 0,
    trace: bool = True,
    region: Path | str | None = None,
    overwrite: bool = False,
    calibration_limit: int | None = None,
    site: Path | str | None = None,
    report: Callable[[str], None] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Localizes anomalies in every case of the source.

    Arguments:
        trained: a run of a model of healthy volumes
        source: file, folder or manifest
        out: output folder
        method: row by name or path
        overrides: `slot.argument=value` words for the row
        classifier: run of the classifier of noisy states that the row takes
        saliency: map from elsewhere, for rows with a first pass: a file for one case, or a folder
            with <case>_saliency.nii.gz; it takes the place of the row's own first pass
        channels: names of the images; None takes those of the run
        seed: of the method's noise
        trace: whether masks and maps of the blocks are written
        region: mask, or folder of masks, of what is to be redrawn; for the policy `given`
        overwrite: whether results of other settings in `out` may be replaced
        calibration_limit: most volumes to calibrate on, if that is still to do
        site: healthy volumes of the site that the source is of; thresholds are those of the site
        report: receives a line per case; None shows progress on the terminal
        announce: receives what happens before the first case

    Raises:
        UsageError: method, run, source and output folder do not fit
        DataError: the source has no cases, or the disk is full
    """
    trained.localizes()
    guide = None if classifier is None else load_classifier(classifier, trained)
    words = [*overrides, *([] if saliency is None else ["first={route: external}"])]
    given = None if guide is None else guide.posterior
    row = load_method(trained, method, words, classifier=given, report=announce)
    check_region(row, method, region)
    names = channels if channels is not None else trained.config.data.channels
    scalars = bool(trained.recipe.scalars)
    cases, problems = find_inputs(source, channels=names, siblings=scalars)
    regions: dict[str, Path] = {}
    if region is not None:
        regions, missing = find_regions(region, cases)
        problems = {**problems, **missing_reasons(missing, region)}
        cases = [case for case in cases if case.id in regions]
    maps = {} if saliency is None else saliency_maps(saliency, [case.id for case in cases])
    place = None if site is None else find_site(trained, site, channels=channels)
    calibration = calibration_for(
        trained, row, method, seed=seed, limit=calibration_limit, report=announce
    )
    if place is not None:
        calibration, drift = site_calibration(
            trained, row, method, place, own=calibration, seed=seed, report=announce
        )
        for line in drift.lines():
            announce(line)
    seen = seen_with(trained, row, classifier=guide, site=place, saliency=saliency is not None)
    settings = {
        "task": "localize",
        "method": Path(method).stem,
        "fingerprint": row.fingerprint,
        "threshold": repr(row.threshold),
        "thresholds": _thresholds(row, calibration),
        "probability": _probability(calibration),
        "weights": trained.digest,
        "preprocessing": repr(trained.preprocessing),
        "seed": seed,
        "saliency": {name: sha256(path) for name, path in maps.items()},
        "trace": trace,
        "version": volumediff.__version__,
        **({} if place is None else {"site": place.name}),
    }

    def work(case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        prepared = prepared_case(trained, case)
        own = _region(trained, prepared, regions.get(case.id))
        d, h, w = prepared.x.shape[1:]
        with explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)):
            example = trained.placed(
                prepared.x,
                prepared.foreground,
                prepared.spacing_mm,
                condition=trained.condition(case.attributes),
            )
            brought = None if not maps else read_saliency(maps[case.id], trained, prepared)
            with counted(trained.model) as cost:
                found = row.localize(
                    trained.model,
                    example.x,
                    foreground=example.foreground,
                    spacing_mm=example.spacing_mm,
                    key=key(seed, "localize", *(inputs[n] for n in case.images)),
                    condition=example.condition,
                    calibration=calibration,
                    region=own,
                    saliency=brought,
                )
        facts = {
            "case": case.id,
            "patient": case.patient,
            "method": settings["method"],
            "overrides": list(overrides),
            "fingerprint": row.fingerprint,
            "supervision": row.supervision,
            "scope": row.scope,
            "threshold": found.threshold,
            "threshold_rule": repr(row.threshold),
            "thresholds": settings["thresholds"],
            "probability": settings["probability"],
            "seed": seed,
            "classifier": guide and guide.facts,
            "saliency": settings["saliency"].get(case.id),
            **_site_facts(place, inputs),
            "seen": (record := keep(folder, seen)).name,
            "inputs": {n: {"file": p.name, "sha256": inputs[n]} for n, p in case.images.items()},
            "region_sha256": inputs.get(REGION),
            "read_policy": asdict(trained.preprocessing.policy),
            **provenance(trained),
        }
        files = write_localization(
            folder,
            case.id,
            found,
            foreground=prepared.foreground,
            record=prepared.record,
            preprocessing=trained.preprocessing,
            facts=facts,
            trace=trace,
        )
        files += [write_findings(folder, case), record]
        return Result(files, {"score": found.score, **asdict(cost)})

    return process(
        cases,
        out,
        settings=settings,
        work=work,
        also={name: {REGION: path} for name, path in regions.items()},
        problems=problems,
        overwrite=overwrite,
        report=report,
    )


def _site_facts(place: Site | None, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The site, and whether its thresholds have seen the volume itself."""
    if place is None:
        return {}
    return {"site": place.name, "of_site": not place.digests.isdisjoint(inputs.values())}


def _region(trained: Trained, prepared: Prepared, path: Path | None) -> Tensor | None:
    """The region of a case on the grid of its prepared volume, on the model's device."""
    if path is None:
        return None
    found = region_on(
        path,
        prepared.record.grid,
        prepared.foreground,
        policy=trained.preprocessing.policy,
    )
    return found[None].to(trained.device)


def _thresholds(row: Row, calibration: Calibration | None) -> dict[str, float]:
    """Thresholds that no test volume has seen, for the evaluation to compare."""
    if calibration is None:
        return {}
    own = row.threshold.rate if isinstance(row.threshold, HealthyFPR) else RECORDED_RATE
    found = {}
    value = HealthyFPR(rate=own, min_volumes=1)(calibration)
    if value is not None:
        found["healthy_fpr"] = value
    if calibration.validation_threshold is not None:
        value = Validation()(calibration)
        assert value is not None, "it was validated"
        found["validation"] = value
    return found


def _probability(calibration: Calibration | None) -> dict[str, Any] | None:
    """Probability of a lesion by map value, as validation has it."""
    if calibration is None or calibration.probability is None:
        return None
    edges, values = calibration.probability.edges, calibration.probability.values
    return {"edges": list(edges), "values": list(values)}
