"""Markdown tables and the heat-map of the localization benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.metrics.bootstrap import bootstrap
from volumediff.metrics.detection import volume_auroc

__all__ = ["heat_map", "tables"]

Results = Sequence[Mapping[str, Any]]
GROUPS = ("glioma", "ms-real", "stroke", "ms", "synthetic")
BASELINES = ("intensity", "intensity_dark", "smoothing", "atlas")
REPLICATES = 2000


def tables(results: Results) -> str:
    """Everything there is to print."""
    return "\n\n".join(
        [main(results), against(results), cost(results), kinds(results), real(results)]
    )


def _methods(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["run"], r["row"]) for r in results))


def _of(results: Results, method: tuple[str, str], suite: str) -> list[Mapping[str, Any]]:
    return [r for r in results if (r["run"], r["row"]) == method and r["suite"] == suite]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _interval(rows: Results, name: str) -> str:
    if not rows:
        return ""
    patients = [r["patient"] for r in rows]
    i = bootstrap([r[name] for r in rows], _mean, patients=patients, replicates=REPLICATES)
    return (
        f"{i.value:.3f} ({i.low:.3f} to {i.high:.3f})"
        if len(set(patients)) > 2
        else f"{i.value:.3f}"
    )


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
            pairs = [(ours[r["case"]], r) for r in best if r["case"] in ours]
            gains = [a["ap"] - b["ap"] for a, b in pairs]
            i = bootstrap(
                gains, _mean, patients=[a["patient"] for a, _ in pairs], replicates=REPLICATES
            )
            few = len({a["patient"] for a, _ in pairs}) < 3
            ends = "" if few else f" ({i.low:+.3f} to {i.high:+.3f})"
            cells.append(f"{i.value:+.3f}{ends} vs {name[1]}")
        lines.append([*m, *cells])
    return "AP minus that of the best baseline of the group\n\n" + _table(
        ["run", "row", *GROUPS], lines
    )


def cost(results: Results) -> str:
    """Three thresholds, false alarms, detection of volumes and cost, over all lesions."""
    rows = []
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
        rows.append(
            [
                *m,
                *(
                    f"{_mean([r[n] for r in sick]):.3f}"
                    for n in ("dice_healthy_fpr", "dice_validation")
                ),
                f"{_mean([r['best_dice'] for r in sick]):.3f}",
                f"{_mean([r['false_alarms'] for r in healthy]):.3f}",
                f"{auroc:.2f}",
                f"{_mean([r['calls'] for r in sick]):.0f}",
                f"{_mean([r['seconds'] for r in sick]):.2f}",
            ]
        )
    head = ["run", "row", "Dice, healthy FPR 5 %", "Dice, validation", "best Dice (oracle)"]
    head += ["FPR of held-out healthy", "volume AUROC", "calls", "s per volume"]
    return "Thresholds and cost\n\n" + _table(head, rows)


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
