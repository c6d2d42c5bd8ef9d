"""Markdown tables of the shift benchmark, and the same figures as plain values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from volumediff.metrics.bootstrap import bootstrap

__all__ = ["tables"]

Results = Sequence[Mapping[str, Any]]
REPLICATES = 2000
NO_LESION = ("none", "drift")
HEADS = {
    "shift": [
        *("site", "row", "AP", "AP on A", "KS of scores", "bound", "KS of maps"),
        *("false alarms, A's threshold", "false alarms, site's threshold"),
    ],
    "adaptation": [
        *("site", "adaptation", "AP gain", "erased", "KS of maps, before", "after"),
        *("false alarms at A's threshold, before", "after", "s per volume"),
    ],
    "training sets": ["training set", "row", "AP", "change to the first", "false alarms"],
}
TITLES = {
    "shift": "Trained and calibrated on A",
    "adaptation": "Test-time adaptation of scan: gain in AP, share of the lesion's residual lost",
    "training sets": "Lesions that nobody marked, and exchanged labels, tested on A",
}


def tables(results: Results) -> tuple[str, dict[str, list[list[str]]]]:
    """The text, and the rows of every table."""
    values = {
        "shift": _shift(results),
        "adaptation": _adaptation(results),
        "training sets": _training(results),
    }
    parts = [f"{TITLES[n]}\n\n{_table(HEADS[n], rows)}" for n, rows in values.items() if rows]
    return "\n\n".join(parts), values


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _of(results: Results, **wanted: str) -> list[Mapping[str, Any]]:
    return [r for r in results if all(r[name] == value for name, value in wanted.items())]


def _lesions(rows: Results) -> list[Mapping[str, Any]]:
    return [r for r in rows if r["kind"] not in NO_LESION]


def _interval(rows: Results, values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    subjects = [str(r["subject"]) for r in rows]
    i = bootstrap(list(values), _mean, patients=subjects, replicates=REPLICATES)
    if not np.isfinite(i.low):  # too few subjects
        return f"{i.value:{sign}.3f}"
    return f"{i.value:{sign}.3f} ({i.low:{sign}.3f} to {i.high:{sign}.3f})"


def _ap(rows: Results) -> str:
    found = _lesions(rows)
    return _interval(found, [r["ap"] for r in found])


def _alarms(rows: Results, name: str = "false_alarms") -> str:
    return f"{_mean([r[name] for r in rows if r['kind'] == 'none']):.3f}"


def _pairs(a: Results, b: Results) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    other = {(r["subject"], r["kind"]): r for r in _lesions(b)}
    places = [(r, (r["subject"], r["kind"])) for r in _lesions(a)]
    return [(r, other[place]) for r, place in places if place in other]


def _shift(results: Results) -> list[list[str]]:
    pure, lines = [*_of(results, run="pure"), *_of(results, run="standardised")], []
    for site in dict.fromkeys(r["site"] for r in pure):
        for variant in dict.fromkeys(r["variant"] for r in pure):
            rows = _of(pure, site=site, variant=variant)
            drifts = _of(rows, kind="drift")
            if not rows or not drifts:
                continue
            d = drifts[-1]
            lines.append(
                [
                    *(site, variant, _ap(rows), _ap(_of(pure, site="A", variant=variant))),
                    *(f"{d[name]:.2f}" for name in ("scores", "scores_bound", "maps")),
                    *(_alarms(rows), _alarms(rows, "false_alarms_site")),
                ]
            )
    return lines


def _adaptation(results: Results) -> list[list[str]]:
    pure, lines = _of(results, run="pure"), []
    for site in dict.fromkeys(r["site"] for r in pure):
        before = _of(pure, site=site, variant="scan")
        for variant in ("scan adapted", "scan adapted everywhere"):
            after = _of(pure, site=site, variant=variant)
            pairs = _pairs(after, before)
            drifts = [_of(rows, kind="drift") for rows in (before, after)]
            if not pairs or not all(drifts):
                continue
            # a ratio of sums: a lesion that leaves nothing in the map has no share to lose
            erased = 1 - sum(a["excess"] for a, _ in pairs) / sum(b["excess"] for _, b in pairs)
            gains = [a["ap"] - b["ap"] for a, b in pairs]
            lines.append(
                [
                    *(site, variant.removeprefix("scan ")),
                    *(_interval([a for a, _ in pairs], gains, "+"), f"{erased:+.1%}"),
                    *(f"{rows[-1]['maps']:.2f}" for rows in drifts),
                    *(_alarms(rows) for rows in (before, after)),
                    f"{_mean([a['seconds'] for a, _ in pairs]):.1f}",
                ]
            )
    return lines


def _training(results: Results) -> list[list[str]]:
    on_a, lines = _of(results, site="A"), []
    runs = list(dict.fromkeys(r["run"] for r in on_a))
    for first, family in (("pure", "impure"), ("labels-00", "labels")):
        members = [r for r in runs if r == first or r.startswith(f"{family}-")]
        if len(members) < 2 or first not in members:
            continue
        for variant in dict.fromkeys(r["variant"] for r in _of(on_a, run=members[-1])):
            reference = _of(on_a, run=first, variant=variant)
            for run in sorted(members, key=lambda r: (r != first, r)):
                rows = _of(on_a, run=run, variant=variant)
                if not rows:
                    continue
                pairs = _pairs(rows, reference)
                change = [a["ap"] - b["ap"] for a, b in pairs]
                shown = "" if run == first else _interval([a for a, _ in pairs], change, "+")
                lines.append([run, variant, _ap(rows), shown, _alarms(rows)])
    return lines
