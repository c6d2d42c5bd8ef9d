"""The cases of a report: a page for each and its row in the list, one case in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.read_policy import ReadPolicy
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.localization_metrics import LOCALIZATION_METRICS
from volumediff.evaluation.measure import Measured
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.segmentation_metrics import SEGMENTATION_METRICS
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.evaluation.translation_metrics import TRANSLATION_METRICS
from volumediff.evaluation.truths import Truth
from volumediff.metrics.definition import MetricDefinition, Notation
from volumediff.reporting.case_list import CaseColumn, ListedCase, case_list
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.panel import case_panel, label_panel
from volumediff.reporting.segmentation_views import label_views
from volumediff.reporting.thumbnails import thumbnail
from volumediff.reporting.translation_page import translation_panel, translation_views
from volumediff.reporting.views import views_of

__all__ = ["localized_list", "segmented_list", "translated_list"]

# Metrics of a segmented case in the list, means over its labels.
SEGMENTED = ("dice", "nsd", "hd95_mm", "volume_error_ml")
NAN = float("nan")
Value = tuple[float, str]


class Shown(NamedTuple):
    """What the list shows of a case that has a page."""

    page: str
    thumbnail: bytes


def localized_list(
    pages: CasePages, results: Sequence[MethodResult], truths: Mapping[str, Truth], *, groups: str
) -> list[str]:
    """HTML of the list of localized cases; writes their pages.

    Arguments:
        pages: of the report
        results: of the methods; the columns are about the first
        truths: of the cases
        groups: what the subgroups are
    """
    main, others = results[0], results[1:]
    columns = [
        CaseColumn("lesions", "Number of lesions in the truth."),
        *(_column(LOCALIZATION_METRICS["voxel_ap"], r.method) for r in results),
        CaseColumn("lesions found", LOCALIZATION_METRICS["found_by_iou"].explanation),
        _column(LOCALIZATION_METRICS["false_positives"]),
        _column(LOCALIZATION_METRICS["excess_ml"]),
        CaseColumn("volume score", "Score of the whole volume; higher is more abnormal."),
    ]
    rows = []
    for number, c in enumerate(main.cases):
        aps = [c.ap, *(r.cases[number].ap for r in others)]
        kind = c.group or ("with lesions" if c.abnormal else "healthy")
        rows.append(ListedCase(c.case, kind=kind, values=_localized(c, aps)))
    known = [c.case for c in main.cases if c.case in truths and truths[c.case].image is not None]
    shown: dict[str, Shown] = {}
    for view in views_of(results, truths, known):
        scene = view.scene()
        pages.write(scene, body=case_panel(view), outputs=view.files)
        shown[view.title] = Shown(pages.address(scene.title), thumbnail(scene))
    name = groups if any(c.group for c in main.cases) else "truth"
    return case_list(_with_pages(rows, shown), columns, kinds=name)


def _localized(c: Measured, aps: Sequence[float]) -> list[Value]:
    text = Notation.COUNT.text
    there = found = wrong = excess = NAN
    if c.lesions is not None:
        there, found = float(len(c.lesions.volumes_ml)), float(sum(c.lesions.by_iou))
        wrong, excess = float(c.lesions.false_positives), c.lesions.excess_ml
    return [
        (there, text(there)),
        *((ap, Notation.SHARE.text(ap)) for ap in aps),
        (found, text(found)),
        (wrong, text(wrong)),
        (excess, Notation.AMOUNT.text(excess)),
        (c.score, Notation.AMOUNT.text(c.score)),
    ]


def segmented_list(
    pages: CasePages,
    results: Sequence[SegmentationEvaluation],
    truths: Mapping[str, Truth],
    *,
    groups: str,
) -> list[str]:
    """HTML of the list of segmented cases, the lowest Dice first; writes their pages.

    Arguments: as for `localized_list`
    """
    columns = [_column(SEGMENTATION_METRICS[m], r.method) for r in results for m in SEGMENTED]
    rows = []
    for number, c in enumerate(results[0].cases):
        values = [
            _value(
                SEGMENTATION_METRICS[m],
                _mean(row[m] for row in r.cases[number].agreement.values()),
            )
            for r in results
            for m in SEGMENTED
        ]
        rows.append(ListedCase(c.case, kind=c.group, values=values))
    rows.sort(key=lambda row: np.nan_to_num(row.values[0][0], nan=np.inf))
    known = [r.case for r in rows if r.case in truths and truths[r.case].image is not None]
    shown: dict[str, Shown] = {}
    for view in label_views(results, truths, known):
        # a case that was localized, too, has two pages
        scene = replace(view.scene(), title=f"{view.title}, segmentation")
        pages.write(scene, body=label_panel(view), outputs=view.files)
        shown[view.title] = Shown(pages.address(scene.title), thumbnail(scene))
    return case_list(_with_pages(rows, shown), columns, kinds=groups)


def translated_list(
    pages: CasePages,
    results: Sequence[TranslationEvaluation],
    measured: Mapping[str, Case],
    policy: ReadPolicy,
    *,
    groups: str,
) -> list[str]:
    """HTML of the list of translated cases; writes their pages.

    Arguments:
        pages: of the report
        results: of the methods
        measured: case -> measured channels
        policy: decisions on ambiguous files
        groups: what the subgroups are
    """
    channels = list(results[0].channels)
    named = [channel for channel in channels if channel]
    metrics = ("psnr", "ssim")
    columns = [
        _column(TRANSLATION_METRICS[m], r.method, channel)
        for r in results
        for channel in named
        for m in metrics
    ]
    rows = []
    for number, c in enumerate(results[0].cases):
        values = [
            _value(TRANSLATION_METRICS[m], r.cases[number].channels.get(channel, {}).get(m, NAN))
            for r in results
            for channel in named
            for m in metrics
        ]
        rows.append(ListedCase(c.case, kind=c.group, values=values))
    shown: dict[str, Shown] = {}
    for view in translation_views(results, measured, policy, [row.case for row in rows]):
        scene = view.scene()
        pages.write(scene, body=translation_panel(view), outputs=view.files)
        shown[view.title] = Shown(pages.address(scene.title), thumbnail(scene))
    return case_list(_with_pages(rows, shown), columns, kinds=groups)


def _with_pages(rows: Sequence[ListedCase], shown: Mapping[str, Shown]) -> list[ListedCase]:
    """Rows with thumbnails and links, where a case has a page."""
    return [
        replace(row, page=found.page, thumbnail=found.thumbnail)
        if (found := shown.get(row.case))
        else row
        for row in rows
    ]


def _column(metric: MetricDefinition, *of: str) -> CaseColumn:
    return CaseColumn(", ".join([metric.title.strip(), *of]), metric.explanation)


def _value(metric: MetricDefinition, value: float) -> Value:
    return value, metric.notation.text(value)


def _mean(values: Iterator[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else NAN
