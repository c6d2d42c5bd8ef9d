"""report.html: one file that opens from disk with no network.

Everything is inline: styles, a small canvas viewer, volumes as uint8, pictures as PNG. The page
carries a Content-Security-Policy that allows its own script and style by their SHA-256 and
nothing else, so that a browser would refuse any request even if one were made.
"""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec
from volumediff.evaluation.evaluate import (
    EvaluationResult,
    localizations,
    segmentations,
    translations,
)
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.segmentation_summary import segmentation_notes, segmentation_tables
from volumediff.evaluation.summary import (
    CaseRow,
    case_table,
    confounded_lines,
    coverage,
    gap_lines,
    group_table,
    measure_table,
    size_table,
    verdicts,
    without_seen,
)
from volumediff.evaluation.table_line import Line
from volumediff.evaluation.translation import TranslationEvaluation, measured_cases
from volumediff.evaluation.translation_summary import (
    translation_case_lines,
    translation_notes,
    translation_tables,
)
from volumediff.evaluation.truths import find_truths
from volumediff.metrics.bootstrap import Interval
from volumediff.outputs.export import finite
from volumediff.reporting.panel import case_panel, figure_of, label_panel
from volumediff.reporting.segmentation_views import LabelView, label_views, shown_cases
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
from volumediff.storage.digests import sha256

__all__ = ["Page", "report_of", "write_report"]

NOTICE = "Research software. Not a medical device, not for diagnosis."


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
    here = files("volumediff.reporting")
    style = here.joinpath("report.css").read_text(encoding="utf-8")
    viewed = [*page.views, *(view.in_viewer for view in page.labelled)]
    script = here.joinpath("report.js").read_text(encoding="utf-8") if viewed else ""
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += f"style-src {_source(style)}; script-src {_source(script)}"
    body = [
        f"<h1>{escape(page.title)}</h1>",
        f'<p class="sub">{escape(time.strftime("%Y-%m-%d %H:%M"))}</p>',
        f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
        *(f"<p>{escape(text)}</p>" for text in page.lead),
        *_tables(page.results, page.groups),
        *_segmentation(page.segmented),
        *_translation(page.translated),
        *(figure_of(content, caption) for caption, content in page.slices),
    ]
    if viewed:
        body += ["<h2>Viewer</h2>", *_viewer(viewed), "<h2>Case by case</h2>"]
        for number, view in enumerate(page.views):
            body += case_panel(view, number)
        for view in page.labelled:
            body += label_panel(view)
    for caption, path in page.pictures:
        body += [figure_of(path.read_bytes(), caption)]
    manifest = json.dumps(finite(page.manifest), indent=1)
    body += [
        "<h2>Run manifest</h2>",
        "<details><summary>Settings, weights and versions</summary>",
        f"<pre>{escape(manifest)}</pre></details>",
    ]
    if script:
        body.append(f"<script>{script}</script>")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(page.title)}</title><style>{style}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _source(text: str) -> str:
    digest = base64.b64encode(bytes.fromhex(sha256(text))).decode()
    return f"'sha256-{digest}'"


def _tables(results: Sequence[MethodResult], groups: str, heading: str = "Results") -> list[str]:
    if not results:
        return []
    parts = [f"<h2>{heading}</h2>"]
    if found := verdicts(results):
        items = "".join(f"<li>{escape(line)}</li>" for line in found)
        parts.append(
            f'<div class="verdict"><strong>Voxel AP: {escape(results[0].method)} against the '
            f"best of the others</strong><ul>{items}</ul></div>"
        )
    if found := confounded_lines(results):
        items = "".join(f"<li>{escape(line)}</li>" for line in found)
        parts.append(f'<ul class="caution">{items}</ul>')
    if results[0].groups:
        text = f"Voxel AP by {groups}; {coverage(results)}"
        parts.append(_table(results, group_table(results), caption=text))
    text = (
        f"{coverage(results)} The threshold of the oracle has seen the truth: an upper bound, not "
        "a result. Counts, volumes in ml, and costs are per volume."
    )
    parts.append(_table(results, measure_table(results), caption=text))
    if sizes := size_table(results):
        text = "Share of the lesions of each size found, by IoU and by recall."
        parts.append(_table(results, sizes, caption=text))
    if rows := case_table(results):
        parts.append(_cases(rows))
    if found := gap_lines(results):
        items = "".join(f"<li>{escape(line)}</li>" for line in found)
        parts.append(f"<p>Differences by {escape(groups)}</p><ul>{items}</ul>")
    if absent := [f"{r.method}: {'; '.join(r.left_out)}" for r in results if r.left_out]:
        items = "".join(f"<li>{escape(line)}</li>" for line in absent)
        parts.append(f"<details><summary>Left out</summary><ul>{items}</ul></details>")
    clean = without_seen(results)
    return parts + _tables(clean, groups, "Results without the volumes that were seen before")


