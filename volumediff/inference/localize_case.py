"""A prepared localization: method, calibration and options, applied to one examination.

    volume ─ prepared as the run's were ─ method ─▶ map, mask, … ─ to the input's grid ─▶ result

What is drawn for a volume depends on the seed and on its content (the bytes of its file, or the
voxels of an image in memory), not on its name, its place in the folder, or what else is in there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import volumediff
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.operating_point import largest_findings, left_out
from volumediff.anomaly.raw_map import Localization
from volumediff.anomaly.threshold import FindingsPerVolume, HealthyFPR, ValidationThreshold
from volumediff.calibration.site import Site
from volumediff.condition import Condition
from volumediff.data.preprocessing import Prepared
from volumediff.data.seen import Seen
from volumediff.data.volume import Volume
from volumediff.inference.codec_limits import CodecLimits, codec_limits
from volumediff.inference.conditions import settled
from volumediff.inference.cost import Cost, counted
from volumediff.inference.external_maps import saliency_on
from volumediff.inference.fill import Filling, filled_warnings
from volumediff.inference.flood import flood_warnings
from volumediff.inference.localized_case import Localized, in_host_memory
from volumediff.inference.options import LocalizeOptions
from volumediff.inference.raw_scan import prepared_scan
from volumediff.inference.user_regions import region_on
from volumediff.model import Model
from volumediff.outputs.input_grid import InputGrid
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.auxiliary_models import facts_of
from volumediff.runs.inputs import Examination, prepared
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.samples.input_guard import accepted
from volumediff.samples.preparation_record import RunPreparation

__all__ = ["REGION", "SALIENCY", "Localizing"]

# Names of further inputs among the digests of an examination.
REGION, SALIENCY = "region", "saliency"
# The rate of the healthy-FPR threshold that is recorded beside the method's own.
RECORDED_RATE = HealthyFPR().rate


@dataclass(frozen=True, eq=False)
class Localizing:
    """Everything that the maps of a call have in common.

    Arguments:
        trained: the run
        row: the method
        options: as they were asked for
        calibration: of the method, that of the site where there is one
        seen: what the weights have seen
        site: whose volumes these are
        preparation: of the run's volumes, which raw scans get first; None takes all as they are
        fills: draws channels that an examination lacks
    """

    trained: Trained
    row: Method
    options: LocalizeOptions
    calibration: Calibration | None
    seen: Seen
    site: Site | None
    preparation: RunPreparation | None = None
    fills: Filling | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What results depend on, beside the volume: those of other settings are not mixed."""
        return {
            "task": "localize",
            "method": Path(self.options.method).stem,
            "fingerprint": self.row.fingerprint,
            "threshold": repr(self.row.threshold),
            "thresholds": _thresholds(self.row, self.calibration),
            "probability": _probability(self.calibration),
            "weights": self.trained.digest,
            "preprocessing": repr(self.trained.preprocessing),
            "preparation": self.preparation.model_dump() if self.preparation else None,
            "seed": self.options.seed,
            "trace": self.options.trace,
            "limits": self.options.limits,
            "conditions": dict(self.options.conditions),
            "version": volumediff.__version__,
            **({} if self.site is None else {"site": self.site.name}),
            **({} if self.fills is None else {"fill": self.fills.settings}),
            **({"dicom": True} if self.options.dicom else {}),
        }

    @cached_property
    def healthy(self) -> dict[str, Any]:
        """What the calibration volumes say of findings, for those of a volume to be judged by."""
        value = None
        if self.calibration is not None and self.row.threshold.calibrated:
            value = self.row.threshold(self.calibration)
        rates, largest = (
            left_out(self.row.threshold, self.calibration),
            largest_findings(self.calibration, value),
        )
        return {
            "finding_ml": self.row.finding_ml,
            "healthy_rates": None if rates is None else asdict(rates),
            "healthy_findings": None if largest is None else largest.tolist(),
        }

    def __call__(self, examination: Examination) -> Localized:
        """Localizes in one examination.

        Raises:
            DataError: other channels than the model's, an empty volume, a region or map that
                does not belong to it, or an input that the run was plainly not trained for
        """
        if self.fills is not None:
            examination = self.fills(examination)
        force, guard = self.options.force, self.trained.guard
        taken = accepted(guard.files(list(examination.images.values())), force=force)
        scan = prepared_scan(examination, self.preparation)
        ready = examination if scan is None else scan.examination
        seen_by_model = prepared(self.trained, list(ready.images.values()))
        taken += accepted(guard.volume(seen_by_model), force=force)
        digests = (examination.digests[name] for name in examination.images)
        conditions = settled(
            self.trained,
            {**examination.attributes, **self.options.conditions},
            seen_by_model,
            key=key(self.options.seed, "conditions", *digests),
        )
        found, cost = self._found(ready, seen_by_model, conditions.condition)
        limits = self._limits(ready, seen_by_model)
        grid = InputGrid(self.trained.preprocessing, seen_by_model.record)
        facts = self._facts(examination, found)
        return Localized(
            examination=examination,
            prepared=seen_by_model,
            found=in_host_memory(found),
            grid=grid if scan is None else scan.home(grid),
            facts={
                **facts,
                "prepared": None if scan is None else scan.facts,
                "forced": list(taken.forced),
                **conditions.facts(),
                "autoencoder": None if limits is None else limits.facts(),
                "filled": dict(examination.filled),
                "warnings": [
                    *conditions.warnings,
                    *filled_warnings(examination.filled),
                    *taken.warnings,
                    *flood_warnings(found, seen_by_model.foreground, self.calibration),
                    *([] if limits is None else limits.warnings),
                ],
            },
            seen=self.seen,
            cost=cost,
            trace=self.options.trace,
        )

    def _found(
        self, examination: Examination, ready: Prepared, condition: Condition
    ) -> tuple[Localization, Cost]:
        """What the method finds, and what that cost."""
        trained = self.trained
        region = _region(trained, ready, examination.region)
        d, h, w = ready.x.shape[1:]
        with (
            explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)),
            trained.config.memory.arithmetic(),
        ):
            example = trained.placed(
                ready.x,
                ready.foreground,
                ready.spacing_mm,
                condition=condition,
            )
            brought = None
            if examination.saliency is not None:
                brought = saliency_on(examination.saliency, trained, ready)
            digests = (examination.digests[name] for name in examination.images)
            with counted(trained.model) as cost:
                found = self.row.localize(
                    trained.model,
                    example.x,
                    foreground=example.foreground,
                    spacing_mm=example.spacing_mm,
                    key=key(self.options.seed, "localize", *digests),
                    condition=example.condition,
                    calibration=self.calibration,
                    region=region,
                    saliency=brought,
                )
        cost.network_calls += self.row.calls_elsewhere(found.network_calls)
        return found, cost

    def _limits(self, examination: Examination, ready: Prepared) -> CodecLimits | None:
        """What the autoencoder of a model of latents keeps of the volume."""
        trained = self.trained
        model = trained.task.lend(Model)
        if model is None or model.space.exact or not self.options.limits:
            return None
        d, h, w = ready.x.shape[1:]

        def back(x: Tensor) -> Tensor:
            return model.decode(model.encode(x), (d, h, w))

        with (
            explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)),
            trained.config.memory.arithmetic(),
        ):
            digests = (examination.digests[name] for name in examination.images)
            return codec_limits(
                back,
                ready.x[None].to(trained.device),
                foreground=ready.foreground[None].to(trained.device),
                spacing_mm=ready.spacing_mm,
                key=key(self.options.seed, "limits", *digests),
            )

    def _facts(self, examination: Examination, found: Localization) -> dict[str, Any]:
        """What is written beside the map."""
        row, settings, digests = self.row, self.settings, examination.digests
        return {
            "case": examination.id,
            "patient": examination.patient,
            "method": settings["method"],
            "overrides": list(self.options.overrides),
            "fingerprint": row.fingerprint,
            "supervision": row.supervision,
            "scope": row.scope,
            "threshold": found.threshold,
            "threshold_rule": repr(row.threshold),
            "thresholds": settings["thresholds"],
            "probability": settings["probability"],
            **self.healthy,
            "seed": self.options.seed,
            "borrowed": facts_of(row),
            "saliency": digests.get(SALIENCY),
            **_site_facts(self.site, digests),
            "inputs": {
                name: {"file": file, "sha256": digests[name]}
                for name, file in examination.files.items()
            },
            "region_sha256": digests.get(REGION),
            "read_policy": asdict(self.trained.preprocessing.policy),
            **provenance(self.trained),
        }


