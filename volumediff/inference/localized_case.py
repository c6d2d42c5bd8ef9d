"""The result of one localized examination, in memory and as files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.anomaly.raw_map import Localization
from volumediff.data.preprocessing import Prepared
from volumediff.data.seen import Seen
from volumediff.evaluation.leakage import keep
from volumediff.findings.components import case_findings
from volumediff.findings.schema import CaseFindings
from volumediff.findings.written import Written, channels_on
from volumediff.inference.cost import Cost
from volumediff.outputs.case_files import examination_files
from volumediff.outputs.export import (
    ENSEMBLE,
    FINDINGS,
    MASK,
    block_name,
    blocks_of,
    finite,
    write_json,
    write_localization,
)
from volumediff.outputs.label_tables import write_label_tables
from volumediff.outputs.result_grid import ResultGrid
from volumediff.runs.inputs import Examination

__all__ = ["Localized", "in_host_memory"]


@dataclass(frozen=True, eq=False)
class Localized:
    """What a method found in one examination.

    Arguments:
        examination: what was given
        prepared: the same as the model saw it
        found: map, mask and the rest on the prepared grid, in host memory
        grid: of the input
        facts: what is recorded beside the map
        seen: what the weights have seen
        cost: of the method
        trace: whether masks and maps of the components are written
    """

    examination: Examination
    prepared: Prepared
    found: Localization
    grid: ResultGrid
    facts: Mapping[str, Any]
    seen: Seen
    cost: Cost
    trace: bool

    @cached_property
    def arrays(self) -> Written:
        """Map, masks and images on the grid of the input, axes along R, A, S.

        They are what `findings.written.read_written` reads back from the files.
        """
        found, record = self.found, self.grid.record
        ensemble = [
            block
            for name, block in (blocks_of(found) if self.trace else {}).items()
            if block_name(name, block) == ENSEMBLE
        ]
        images = channels_on(self.examination.images, record.canonical)
        healthy: Mapping[str, np.ndarray] = {}
        if found.pseudo_healthy is not None:
            restored = self.grid.channels(found.pseudo_healthy[0])
            healthy = dict(zip(images, restored, strict=True))
        return Written(
            case=self.examination.id,
            facts=finite({**self.facts, "score": found.score}),
            grid=record.canonical,
            native=record.native,
            map=self.grid.image(found.map[0])[0],
            foreground=self.grid.label(self.prepared.foreground)[0] > 0,
            mask=None
            if found.mask is None
            else self.grid.mask(found.mask[0], volume_ml=found.finding_ml)[0] > 0,
            uncertainty=None
            if found.uncertainty is None
            else self.grid.image(found.uncertainty[0])[0],
            ensemble=self.grid.image(ensemble[-1][0])[0] if ensemble else None,
            images=images,
            healthy=healthy,
            contributions={n: self.grid.image(a[0])[0] for n, a in found.contributions.items()},
        )

    @cached_property
    def findings(self) -> CaseFindings:
        """The components of the mask, measured on the grid of the input."""
        return case_findings(self.arrays)

    def write_dicom(self, folder: Path) -> list[Path]:
        """Writes map and findings as DICOM objects in the space of the series that was given.

        Raises:
            UsageError: highdicom is not installed
            DataError: no DICOM series, or one that no object can refer to
        """
        from volumediff.dicom_output.write import write_findings_dicom

        first = next(iter(self.examination.images.values()))
        place = examination_files(folder, self.examination)
        return write_findings_dicom(place, first.path, self.arrays, self.findings)

    def write(self, folder: Path) -> list[Path]:
        """Writes map, masks, pseudo-healthy image, records and findings; see `outputs.export`."""
        place = examination_files(folder, self.examination)
        record = keep(folder, self.seen)
        if self.found.mask is not None:
            write_label_tables(folder, MASK, {1: "anomaly"})
        files = write_localization(
            place,
            self.found,
            foreground=self.prepared.foreground,
            grid=self.grid,
            facts={**self.facts, "seen": record.name},
            trace=self.trace,
        )
        path = place.path(FINDINGS, ".json")
        write_json(path, self.findings.to_json())
        return [*files, path, record]


def in_host_memory(found: Localization) -> Localization:
    """The same with its tensors on the CPU, so that results do not fill the device."""
    return replace(
        found,
        map=found.map.cpu(),
        mask=None if found.mask is None else found.mask.cpu(),
        pseudo_healthy=None if found.pseudo_healthy is None else found.pseudo_healthy.cpu(),
        uncertainty=None if found.uncertainty is None else found.uncertainty.cpu(),
        trace={name: block.cpu() for name, block in found.trace.items()},
        contributions={name: a.cpu() for name, a in found.contributions.items()},
    )