def _translation(
    results: Sequence[TranslationEvaluation], heading: str = "Translation"
) -> list[str]:
    if not results:
        return []
    parts = [f"<h2>{heading}</h2>"]
    tables = [*translation_tables(results), ("Case by case", translation_case_lines(results))]
    for number, (title, lines) in enumerate(tables):
        notes = " ".join(translation_notes(results)) if number == 0 else ""
        parts.append(f"<h3>{escape(title)}</h3>")
        parts.append(_table(results, lines, caption=notes))
    clean = [r.without_seen for r in results if r.without_seen is not None]
    return parts + _translation(clean, "Translation without the cases that were seen before")


def _segmentation(
    results: Sequence[SegmentationEvaluation], heading: str = "Segmentation"
) -> list[str]:
    parts = [f"<h2>{heading}</h2>"] if results else []
    for number, (title, lines) in enumerate(segmentation_tables(results)):
        notes = " ".join(segmentation_notes(results)) if number == 0 else ""
        parts.append(f"<h3>{escape(title)}</h3>")
        parts.append(_table(results, lines, caption=notes))
    if absent := [f"{r.method}: {'; '.join(r.left_out)}" for r in results if r.left_out]:
        items = "".join(f"<li>{escape(line)}</li>" for line in absent)
        parts.append(f"<details><summary>Left out</summary><ul>{items}</ul></details>")
    clean = [r.without_seen for r in results if r.without_seen is not None]
    if clean:
        parts += _segmentation(clean, "Segmentation without the volumes that were seen before")
    return parts


def _table(results: Sequence[EvaluationResult], lines: Sequence[Line], *, caption: str) -> str:
    """A row per line, a column per method; differences to references below each number."""
    head = "".join(f'<th scope="col">{escape(r.method)}</th>' for r in results)
    if named := dict.fromkeys(name for line in lines for name in line.differences):
        caption += f" Differences to {' and '.join(named)} are paired over patients."
    body = []
    for line in lines:
        cells = []
        for number, cell in enumerate(line.cells):
            mark = ' class="best"' if number == line.best else ""
            below = [
                f"<small>{_number(line, found[number], '+')} against {escape(reference)}</small>"
                for reference, found in line.differences.items()
                if found[number] is not None and np.isfinite(found[number].value)
            ]
            cells.append(f"<td{mark}>{_value(line, cell)}{''.join(below)}</td>")
        body.append(f"<tr><td>{escape(line.heading)}</td>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>'
        f'<th scope="col"></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _value(line: Line, cell: Interval) -> str:
    if not np.isfinite(cell.value):
        return "–"
    text = line.text(cell.value)
    if np.isfinite(cell.low):
        text += f"<small>{line.text(cell.low)} to {line.text(cell.high)}</small>"
    return text


def _number(line: Line, cell: Interval, sign: str) -> str:
    text = line.text(cell.value, sign)
    if np.isfinite(cell.low):
        text += f" ({line.text(cell.low, sign)} to {line.text(cell.high, sign)})"
    return text


def _cases(rows: Sequence[CaseRow]) -> str:
    names = ("case", "method", "voxel AP", "found by IoU, by recall", "false positives")
    head = "".join(f'<th scope="col">{n}</th>' for n in (*names, "excess ml", "score"))
    body = []
    for row in rows:
        numbers = (f"{row.ap:.3f}", row.found, f"{row.false_positives:.0f}")
        numbers += (f"{row.excess_ml:.1f}", f"{row.score:.3g}")
        shown = (row.case, row.method, *(n.replace("nan", "–") or "–" for n in numbers))
        body.append(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in shown)}</tr>")
    caption = "Volume by volume, since the patients are too few for intervals."
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


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
