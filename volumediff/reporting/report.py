"""report.html: an index that opens from disk with no network, and a page for every case beside it.

The index holds what came out, in sentences first, then in tables and curves, and the list of all
cases with thumbnails. Pages of cases lie in report_cases/.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec
from volumediff.evaluation.baselines import against_baselines
from volumediff.evaluation.evaluate import (
    EvaluationResult,
    localizations,
    segmentations,
    translations,
)
from volumediff.evaluation.segmentation_summary import segmentation_notes
from volumediff.evaluation.summary import confounded_lines, counted, false_alarms, seen_lines
from volumediff.evaluation.translation import measured_cases
from volumediff.evaluation.translation_summary import translation_notes
from volumediff.evaluation.truths import find_truths
from volumediff.outputs.export import finite
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.panel import figure_of
from volumediff.reporting.report_cases import localized_list, segmented_list, translated_list
from volumediff.reporting.result_tables import legend_chapter, result_chapters
from volumediff.reporting.tables import bullets
from volumediff.storage.atomic import atomic

__all__ = ["report_of", "settings_chapter"]

LIST = (
    "Every case has a page of its own with a viewer; a click on a heading sorts the list. The "
    "pictures show the axial slice at which the viewer opens, with the patient's right on their "
    "left."
)


def report_of(
    path: Path | str,
    results: Sequence[EvaluationResult],
    truth: Path | str,
    *,
    by: str | None = None,
    layout: Spec = AUTO,
    policy: ReadPolicy | None = None,
    pictures: Sequence[tuple[str, Path]] = (),
    title: str | None = None,
    lead: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """The report of an evaluation.

    Arguments:
        path: of the index
        results: of the methods, the one in question first
        truth: data set with masks and images, or with measured channels
        by: attribute that made the subgroups
        layout: of the truth
        policy: decisions on ambiguous files of the truth
        pictures: caption and PNG file of each curve
        title: of the index; None names the task and the method
        lead: paragraphs under the title; without any it says what the first method is
        manifest: settings and versions; None takes those of the methods
    """
    path, groups = Path(path), by or "group"
    maps, labels, drawn = localizations(results), segmentations(results), translations(results)
    truths = {} if drawn else find_truths(truth, layout, policy)
    chapters = [Chapter("summary", "Summary", _summary(results))]
    chapters += result_chapters(maps, labels, drawn, groups=groups)
    with CasePages(path) as pages:
        if maps:
            parts = localized_list(pages, maps, truths, groups=groups)
            chapters.append(Chapter("cases", "Cases", [f"<p>{escape(LIST)}</p>", *parts]))
        if labels:
            parts = segmented_list(pages, labels, truths, groups=groups)
            title_of = "Segmented cases, from the lowest Dice on"
            chapters.append(Chapter("segmented", title_of, [f"<p>{escape(LIST)}</p>", *parts]))
        if drawn:
            cases = measured_cases(truth, layout)
            parts = translated_list(pages, drawn, cases, policy or ReadPolicy(), groups=groups)
            chapters.append(Chapter("translated", "Cases", [f"<p>{escape(LIST)}</p>", *parts]))
    plots = [figure_of(file.read_bytes(), caption, kind="plot") for caption, file in pictures]
    chapters += [
        Chapter("curves", "Curves", ['<div class="plots">', *plots, "</div>"] if plots else []),
        legend_chapter(maps, labels, drawn),
        settings_chapter(manifest or {r.method: r.facts for r in results}),
    ]
    task = "Anomaly localization" if maps else "Translation" if drawn else "Segmentation"
    text = framed(
        title or f"{task}: {results[0].method}",
        chapters,
        lead=lead or [_about(results[0])],
    )
    with atomic(path) as file:
        file.write(text.encode())


def settings_chapter(manifest: Mapping[str, Any]) -> Chapter:
    """Settings, weights and versions as JSON, folded."""
    text = json.dumps(finite(manifest), indent=1)
    return Chapter(
        "settings",
        "Settings and versions",
        [
            "<details><summary>Settings, weights and versions of every method</summary>"
            f"<pre>{escape(text)}</pre></details>"
        ],
    )


def _about(result: EvaluationResult) -> str:
    if translations([result]):
        return "Translated channels are synthetic images."
    if segmentations([result]):
        return f"{result.method}: segmentations compared with the labels of the data set."
    return (
        f"{result.method}: {result.facts.get('scope', 'no scope given')}. Supervision: "
        f"{result.facts.get('supervision', 'unknown')}."
    )


def _summary(results: Sequence[EvaluationResult]) -> list[str]:
    """What was compared and what came out in sentences, then what a reader has to know of it."""
    maps, labels, drawn = localizations(results), segmentations(results), translations(results)
    lines = []
    for kind, found in (("localization", maps), ("segmentation", labels), ("translation", drawn)):
        if found:
            noun = "One method" if len(found) == 1 else f"{len(found)} methods"
            lines.append(f"{noun} of {kind}: {', '.join(r.method for r in found)}.")
    warnings = []
    if maps:
        lines += [counted(maps), *against_baselines(maps)]
        lines += [f"False alarms of {line}." for line in false_alarms(maps)[:1]]
        warnings += [*confounded_lines(maps), *seen_lines(maps)]
    lines += [*segmentation_notes(labels)[:1], *translation_notes(drawn)[:1]]
    return [bullets(lines), *([bullets(warnings, kind="caution")] if warnings else [])]
