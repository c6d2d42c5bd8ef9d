"""A settled localization, and what it does with one case: map, mask and facts, as files.

    volume ─ method ─▶ map, mask, … ─ to the file's grid ─▶ NIfTI, JSON

The findings are measured on what was written, so that they can be measured again. What is drawn
for a volume depends on the seed and on the bytes of its file, not on its name, its place in the
folder, or what else is in there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import volumediff
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.finding import Localization
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.threshold import HealthyFPR, Validation
from volumediff.calibration.site import Site
from volumediff.data.cases import Case
from volumediff.data.preprocessing import Prepared
from volumediff.data.seen import Seen
from volumediff.evaluation.leakage import keep
from volumediff.inference.cost import Cost, counted
from volumediff.inference.findings import write_findings
from volumediff.inference.regions import region_on
from volumediff.inference.saliency import read_saliency
from volumediff.outputs.batch import Result
from volumediff.outputs.export import write_localization
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.borrowed import facts_of
from volumediff.runs.inputs import prepared_case
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.storage.digests import sha256_of_file

__all__ = ["REGION", "Localizing"]

REGION = "region"  # name of its file among a case's inputs
# The rate of the healthy-FPR threshold that is recorded beside the row's own.
RECORDED_RATE = HealthyFPR().rate


@dataclass(frozen=True, eq=False)
class Localizing:
    """Everything that the maps of a folder have in common.

    Arguments:
        trained: the run
        row: the method
        method: its name or path, as it was asked for
        overrides: words on top of it
        calibration: of the row, that of the site where there is one
        seen: what the weights have seen
        seed: of the method's noise
        trace: whether masks and maps of the blocks are written
        site: whose volumes these are
        regions: case -> mask of what is to be redrawn
        saliency: case -> map from elsewhere
    """

    trained: Trained
    row: Method
    method: str
    overrides: Sequence[str]
    calibration: Calibration | None
    seen: Seen
    seed: int
    trace: bool
    site: Site | None
    regions: Mapping[str, Path]
    saliency: Mapping[str, Path]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What results depend on, beside the volume: those of other settings are not mixed."""
        return {
            "task": "localize",
            "method": Path(self.method).stem,
            "fingerprint": self.row.fingerprint,
            "threshold": repr(self.row.threshold),
            "thresholds": _thresholds(self.row, self.calibration),
            "probability": _probability(self.calibration),
            "weights": self.trained.digest,
            "preprocessing": repr(self.trained.preprocessing),
            "seed": self.seed,
            "saliency": {name: sha256_of_file(path) for name, path in self.saliency.items()},
            "trace": self.trace,
            "version": volumediff.__version__,
            **({} if self.site is None else {"site": self.site.name}),
        }

    def __call__(self, case: Case, inputs: Mapping[str, str], folder: Path) -> Result:
        """Localizes in one case and writes its files.

        Arguments:
            inputs: SHA-256 of its files by channel
            folder: for the files
        """
        prepared = prepared_case(self.trained, case)
        found, cost = self._found(case, prepared, inputs)
        record = keep(folder, self.seen)
        files = write_localization(
            folder,
            case.id,
            found,
            foreground=prepared.foreground,
            record=prepared.record,
            preprocessing=self.trained.preprocessing,
            facts={**self._facts(case, found, inputs), "seen": record.name},
            trace=self.trace,
        )
        files += [write_findings(folder, case), record]
        return Result(files, {"score": found.score, **asdict(cost)})

    def _found(
        self, case: Case, prepared: Prepared, inputs: Mapping[str, str]
    ) -> tuple[Localization, Cost]:
        """What the method finds, and what that cost."""
        trained = self.trained
        region = _region(trained, prepared, self.regions.get(case.id))
        d, h, w = prepared.x.shape[1:]
        with explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)):
            example = trained.placed(
                prepared.x,
                prepared.foreground,
                prepared.spacing_mm,
                condition=trained.condition(case.attributes),
            )
            path = self.saliency.get(case.id)
            brought = None if path is None else read_saliency(path, trained, prepared)
            with counted(trained.model) as cost:
                found = self.row.localize(
                    trained.model,
                    example.x,
                    foreground=example.foreground,
                    spacing_mm=example.spacing_mm,
                    key=key(self.seed, "localize", *(inputs[n] for n in case.images)),
                    condition=example.condition,
                    calibration=self.calibration,
                    region=region,
                    saliency=brought,
                )
        return found, cost

    def _facts(self, case: Case, found: Localization, inputs: Mapping[str, str]) -> dict[str, Any]:
        """What is written beside the map."""
        row, settings = self.row, self.settings
        return {
            "case": case.id,
            "patient": case.patient,
            "method": settings["method"],
            "overrides": list(self.overrides),
            "fingerprint": row.fingerprint,
            "supervision": row.supervision,
            "scope": row.scope,
            "threshold": found.threshold,
            "threshold_rule": repr(row.threshold),
            "thresholds": settings["thresholds"],
            "probability": settings["probability"],
            "seed": self.seed,
            "borrowed": facts_of(row),
            "saliency": settings["saliency"].get(case.id),
            **_site_facts(self.site, inputs),
            "inputs": {n: {"file": p.name, "sha256": inputs[n]} for n, p in case.images.items()},
            "region_sha256": inputs.get(REGION),
            "read_policy": asdict(self.trained.preprocessing.policy),
            **provenance(self.trained),
        }


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


def _thresholds(row: Method, calibration: Calibration | None) -> dict[str, float]:
    """Thresholds that no test volume has seen, for the evaluation to compare."""
    if calibration is None:
        return {}
    own = RECORDED_RATE if row.threshold.healthy_rate is None else row.threshold.healthy_rate
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
