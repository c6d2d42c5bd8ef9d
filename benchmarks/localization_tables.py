"""Markdown tables and the heat-map of the localization benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from localization_runs import LEFT_OUT, RUNS

from volumediff.metrics.bootstrap import bootstrap
from volumediff.metrics.detection import volume_auroc

__all__ = ["heat_map", "latest", "tables"]

Results = Sequence[Mapping[str, Any]]
GROUPS = ("glioma", "ms-real", "stroke", "ms", "synthetic")
BASELINES = ("intensity", "intensity_dark", "smoothing", "atlas")
REPLICATES = 2000
# What is compared, the run with it, the run without it, and their row.
ABLATIONS = (
    ("atlas as a condition", "wavelet-synthetic", "wavelet-synthetic-alone", "synthetic"),
    ("atlas as a condition", "wavelet", "wavelet-alone", "scan"),
    ("rectified flow in place of v", "wavelet-flow", "wavelet-alone", "scan"),
    ("rectified flow in place of v", "wavelet-flow", "wavelet-alone", "ddpm_z"),
    ("layers through the plane", "pseudo3d-synthetic", "slices-synthetic", "synthetic"),
    ("full resolution", "wavelet-synthetic", "half-synthetic", "synthetic"),
)


def latest(results: Results) -> Results:
    """Of every volume the last result, with the last weights of each run."""
    weights = {r["run"]: r["weights"] for r in results}
    kept = {
        (r["run"], r["row"], r["suite"], r["case"]): r
        for r in results
        if r["weights"] == weights[r["run"]]
    }
    return list(kept.values())


def tables(results: Results) -> str:
    """Everything there is to print."""
    makers = (main, against, ablations, cost, steps, students, kinds, left_out, real)
    return "\n\n".join([table(results) for table in makers])


def _methods(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["run"], r["row"]) for r in results))


def _of(results: Results, method: tuple[str, str], suite: str) -> list[Mapping[str, Any]]:
    return [r for r in results if (r["run"], r["row"]) == method and r["suite"] == suite]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _interval(rows: Results, name: str, sign: str = "") -> str:
    if not rows:
        return ""
    patients = [r["patient"] for r in rows]
    i = bootstrap([r[name] for r in rows], _mean, patients=patients, replicates=REPLICATES)
    if not np.isfinite(i.low):  # too few patients
        return f"{i.value:{sign}.3f}"
    return f"{i.value:{sign}.3f} ({i.low:{sign}.3f} to {i.high:{sign}.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main(results: Results) -> str:
    """Voxel AP by group, mean over volumes with its interval over patients."""
    rows = [
        [*m, next(r["supervision"] for r in results if (r["run"], r["row"]) == m)]
        + [_interval(_of(results, m, g), "ap") for g in GROUPS]
        for m in _methods(results)
    ]
    return "Voxel AP\n\n" + _table(["run", "row", "supervision", *GROUPS], rows)


def against(results: Results) -> str:
    """Difference of every row to the best baseline of each group, paired by volume."""
    lines = []
    for m in _methods(results):
        if m[1] in BASELINES or m[1] == "prevalence":
            continue
        cells = []
        for group in GROUPS:
            ours = {r["case"]: r for r in _of(results, m, group)}
            rivals = [(b, _of(results, b, group)) for b in _methods(results) if b[1] in BASELINES]
            rivals = [(b, rows) for b, rows in rivals if rows]
            if not ours or not rivals:
                cells.append("")
                continue
            name, best = max(rivals, key=lambda pair: _mean([r["ap"] for r in pair[1]]))
            shared = [r for r in best if r["case"] in ours]
            gains = [{**r, "gain": ours[r["case"]]["ap"] - r["ap"]} for r in shared]
            cells.append(f"{_interval(gains, 'gain', '+')} vs {name[1]}")
        lines.append([*m, *cells])
    return "AP minus that of the best baseline of the group\n\n" + _table(
        ["run", "row", *GROUPS], lines
    )


def ablations(results: Results) -> str:
    """AP with something minus AP without it, paired by volume."""
    lines = []
    for what, with_it, without, row in ABLATIONS:
        cells = []
        for group in GROUPS:
            there = {r["case"]: r for r in _of(results, (with_it, row), group)}
            rows = [r for r in _of(results, (without, row), group) if r["case"] in there]
            gains = [{**r, "gain": there[r["case"]]["ap"] - r["ap"]} for r in rows]
            cells.append(_interval(gains, "gain", "+"))
        if any(cells):
            lines.append([what, with_it, row, *cells])
    return "What it buys: AP with it minus AP without\n\n" + _table(
        ["what", "run", "row", *GROUPS], lines
    )


def left_out(results: Results) -> str:
    """AP by kind of detectors that never saw one kind of training anomaly."""
    names = list(dict.fromkeys(r["kind"] for r in results if r["suite"] == "synthetic"))
    lines = []
    for kind in (None, *LEFT_OUT):
        run = "mood" if kind is None else f"mood-without-{kind}"
        rows = _of(results, (run, "synthetic"), "synthetic")
        if not rows:
            continue
        cells = []
        for name in names:
            ap = _mean([r["ap"] for r in rows if r["kind"] == name])
            cells.append(f"**{ap:.3f}**" if kind and name in LEFT_OUT[kind] else f"{ap:.3f}")
        stroke = _interval(_of(results, (run, "synthetic"), "stroke"), "ap")
        lines.append([kind or "nothing", *cells, f"{_mean([r['ap'] for r in rows]):.3f}", stroke])
    title = "One kind left out of training (bold: the kinds of the tests that are most like it)"
    return f"{title}\n\n" + _table(["left out", *names, "mean", "stroke shapes"], lines)


def cost(results: Results) -> str:
    """Three thresholds, false alarms, detection of volumes and cost, over all lesions."""
    lines = []
    for m in _methods(results):
        sick = [r for g in GROUPS for r in _of(results, m, g)]
        healthy = _of(results, m, "healthy")
        pairs = [(r["score"], True) for r in sick if r["suite"] in ("stroke", "ms", "synthetic")]
        pairs += [(r["score"], False) for r in healthy]
        auroc = (
            volume_auroc([s for s, _ in pairs], [y for _, y in pairs])
            if healthy and sick
            else np.nan
        )
        figures = [(sick, n, 3) for n in ("dice_healthy_fpr", "dice_validation", "best_dice")]
        figures += [(healthy, "false_alarms", 3)]
        later = [(sick, "calls", 0), (sick, "seconds", 2)]
        cells = [_figure(rows, name, digits) for rows, name, digits in figures]
        more = [_figure(rows, name, digits) for rows, name, digits in later]
        lines.append([*m, *cells, "" if np.isnan(auroc) else f"{auroc:.2f}", *more])
    head = ["run", "row", "Dice, healthy FPR 5 %", "Dice, validation", "best Dice (oracle)"]
    head += ["FPR of held-out healthy", "volume AUROC", "calls", "s per volume"]
    return "Thresholds and cost\n\n" + _table(head, lines)


def _figure(rows: Results, name: str, digits: int) -> str:
    """Mean of a figure where it was measured."""
    values = [r[name] for r in rows if r.get(name) is not None]
    return f"{_mean(values):.{digits}f}" if values else ""


def steps(results: Results) -> str:
    """Few steps against the paper's number of them, on the volumes that both saw."""
    lines = []
    for run, row in _methods(results):
        if not row.endswith("_few"):
            continue
        few, paper = (
            {(r["suite"], r["case"]): r for r in results if (r["run"], r["row"]) == (run, name)}
            for name in (row, row.replace("_few", "_paper"))
        )
        shared = [place for place in few if place in paper]
        if not shared:
            continue
        gains = [{**few[p], "gain": few[p]["ap"] - paper[p]["ap"]} for p in shared]
        cells = [
            f"{_mean([each[place][name] for place in shared]):{digits}}"
            for name, digits in (("ap", ".3f"), ("calls", ".0f"), ("seconds", ".1f"))
            for each in (few, paper)
        ]
        difference = _interval(gains, "gain", "+")
        name = row.removesuffix("_few")
        lines.append([name, str(len(shared)), *cells[:2], difference, *cells[2:]])
    head = ["row", "volumes", "AP, few", "AP, paper", "difference", "calls, few", "calls, paper"]
    return "Few steps\n\n" + _table([*head, "s, few", "s, paper"], lines)


