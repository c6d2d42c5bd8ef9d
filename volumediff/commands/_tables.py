"""Tables on the terminal."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from volumediff.commands._console import show_table, terminal
from volumediff.commands._doctor import Check
from volumediff.evaluation.generation import GenerationEvaluation
from volumediff.evaluation.generation_summary import (
    copy_lines,
    generation_columns,
    generation_notes,
    generation_table,
)
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.segmentation_summary import segmentation_notes, segmentation_tables
from volumediff.evaluation.summary import (
    CaseRow,
    GapRow,
    case_table,
    confounded_lines,
    coverage,
    gap_table,
    group_table,
    measure_table,
    size_table,
    verdicts,
    without_seen,
)
from volumediff.evaluation.table_line import Line
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.evaluation.translation_summary import (
    translation_case_lines,
    translation_notes,
    translation_tables,
)
from volumediff.metrics.bootstrap import Interval
from volumediff.planning.overhead import OVERHEAD
from volumediff.terminal.progress import duration

if TYPE_CHECKING:
    from volumediff.planning.planner import Plan, Traced
    from volumediff.planning.profile import Profile

__all__ = [
    "by_group",
    "checks",
    "generated",
    "measures",
    "policies",
    "profiled",
    "segmented",
    "translated",
]

COLOURS = {"error": "red", "problem": "red", "warning": "yellow", "note": "yellow"}
WIDE = 200  # columns where there is no terminal: lines are for files and programs then
NARROW = 80  # columns of tables that people read, in files, too
CELL = 14  # columns of a method: "-0.015..+0.113"


def measures(results: Sequence[MethodResult]) -> None:
    """One row per measure, one column per method; then lesions by size, voxel AP by group.

    Below, the same rows as differences to each reference. As many methods stand side by side as
    fit the terminal. Where volumes were seen before, all of it again without them.
    """
    console = terminal(NARROW)
    for title, lines in (
        ("", measure_table(results)),
        ("Lesions found, by size", size_table(results)),
        ("Voxel AP by group", group_table(results)),
    ):
        _lines(console, [r.method for r in results], lines, title)
    if rows := case_table(results):
        _cases(console, rows)
    if gaps := gap_table(results):
        _gaps(console, gaps)
    console.print(coverage(results))
    for line in confounded_lines(results):
        console.print(line)
    if clean := without_seen(results):
        console.print("\nWithout the volumes that were seen before:")
        measures(clean)


def by_group(results: Sequence[MethodResult], title: str) -> None:
    """Voxel AP by group, then what it says about the methods."""
    console = terminal(NARROW)
    _lines(console, [r.method for r in results], group_table(results), title)
    for line in verdicts(results):
        console.print(line)


def segmented(results: Sequence[SegmentationEvaluation]) -> None:
    """One row per metric, mean over labels; then the labels, and what everything stands on.

    Below, the same rows as differences to the first method.
    """
    console = terminal(NARROW)
    methods = [r.method for r in results]
    for title, lines in segmentation_tables(results):
        _lines(console, methods, lines, title)
    for line in segmentation_notes(results):
        console.print(line)
    if clean := [r.without_seen for r in results if r.without_seen is not None]:
        console.print("\nWithout the volumes that were seen before:")
        segmented(clean)


def generated(results: Sequence[GenerationEvaluation]) -> None:
    """One row per measure; then what looks like a copy, and what everything stands on."""
    console = terminal(NARROW)
    _lines(console, generation_columns(results), generation_table(results), "")
    for line in (*(c for r in results for c in copy_lines(r)), *generation_notes(results)):
        console.print(line)


def translated(results: Sequence[TranslationEvaluation]) -> None:
    """One row per channel and metric, one column per method; then case by case.

    Below, the same rows as differences to the first method.
    """
    console = terminal(NARROW)
    methods = [r.method for r in results]
    for title, lines in translation_tables(results):
        _lines(console, methods, lines, title)
    _lines(console, methods, translation_case_lines(results), "Case by case")
    for line in translation_notes(results):
        console.print(line)
    if clean := [r.without_seen for r in results if r.without_seen is not None]:
        console.print("\nWithout the cases that were seen before:")
        translated(clean)


def _lines(console: Console, methods: Sequence[str], lines: Sequence[Line], title: str) -> None:
    """Values, then the differences to each reference, in blocks of methods."""
    if not lines:
        return
    console.print(title or "Values", style="bold")
    everyone = list(range(len(methods)))
    _block(console, methods, lines, everyone, lambda line, i: _cell(line, line.cells[i]))
    for reference in dict.fromkeys(name for line in lines for name in line.differences):
        others = [i for i in everyone if methods[i] != reference]
        rows = [line for line in lines if any(line.differences.get(reference, ()))]
        if rows:
            console.print(f"{title or 'Values'}: minus {reference}, paired", style="bold")
            _block(
                console,
                methods,
                rows,
                others,
                lambda line, i, of=reference: _cell(line, line.differences[of][i], sign="+"),
            )


def _block(
    console: Console,
    methods: Sequence[str],
    lines: Sequence[Line],
    chosen: Sequence[int],
    cell: Callable[[Line, int], str],
) -> None:
    heading = max(len(line.heading) for line in lines)
    fit = max(1, (console.width - heading) // (CELL + 1))
    for start in range(0, len(chosen), fit):
        shown = chosen[start : start + fit]
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for i in shown:
            table.add_column(methods[i], justify="right", width=CELL, overflow="fold")
        for line in lines:
            table.add_row(line.heading, *(cell(line, i) for i in shown))
        show_table(console, table)


def _cell(line: Line, value: Interval | None, sign: str = "") -> str:
    """The number, and its interval in a second line."""
    if value is None or not np.isfinite(value.value):
        return "-"
    text = line.text(value.value, sign)
    if not np.isfinite(value.low):
        return text
    return f"{text}\n{line.text(value.low, sign)}..{line.text(value.high, sign)}"


def _cases(console: Console, rows: Sequence[CaseRow]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("case", "method"):
        table.add_column(name, overflow="fold")
    for name in ("AP", "found", "false", "excess ml", "score"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{row.ap:.3f}", row.found, f"{row.false_positives:.0f}")
        numbers += (f"{row.excess_ml:.1f}", f"{row.score:.3g}")
        table.add_row(row.case, row.method, *(n.replace("nan", "-") or "-" for n in numbers))
    console.print("Cases (found by IoU, by recall)", style="bold")
    show_table(console, table)


def _gaps(console: Console, rows: Sequence[GapRow]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("metric", "method", "worst subgroup"):
        table.add_column(name, overflow="fold")
    for name in ("its value", "gap", "by chance"):
        table.add_column(name, justify="right")
    for row in rows:
        text = row.metric.notation.text
        gap = text(row.gap.value)
        if np.isfinite(row.gap.low):
            gap += f"\n{text(row.gap.low)}..{text(row.gap.high)}"
        table.add_row(
            row.metric.title, row.method, row.worst, text(row.worst_value), gap,
            text(row.chance) or "-",
        )  # fmt: skip
    console.print("Gap between the best and the worst subgroup", style="bold")
    show_table(console, table)


def checks(found: Sequence[Check]) -> None:
    """What `doctor` found."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(2):
        table.add_column()
    table.add_column(overflow="fold")
    for line in found:
        table.add_row(line.state, line.name, line.message, style=COLOURS.get(line.state))
    terminal(WIDE).print(table)


