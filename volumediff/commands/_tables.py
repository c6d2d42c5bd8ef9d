"""Tables on the terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from volumediff.commands._doctor import Check
from volumediff.data.check import CheckLine
from volumediff.evaluation.evaluate import MethodResult
from volumediff.evaluation.summary import (
    coverage,
    gap_lines,
    group_table,
    measure_table,
    size_table,
    without_seen,
)
from volumediff.metrics.bootstrap import Interval
from volumediff.planning.overhead import OVERHEAD

if TYPE_CHECKING:
    from volumediff.planning.planner import Plan, Traced
    from volumediff.planning.profile import Profile

__all__ = ["checks", "findings", "measures", "policies", "profiled"]

COLOURS = {"error": "red", "problem": "red", "warning": "yellow", "note": "yellow"}
WIDE = 200  # columns where there is no terminal: lines are for files and programs then


def _console() -> Console:
    width = None if sys.stdout.isatty() else WIDE
    return Console(width=width, highlight=False, markup=False)


def findings(rows: Sequence[CheckLine]) -> None:
    """The rows of `check`, then one line with their counts."""
    table = Table(box=None, pad_edge=False)
    for name in ("case", "file", "", "code", "message"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = COLOURS.get(row.severity)
        table.add_row(row.case, row.file, row.severity, row.code, row.message, style=style)
    console = _console()
    console.print(table)
    count = {s: sum(r.severity == s for r in rows) for s in ("error", "warning")}
    files = sum(r.code == "summary" for r in rows)
    console.print(f"{files} readable files, {count['error']} errors, {count['warning']} warnings")


def measures(results: Sequence[MethodResult]) -> None:
    """One row per measure, one column per method; then lesions by size, voxel AP by group.

    Where volumes were seen before, the same again without them.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for r in results:
        table.add_column(r.method, justify="right")
    for heading, cells in measure_table(results)[0]:
        table.add_row(heading, *(_cell(c) for c in cells))
    for heading, cells in size_table(results)[0]:
        table.add_row(f"  {heading}", *(_cell(c) for c in cells))
    columns, rows, _ = group_table(results)
    for i, group in enumerate(columns[1:], start=1):
        table.add_row(f"  voxel AP, {group}", *(_cell(cells[i]) for _, cells in rows))
    console = _console()
    console.print(table)
    console.print(coverage(results))
    for line in gap_lines(results):
        console.print(line, soft_wrap=True)
    if clean := without_seen(results):
        console.print("\nWithout the volumes that were seen before:")
        measures(clean)


def _cell(value: Interval) -> str:
    if not np.isfinite(value.value):
        return "-"
    text = f"{value.value:.3f}"
    return f"{text} ({value.low:.3f}-{value.high:.3f})" if np.isfinite(value.low) else text


def checks(found: Sequence[Check]) -> None:
    """What `doctor` found."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(2):
        table.add_column()
    table.add_column(overflow="fold")
    for line in found:
        table.add_row(line.state, line.name, line.message, style=COLOURS.get(line.state))
    _console().print(table)


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
    console = _console()
    console.print(table)
    console.print(f"\nStages with {_policy(found.chosen)}, in GB:")
    console.print(_stages(found.chosen))
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
    lines = [f"{found.mode}: {chosen.card_gb:.1f} GB of card memory, at most"]
    if found.fits is not None:
        verdict = "fits" if found.fits else "nothing fits"
        lines[0] += f"; {verdict} into {found.vram_gb:g} GB"
    lines += [f"what would fit: {remedy}" for remedy in found.remedies]
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
            hours = f"{beside.hours:.1f} hours for {beside.steps} steps of {beside.seconds:.2f} s"
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
    console = _console()
    console.print(table)
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
