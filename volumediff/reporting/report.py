"""report.html: one file that opens from disk with no network.

Everything is inline: styles, a small canvas viewer, volumes as uint8, pictures as PNG. The page
carries a Content-Security-Policy that allows its own script and style by their SHA-256 and
nothing else, so that a browser would refuse any request even if one were made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec
from volumediff.evaluation.baselines import against_baselines
from volumediff.evaluation.evaluate import (
    EvaluationResult,
    localizations,
    segmentations,
    translations,
)
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.summary import (
    confounded_lines,
    coverage,
    verdicts,
)
from volumediff.evaluation.translation import TranslationEvaluation, measured_cases
from volumediff.evaluation.truths import find_truths
from volumediff.outputs.export import finite
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.panel import case_panel, figure_of, label_panel
from volumediff.reporting.result_tables import legend_section, result_sections
from volumediff.reporting.segmentation_views import LabelView, label_views, shown_cases
from volumediff.reporting.tables import bullets
from volumediff.reporting.translation_page import translation_pictures
from volumediff.reporting.views import (
    CaseView,
    limits,
    packed,
    scaled,
    thinned,
    views_of,
)
from volumediff.storage.atomic import atomic

__all__ = ["Page", "report_of", "write_report"]


@dataclass(frozen=True)
class Page:
    """What a report says.

    Arguments:
        title: of the page
        lead: paragraphs under the title
        results: of the methods; the first is the one the report is about
        views: cases to look at
        manifest: settings and versions, shown as JSON
        pictures: caption and PNG file of further pictures, such as the progress of training
        groups: what the subgroups are, for the heading of their table
        segmented: results of segmentations
        labelled: segmented cases to look at
        translated: results of translations
        slices: caption and PNG of translated cases
    """

    title: str
    lead: Sequence[str]
    results: Sequence[MethodResult]
    views: Sequence[CaseView]
    manifest: Mapping[str, Any]
    pictures: Sequence[tuple[str, Path]] = ()
    groups: str = "group"
    segmented: Sequence[SegmentationEvaluation] = ()
    labelled: Sequence[LabelView] = ()
    translated: Sequence[TranslationEvaluation] = ()
    slices: Sequence[tuple[str, bytes]] = ()


def write_report(path: Path | str, page: Page) -> None:
    """Writes the page, whole or not at all."""
    with atomic(path) as file:
        file.write(_html(page).encode())


def report_of(
    path: Path | str,
    results: Sequence[EvaluationResult],
    truth: Path | str,
    *,
    by: str | None = None,
    layout: Spec = AUTO,
    policy: ReadPolicy | None = None,
    cases: int = 8,
    pictures: Sequence[tuple[str, Path]] = (),
) -> None:
    """The report of an evaluation, with pictures of some of its cases.

    Of localization the first cases that have lesions are shown, of segmentation cases from the
    lowest to the highest Dice.

    Arguments:
        path: of the page
        results: of the methods, the one in question first
        truth: data set with masks and images
        by: attribute that made the subgroups
        layout: of the truth
        policy: decisions on ambiguous files of the truth
        cases: most cases to show
        pictures: caption and PNG file of each curve
    """
    maps, segmented = localizations(results), segmentations(results)
    lead, views, labelled = [], [], []
    if drawn := translations(results):
        slices = translation_pictures(drawn, measured_cases(truth, layout), policy or ReadPolicy())
        page = Page(
            title=f"Translation: {drawn[0].method}",
            lead=["Translated channels are synthetic images."],
            results=(),
            views=(),
            manifest={r.method: r.facts for r in drawn},
            pictures=pictures,
            translated=drawn,
            slices=slices,
        )
        write_report(path, page)
        return
    truths = find_truths(truth, layout, policy)
    if maps:
        main = maps[0]
        lead.append(
            f"{main.method}: {main.facts.get('scope', 'no scope given')}. Supervision: "
            f"{main.facts.get('supervision', 'unknown')}."
        )
        chosen = sorted(main.cases, key=lambda c: not c.abnormal)[:cases]
        views = views_of(maps, truths, [c.case for c in chosen])
    if segmented:
        labelled = label_views(segmented, truths, shown_cases(segmented[0].cases, cases))
    subject = "Anomaly localization" if maps else "Segmentation"
    page = Page(
        title=f"{subject}: {results[0].method}",
        lead=lead,
        results=maps,
        views=views,
        manifest={r.method: r.facts for r in results},
        pictures=pictures,
        groups=by or "group",
        segmented=segmented,
        labelled=labelled,
    )
    write_report(path, page)


def _html(page: Page) -> str:
    viewed = [*page.views, *(view.in_viewer for view in page.labelled)]
    script = files("volumediff.reporting").joinpath("report.js").read_text(encoding="utf-8")
    cases: list[str] = []
    if viewed:
        cases += [*_viewer(viewed), "<h3>Case by case</h3>"]
        for number, view in enumerate(page.views):
            cases += case_panel(view, number)
        for view in page.labelled:
            cases += label_panel(view)
    cases += [figure_of(content, caption) for caption, content in page.slices]
    sections = [
        Chapter("summary", "Summary", _summary(page)),
        *result_sections(page.results, page.segmented, page.translated, groups=page.groups),
        Chapter("all-cases", "Cases", cases),
        Chapter(
            "curves",
            "Curves",
            [figure_of(path.read_bytes(), caption) for caption, path in page.pictures],
        ),
        legend_section(page.results, page.segmented, page.translated),
        Chapter("settings", "Settings and versions", _manifest(page)),
    ]
    return framed(page.title, sections, lead=page.lead, scripts=[script] if viewed else [])


def _manifest(page: Page) -> list[str]:
    text = json.dumps(finite(page.manifest), indent=1)
    return [
        "<details><summary>Settings, weights and versions of every method</summary>"
        f"<pre>{escape(text)}</pre></details>"
    ]


def _summary(page: Page) -> list[str]:
    """Sentences on what was compared, what came out, and what a reader must know of it."""
    parts = []
    if page.results:
        methods = [r.method for r in page.results]
        lines = [
            coverage(page.results),
            f"{'Method' if len(methods) == 1 else 'Methods'}: {', '.join(methods)}.",
            *against_baselines(page.results),
            *(f"Voxel AP, {line}" for line in verdicts(page.results)),
        ]
        parts.append(bullets(lines))
        if found := confounded_lines(page.results):
            parts.append(bullets(found, kind="caution"))
    return parts


def _viewer(views: Sequence[CaseView]) -> list[str]:
    described, blocks = [], []
    for n, view in enumerate(views):
        layers: dict[str, np.ndarray] = {}
        low, high = limits(view.image)
        layers["image"] = scaled(view.image, low, high)
        if view.healthy is not None:
            layers["healthy"] = scaled(view.healthy, low, high)
        for name, mask in (("truth", view.truth), ("found", view.found)):
            if mask is not None:
                layers[name] = mask.astype(np.uint8)
        maps = dict(view.maps)
        if view.uncertainty is not None:
            maps["uncertainty"] = view.uncertainty
        ends = {name: limits(a, floor=max(0.0, float(a.min()))) for name, a in maps.items()}
        for name, array in maps.items():
            layers[name] = scaled(array, *ends[name])
        small = {name: thinned(layer) for name, layer in layers.items()}
        shape = next(iter(small.values())).shape
        step = [a / b for a, b in zip(view.image.shape, shape, strict=True)]
        ids = {name: f"layer-{n}-{i}" for i, name in enumerate(small)}
        described.append(
            {
                "title": view.title,
                "note": view.note,
                "shape": shape,
                "spacing": [s * k for s, k in zip(view.spacing_mm, step, strict=True)],
                "start": [int(i / k) for i, k in zip(view.start(), step, strict=True)],
                "layers": ids,
                "step": step,
                "affine": None if view.affine is None else view.affine.tolist(),
                "maps": list(maps),
                "labels": view.truth is not None and view.truth.dtype == np.uint8,
                "low": {name: e[0] for name, e in ends.items()},
                "high": {name: e[1] for name, e in ends.items()},
            }
        )
        blocks += [
            f'<script type="text/plain" id="{ids[name]}">{packed(layer)}</script>'
            for name, layer in small.items()
        ]
    panes = "".join(
        f'<div class="pane"><canvas data-id="pane{i}"></canvas>'
        f'<input type="range" min="0" data-id="slide{i}" aria-label="{name} slice">{name}</div>'
        for i, name in enumerate(("axial", "coronal", "sagittal"))
    )
    labels = [view.truth is not None and view.truth.dtype == np.uint8 for view in views]
    truth = "truth" if any(labels) else "lesion"
    found = "segmentation" if all(labels) else "finding"
    key = '<span class="key {}"></span>'
    controls = "".join(
        f"<label>{text}</label>"
        for text in (
            'case <select data-id="case"></select>',
            'map <select data-id="map"></select> <span class="key map"></span>',
            'opacity <input type="range" min="0" max="100" value="75" data-id="opacity">',
            'hide below <input type="range" min="0" max="99" value="30" data-id="floor">',
            f'<input type="checkbox" checked data-id="truth">{key.format("truth")}{truth}',
            f'<input type="checkbox" data-id="found">{key.format("found")}{found}',
            '<input type="checkbox" data-id="healthy"> pseudo-healthy',
        )
    )
    # "<" would end the block early if a name held a tag
    text = json.dumps(finite(described)).replace("<", "\\u003c")
    return [
        "<p>Click or drag in a slice to move the crosshair, use the wheel or the sliders to page. "
        "L and R are the patient's left and right.</p>",
        f'<div id="viewer" hidden><div class="bar">{controls}</div><div class="panes">{panes}'
        '</div><p class="read" data-id="read"></p></div>',
        f'<script type="application/json" id="cases">{text}</script>',
        *blocks,
    ]