def policies(found: "Plan") -> None:
    """What `plan` found: a row per policy, a row per stage of the chosen one, and what to do."""
    table = Table(box=None, pad_edge=False)
    for name in ("policy", "live GB", "card GB", "host GB", "peak in", ""):
        table.add_column(name, justify="right" if name.endswith("GB") else "left")
    for tried in found.tried:
        chosen = tried is found.chosen
        fits = "" if found.vram_gb is None or tried.card_gb <= found.vram_gb else "does not fit"
        figures = (f"{n:.2f}" for n in (tried.peak_gb, tried.card_gb, tried.host_gb))
        note = "chosen" if chosen and not fits else fits
        style = "bold" if chosen else None
        table.add_row(_policy(tried), *figures, tried.stage, note, style=style)
    console = terminal(WIDE)
    show_table(console, table)
    console.print(f"\nStages with {_policy(found.chosen)}, in GB:")
    show_table(console, _stages(found.chosen))
    console.print()
    for line in _sentences(found):
        console.print(line, soft_wrap=True)


def _policy(traced: "Traced") -> str:
    policy = traced.policy
    parts = [policy.dtype, "channels last"] if policy.channels_last else [policy.dtype]
    parts += ["fused"] if policy.fused else []
    if policy.checkpoint:
        levels = "" if policy.checkpoint is True else f" on {policy.checkpoint} levels"
        parts.append(f"recomputed{levels}")
    parts += [] if policy.slab is None else [f"slabs of {policy.slab}"]
    return ", ".join([*parts, "offloaded"] if policy.offload else parts)


