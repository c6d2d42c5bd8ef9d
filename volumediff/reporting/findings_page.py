"""findings.html: the findings of a folder, case by case; a report that needs no truth."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import torch

from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import mni152
from volumediff.data.label_names import names_in
from volumediff.data.resampling import nearest_onto
from volumediff.findings.schema import CaseFindings
from volumediff.findings.urgency import LEVELS
from volumediff.findings.written import Written
from volumediff.metrics.definition import Notation
from volumediff.outputs.export import FINDINGS, MAP
from volumediff.outputs.segmentation_files import LABEL_FINDINGS
from volumediff.reporting.case_list import CaseColumn, ListedCase, case_list
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.panel import case_panel
from volumediff.reporting.report import settings_chapter
from volumediff.reporting.tables import bullets
from volumediff.reporting.thumbnails import thumbnail
from volumediff.reporting.views import CaseView, outputs_of, start_of
from volumediff.storage.atomic import atomic

__all__ = ["Gallery"]

COLUMNS = (
    CaseColumn("to look at", "Urgency of the most urgent finding, by fixed rules."),
    CaseColumn("findings", "Number of findings."),
    CaseColumn("volume in ml", "Volume of all findings together."),
    CaseColumn("volume score", "Score of the whole volume; higher is more abnormal."),
    CaseColumn("in a sentence"),
)
Rank = tuple[int, float]


@dataclass
class Gallery:
    """Collects the cases of a folder and writes their pages; one case is in memory at a time.

    Arguments:
        folder: of the results; the pages go there
    """

    folder: Path
    rows: list[tuple[Rank, ListedCase]] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    segmented: bool = False

    def __post_init__(self) -> None:
        self.index = self.folder / "findings.html"
        self.pages = CasePages(self.index)

    def add(self, written: Written, found: CaseFindings) -> None:
        """Another case."""
        self.facts = self.facts or dict(written.facts)
        self.segmented = written.labels is not None
        view = self._view(written, found)
        scene = view.scene()
        self.pages.write(scene, body=case_panel(view), outputs=view.files)
        top = max((LEVELS.index(f.urgency.level) for f in found.findings), default=-1)
        volume = sum((f.volume_ml for f in found.findings), start=0.0)
        score = found.volume_score
        values = (
            (float(top), LEVELS[top] if top >= 0 else ""),
            (float(len(found.findings)), Notation.COUNT.text(float(len(found.findings)))),
            (volume, Notation.AMOUNT.text(volume)),
            (float("nan"), "") if score is None else (score, Notation.AMOUNT.text(score)),
            found.statement,
        )
        row = ListedCase(found.case, self.pages.address(found.case), thumbnail(scene), "", values)
        self.rows.append(((top, sum(f.severity for f in found.findings)), row))

    def write(self) -> Path:
        """The last page and the index, which lists the most urgent cases first."""
        self.pages.close()
        method = str(self.facts.get("method", "unknown"))
        about = (
            f"{method}: {self.facts.get('scope', 'no scope given')}. Supervision: "
            f"{self.facts.get('supervision', 'unknown')}."
        )
        if self.segmented:
            about = f"{method}: parts of the labels of a segmentation."
        order = sorted(self.rows, key=lambda entry: entry[0], reverse=True)
        marked = sum(rank[0] >= 0 for rank, _ in order)
        noun = "case" if len(order) == 1 else "cases"
        stem = LABEL_FINDINGS if self.segmented else FINDINGS
        lines = [
            f"{len(order)} {noun}, {marked} of them with findings.",
            f"The numbers of every finding are in <case>_{stem}.json.",
        ]
        text = (
            "The cases with the most urgent findings come first. The order is one of reading by "
            "fixed rules, not a clinical score. Every case has a page of its own with a viewer; a "
            "click on a heading sorts the list. In the pictures the patient's right is on "
            "their left."
        )
        rows = case_list([row for _, row in order], COLUMNS)
        page = framed(
            f"Findings: {method}",
            [
                Chapter("summary", "Summary", [bullets(lines)]),
                Chapter("cases", "Cases", [f"<p>{escape(text)}</p>", *rows]),
                settings_chapter(self.facts),
            ],
            lead=[about],
        )
        with atomic(self.index) as file:
            file.write(page.encode())
        return self.index

    def _view(self, written: Written, found: CaseFindings) -> CaseView:
        assert written.files is not None, "the page is of a folder"
        path = written.files.path(MAP)
        more = outputs_of(path, start_of(None, written.map, written.grid.spacing_mm))
        if written.labels is not None:
            more = {
                "found": written.labels,
                "uncertainty": written.uncertainty,
                "findings": found.to_json()["findings"],
                "statement": found.statement,
                "label_names": names_in(written.facts),
            }
        return CaseView(
            title=written.case,
            note=f"volume score {found.volume_score:.3g}"
            if found.volume_score is not None
            else "no volume score",
            image=next(iter(written.images.values())),
            maps={str(written.facts.get("method", "map")): written.map},
            spacing_mm=written.grid.spacing_mm,
            affine=written.grid.affine,
            files={"map": path} if written.labels is None else {},
            prepared=written.facts.get("prepared") or {},
            brain=_template_brain(written),
            **more,
        )


def _template_brain(written: Written) -> np.ndarray | None:
    """The brain of the template that a raw scan was aligned with, on the grid of the scan."""
    prepared = written.facts.get("prepared") or {}
    if prepared.get("template") is None:
        return None
    template = mni152()
    if prepared.get("template") != template.name:
        return None
    alignment = Alignment(
        written.native, template.grid, np.array(prepared["native_to_template"], float)
    )
    brain = torch.from_numpy(template.object[None].astype(np.uint8))
    return nearest_onto(brain, template.grid, alignment.moved)[0].numpy() > 0