def students(results: Results) -> str:
    """Students against the runs that they go back to, on the volumes that both saw."""
    lines = []
    for run, row in _methods(results):
        if not row.endswith("_student"):
            continue
        name, teacher = row.removesuffix("_student"), run
        while RUNS[teacher].student:
            teacher = RUNS[teacher].first
        his, its = (
            {(r["suite"], r["case"]): r for r in results if (r["run"], r["row"]) == method}
            for method in ((teacher, name), (run, row))
        )
        shared = [place for place in its if place in his]
        if not shared:
            continue
        gains = [{**its[p], "gain": its[p]["ap"] - his[p]["ap"]} for p in shared]
        cells = [
            f"{_mean([each[place][figure] for place in shared]):{digits}}"
            for figure, digits in (("ap", ".3f"), ("calls", ".0f"), ("seconds", ".1f"))
            for each in (his, its)
        ]
        difference = _interval(gains, "gain", "+")
        lines.append([run, name, str(len(shared)), *cells[:2], difference, *cells[2:]])
    head = ["student", "row", "volumes", "AP, teacher", "AP, student", "difference"]
    head += ["calls, teacher", "calls, student", "s, teacher", "s, student"]
    return "Students\n\n" + _table(head, lines)


def kinds(results: Results) -> str:
    """Voxel AP by kind of synthetic anomaly."""
    names = list(dict.fromkeys(r["kind"] for r in results if r["suite"] == "synthetic"))
    rows = [
        [
            *m,
            *(
                f"{_mean([r['ap'] for r in _of(results, m, 'synthetic') if r['kind'] == k]):.3f}"
                for k in names
            ),
        ]
        for m in _methods(results)
        if _of(results, m, "synthetic")
    ]
    return "Voxel AP by kind\n\n" + _table(["run", "row", *names], rows)


