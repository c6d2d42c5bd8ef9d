"""findings.html: the findings of a folder, case by case; a report that needs no truth."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from volumediff.findings.schema import CaseFindings
from volumediff.findings.urgency import LEVELS
from volumediff.findings.written import Written
from volumediff.outputs.export import FINDINGS, MAP
from volumediff.outputs.segmentation_files import LABEL_FINDINGS
from volumediff.reporting.report import Page, write_report
from volumediff.reporting.views import CaseView, outputs_of, start_of, thinned

__all__ = ["Gallery"]

# Cases that are shown; every one holds several volumes, in memory and in the page.
MOST = 8

Rank = tuple[int, float]


@dataclass
class Gallery:
    """Collects the cases of a folder, the most urgent of them with pictures.

    Arguments:
        folder: of the results; the page goes there
    """

    folder: Path
    views: list[tuple[Rank, CaseView]] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    segmented: bool = False

    def add(self, written: Written, found: CaseFindings) -> None:
        """Another case."""
        self.lines[found.case] = f"{found.case}: {found.statement}"
        self.facts = self.facts or dict(written.facts)
        self.segmented = written.labels is not None
        top = max((LEVELS.index(f.urgency.level) for f in found.findings), default=-1)
        rank = (top, sum(f.severity for f in found.findings))
        if len(self.views) == MOST and rank <= self.views[-1][0]:
            return
        self.views.append((rank, self._view(written, found)))
        self.views.sort(key=lambda entry: entry[0], reverse=True)
        del self.views[MOST:]

    def write(self) -> Path:
        """The page."""
        method = str(self.facts.get("method", "unknown"))
        about = (
            f"{method}: {self.facts.get('scope', 'no scope given')}. Supervision: "
            f"{self.facts.get('supervision', 'unknown')}."
        )
        lead = [
            f"{method}: parts of the labels of a segmentation." if self.segmented else about,
            f"Cases: {len(self.lines)}. The numbers of every finding are in "
            f"<case>_{LABEL_FINDINGS if self.segmented else FINDINGS}.json.",
        ]
        others = self.lines.keys() - {view.title for _, view in self.views}
        if others:
            lead.append(f"The {len(self.views)} with the most urgent findings are shown; others:")
        lead += [line for case, line in self.lines.items() if case in others]
        page = Page(
            title=f"Findings: {method}",
            lead=lead,
            results=[],
            views=[view for _, view in self.views],
            manifest=self.facts,
        )
        path = self.folder / "findings.html"
        write_report(path, page)
        return path

    def _view(self, written: Written, found: CaseFindings) -> CaseView:
        peak = start_of(None, written.map, written.grid.spacing_mm)
        assert written.files is not None, "the page is of a folder"
        more = outputs_of(written.files.path(MAP), peak)
        if written.labels is not None:
            more = {
                "found": written.labels,
                "uncertainty": written.uncertainty,
                "findings": found.to_json()["findings"],
                "statement": found.statement,
            }
        view = CaseView(
            title=written.case,
            note=f"volume score {found.volume_score:.3g}"
            if found.volume_score is not None
            else "no volume score",
            image=next(iter(written.images.values())),
            maps={str(written.facts.get("method", "map")): written.map},
            spacing_mm=written.grid.spacing_mm,
            affine=written.grid.affine,
            **more,
        )
        return _small(view)


def _small(view: CaseView) -> CaseView:
    """The view with volumes as the page will hold them; steps keep the plane they show."""
    small = thinned(view.image)
    if small.shape == view.image.shape:
        return view
    steps = [-(-n // m) for n, m in zip(view.image.shape, small.shape, strict=True)]
    affine = None
    if view.affine is not None:
        affine = view.affine.copy()
        affine[:3, :3] = affine[:3, :3] * steps
    d, h, w = (s * k for s, k in zip(view.spacing_mm, steps, strict=True))
    return replace(
        view,
        image=small,
        maps={name: thinned(a) for name, a in view.maps.items()},
        healthy=None if view.healthy is None else thinned(view.healthy),
        uncertainty=None if view.uncertainty is None else thinned(view.uncertainty),
        found=None if view.found is None else thinned(view.found),
        steps=tuple(replace(s, slab=s.slab[:: steps[0], :: steps[1]]) for s in view.steps),
        spacing_mm=(d, h, w),
        affine=affine,
    )
