"""Tables and sentences about evaluated translations, for reports and the terminal."""

from collections.abc import Sequence

import numpy as np

from volumediff.evaluation.leakage import said
from volumediff.evaluation.table_line import Line, paired, plain
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.evaluation.translation_metrics import TRANSLATION_METRICS
from volumediff.metrics.bootstrap import MIN_PATIENTS

__all__ = ["translation_case_lines", "translation_notes", "translation_tables"]

NAN = float("nan")


def translation_tables(
    results: Sequence[TranslationEvaluation],
) -> list[tuple[str, list[Line]]]:
    """Title and rows: channel by channel, then PSNR by group."""
    if not results:
        return []
    rows = [
        _line(results, channel, metric)
        for channel in results[0].channels
        for metric in TRANSLATION_METRICS
        if any(metric in r.channels.get(channel, {}) for r in results)
    ]
    tables = [("Translation", rows)]
    if groups := list(results[0].groups):
        lines = [
            Line(g, TRANSLATION_METRICS["psnr"], [r.groups.get(g, plain(NAN)) for r in results])
            for g in groups
        ]
        tables.append(("PSNR by group", lines))
    return tables


def _line(results: Sequence[TranslationEvaluation], channel: str, name: str) -> Line:
    metric, first = TRANSLATION_METRICS[name], results[0].method
    to_others = [
        {other: found.get(channel, {}).get(name) for other, found in r.differences.items()}
        for r in results
    ]
    to_first = [found.get(first) for found in to_others]
    return Line(
        f"{channel} {metric.title}".strip(),
        metric,
        [r.channels.get(channel, {}).get(name, plain(NAN)) for r in results],
        {first: to_first} if any(to_first) else {},
        paired([r.method for r in results], to_others),
    )


def translation_case_lines(results: Sequence[TranslationEvaluation]) -> list[Line]:
    """PSNR and SSIM of every case, a row each."""
    lines = []
    for number, one in enumerate(results[0].cases if results else ()):
        for channel, metrics in one.channels.items():
            for name in metrics:
                metric = TRANSLATION_METRICS[name]
                values = [r.cases[number].channels[channel][name] for r in results]
                heading = f"{one.case}, {channel} {metric.title}"
                lines.append(Line(heading, metric, [plain(value) for value in values]))
    return lines


def translation_notes(results: Sequence[TranslationEvaluation]) -> list[str]:
    """What the metrics stand on, one sentence each."""
    if not results:
        return []
    cases = results[0].cases
    patients = len({c.patient for c in cases})
    nouns = ("case" if len(cases) == 1 else "cases", "patient" if patients == 1 else "patients")
    intervals = (
        "intervals are 95 % over patients (bootstrap), differences are paired."
        if patients >= MIN_PATIENTS
        else f"fewer than {MIN_PATIENTS}: no interval is given."
    )
    lines = [
        f"{len(cases)} {nouns[0]} of {patients} {nouns[1]}; {intervals}",
        "PSNR and SSIM are inside of the brain mask, or of the foreground where there is none; "
        "both images are brought to [0, 1] by their quantiles 0.005 and 0.995 there, so that the "
        "range of the data is 1.",
    ]
    empty = sum(np.isnan(c.lesions.get("lesion_dice", 0.0)) for c in cases)
    if empty:
        lines.append(f"In {empty} of them nothing was segmented: they have no lesion Dice.")
    return lines + said([r.leakage for r in results])