def _site_facts(place: Site | None, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The site, and whether its thresholds have seen the volume itself."""
    if place is None:
        return {}
    return {"site": place.name, "of_site": not place.digests.isdisjoint(inputs.values())}


def _region(trained: Trained, ready: Prepared, region: Volume | None) -> Tensor | None:
    """The region of a case on the grid of its prepared volume, on the model's device."""
    if region is None:
        return None
    return region_on(region, ready.record.grid, ready.foreground)[None].to(trained.device)


def _thresholds(row: Method, calibration: Calibration | None) -> dict[str, float]:
    """Thresholds that no test volume has seen, for the evaluation to compare."""
    if calibration is None:
        return {}
    own = RECORDED_RATE if row.threshold.healthy_rate is None else row.threshold.healthy_rate
    found = {}
    value = HealthyFPR(rate=own, min_volumes=1)(calibration)
    if value is not None:
        found["healthy_fpr"] = value
    rule = row.threshold if isinstance(row.threshold, FindingsPerVolume) else FindingsPerVolume()
    if len(calibration.counts) >= rule.least_volumes:
        value = rule(calibration)
        assert value is not None, "there is a calibration"
        found["findings_per_volume"] = value
    if calibration.validation_threshold is not None:
        value = ValidationThreshold()(calibration)
        assert value is not None, "it was validated"
        found["validation"] = value
    return found


def _probability(calibration: Calibration | None) -> dict[str, Any] | None:
    """Probability of a lesion by map value, as validation has it."""
    if calibration is None or calibration.probability is None:
        return None
    edges, values = calibration.probability.edges, calibration.probability.values
    return {"edges": list(edges), "values": list(values)}