def real(results: Results) -> str:
    """Voxel AP of every patient with lesions of their own."""
    cases = list(dict.fromkeys(r["case"] for r in results if r["suite"] in ("glioma", "ms-real")))
    rows = []
    for m in _methods(results):
        own = {r["case"]: r for g in ("glioma", "ms-real") for r in _of(results, m, g)}
        rows.append([*m, *(f"{own[c]['ap']:.3f}" if c in own else "" for c in cases)])
    return "Voxel AP of each patient\n\n" + _table(["run", "row", *cases], rows)


def heat_map(results: Results, path: Path) -> None:
    """AP over contrast and size of inserted lesions, a panel per row."""
    import matplotlib.pyplot as plt  # heavy import

    methods = [m for m in _methods(results) if _of(results, m, "sizes") and m[1] != "prevalence"]
    if not methods:
        return
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.2 * columns, 2.4 * lines), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(methods) :]:
        ax.axis("off")
    for ax, m in zip(axes.flat, methods, strict=False):
        rows = _of(results, m, "sizes")
        contrasts = sorted({r["contrast"] for r in rows})
        sizes = sorted({r["volume_ml"] for r in rows})
        grid = np.array(
            [
                [
                    _mean([r["ap"] for r in rows if (r["contrast"], r["volume_ml"]) == (c, s)])
                    for c in contrasts
                ]
                for s in sizes
            ]
        )
        ax.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(grid):
            ax.text(
                x,
                y,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="w" if value < 0.6 else "k",
            )
        ax.set_xticks(range(len(contrasts)), [f"{c:+g}" for c in contrasts], fontsize=7)
        ax.set_yticks(range(len(sizes)), [f"{s:g} ml" for s in sizes], fontsize=7)
        ax.set_title(f"{m[0]}: {m[1]}", fontsize=8)
        ax.set_xlabel("contrast", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
