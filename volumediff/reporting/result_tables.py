"""The tables of a report: results of every kind, and the legend of their metrics."""

from collections.abc import Sequence
from functools import partial
from html import escape

from volumediff.evaluation.evaluate import EvaluationResult
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.segmentation_summary import segmentation_notes, segmentation_tables
from volumediff.evaluation.summary import (
    case_table,
    counted,
    false_alarms,
    gap_table,
    group_table,
    measure_table,
    size_table,
    verdicts,
)
from volumediff.evaluation.table_line import Line
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.evaluation.translation_summary import (
    translation_case_lines,
    translation_notes,
    translation_tables,
)
from volumediff.reporting.page_frame import Chapter
from volumediff.reporting.tables import (
    bullets,
    case_table_html,
    gap_table_html,
    legend,
    method_table,
    metrics_of,
)

__all__ = ["legend_chapter", "result_chapters"]


def result_chapters(
    localized: Sequence[MethodResult],
    segmented: Sequence[SegmentationEvaluation],
    translated: Sequence[TranslationEvaluation],
    *,
    groups: str,
) -> list[Chapter]:
    """Results of every kind, each followed by those without what models have seen before.

    Arguments:
        localized, segmented, translated: results
        groups: what the subgroups are
    """
    chapters = []
    for name, title, results, parts in (
        ("localization", "Localization", localized, partial(_localization, groups=groups)),
        ("segmentation", "Segmentation", segmented, _segmentation),
        ("translation", "Translation", translated, _translation),
    ):
        clean = [r.without_seen for r in results if r.without_seen is not None]
        rest = f"{title} without the volumes that a model has seen before"
        chapters += [
            Chapter(name, title, parts(results)),
            Chapter(f"{name}-unseen", rest, parts(clean)),
        ]
    return chapters


def legend_chapter(
    localized: Sequence[MethodResult],
    segmented: Sequence[SegmentationEvaluation],
    translated: Sequence[TranslationEvaluation],
) -> Chapter:
    """An entry for every metric that occurs in the tables."""
    lines: list[Line] = []
    if localized:
        lines += [*group_table(localized), *measure_table(localized), *size_table(localized)]
    for tables in (segmentation_tables(segmented), translation_tables(translated)):
        lines += [line for _, found in tables for line in found]
    return Chapter("metrics", "Metrics explained", legend(metrics_of(lines)) if lines else [])


def _localization(results: Sequence[MethodResult], groups: str) -> list[str]:
    if not results:
        return []
    methods = [r.method for r in results]
    parts = []
    if lines := group_table(results):
        parts += [
            f"<h3>Voxel AP by {escape(groups)}</h3>",
            bullets(verdicts(results), kind="verdict"),
            method_table(methods, lines, first=groups),
        ]
    text = (
        f"{counted(results)} The threshold of the oracle has seen the truth: an upper bound, not "
        "a result. Counts and volumes are means per volume."
    )
    parts += ["<h3>All metrics</h3>", method_table(methods, measure_table(results), caption=text)]
    if known := false_alarms(results):
        parts += ["<h3>False alarms in healthy volumes</h3>", bullets(known)]
    if lines := size_table(results):
        text = "Share of the lesions of each size (their number in brackets) that were found."
        parts += [
            "<h3>Lesions found, by size</h3>",
            method_table(methods, lines, caption=text, first="size of the lesion"),
        ]
    if rows := gap_table(results):
        parts += [f"<h3>Differences by {escape(groups)}</h3>", gap_table_html(rows)]
    if rows := case_table(results):
        parts += ["<h3>Cases in numbers</h3>", case_table_html(rows)]
    return parts + _left_out(results)


def _segmentation(results: Sequence[SegmentationEvaluation]) -> list[str]:
    return _tables(results, segmentation_tables(results), segmentation_notes(results))


def _translation(results: Sequence[TranslationEvaluation]) -> list[str]:
    if not results:
        return []
    tables = [*translation_tables(results), ("Case by case", translation_case_lines(results))]
    return _tables(results, tables, translation_notes(results))


def _tables(
    results: Sequence[EvaluationResult],
    tables: Sequence[tuple[str, Sequence[Line]]],
    notes: Sequence[str],
) -> list[str]:
    """Tables with their titles, the notes below the first."""
    methods = [r.method for r in results]
    parts = []
    for number, (title, lines) in enumerate(tables):
        caption = " ".join(notes) if number == 0 else ""
        parts += [f"<h3>{escape(title)}</h3>", method_table(methods, lines, caption=caption)]
    return parts + _left_out(results)


def _left_out(results: Sequence[EvaluationResult]) -> list[str]:
    """What could not be said, of every method; translations leave nothing out."""
    found = [r for r in results if not isinstance(r, TranslationEvaluation) and r.left_out]
    lines = [f"{r.method}: {'; '.join(r.left_out)}" for r in found]
    if not lines:
        return []
    return [f"<details><summary>Left out</summary>{bullets(lines)}</details>"]