def _stages(traced: "Traced") -> Table:
    table = Table(box=None, pad_edge=False)
    first = next(iter(traced.stages.values()))
    for name in ("stage", "live", *first.parts, "host"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, peak in traced.stages.items():
        sizes = (peak.device, *peak.parts.values(), peak.host)
        style = "bold" if name == traced.stage else None
        table.add_row(name, *(f"{size / 1e9:.2f}" for size in sizes), style=style)
    return table


def _sentences(found: "Plan") -> list[str]:
    chosen, beside = found.chosen, found.beside
    shared = found.config.processes.domain
    of = f" of each of the {shared} processes that share a volume" if shared > 1 else ""
    lines = [f"{found.mode}: {chosen.card_gb:.1f} GB of card memory{of}, at most"]
    if found.fits is not None:
        verdict = "fits" if found.fits else "nothing fits"
        lines[0] += f"; {verdict} into {found.vram_gb:g} GB"
    lines += [f"what would fit: {remedy}" for remedy in found.remedies]
    if not chosen.in_32_bits:
        lines.append(
            f"convolutions work on {chosen.indexed / 2**31:.1f} × 2³¹ elements at once, which "
            "needs cuDNN 9.3 or newer; thinner slabs (memory.slab) avoid it"
        )
    lines.append(f"(card = live + {OVERHEAD.source})")
    workers = f", with {beside.workers} loader workers of {beside.worker_gb:.1f} GB each"
    lines.append(
        f"host memory: {beside.host_gb:.1f} GB{workers if beside.workers else ''}, of which "
        f"{beside.offload_gb:.1f} GB for the policy"
    )
    if found.mode == "train":
        total = ""
        if beside.cases is not None:
            total = f" ({beside.cases * beside.cache_gb:.1f} GB for {beside.cases})"
        lines.append(
            f"disk: {beside.cache_gb:.3f} GB of cache per volume{total}, "
            f"{beside.checkpoints_gb:.1f} GB of checkpoints"
        )
        hours = "not known yet; available after 20 training steps"
        if beside.hours is not None:
            spent = duration(beside.hours * 3600)
            hours = f"{spent} for {beside.steps} steps of {beside.seconds:.2f} s"
        lines.append(f"time: {hours}")
    return lines


def profiled(found: "Profile") -> None:
    """What `profile` measured, beside the plan."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "live GB", "planned GB", "s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, peak in found.measured.stages.items():
        planned = found.planned.stages[name].device
        cells = (f"{peak.device / 1e9:.3f}", f"{planned / 1e9:.3f}", f"{found.seconds[name]:.3f}")
        style = "bold" if name == found.measured.stage else None
        table.add_row(name, *cells, style=style)
    console = terminal(WIDE)
    show_table(console, table)
    ratio = found.planned.peak_gb / found.measured.peak_gb
    lines = [
        f"{found.mode} on {found.device}: {found.step_seconds:.3f} s per step, live peak "
        f"{found.measured.peak_gb:.3f} GB, {ratio:.1%} of it planned",
        f"resident size of the process: {found.rss_gb[0]:.2f} GB, {found.rss_gb[1]:.2f} GB before",
    ]
    if found.allocated_gb is not None and found.reserved_gb is not None:
        lines.append(
            f"CUDA: {found.allocated_gb:.2f} GB allocated, {found.reserved_gb:.2f} GB reserved, "
            f"{found.planned.card_gb:.2f} GB of card planned"
        )
    for line in lines:
        console.print(line, soft_wrap=True)
