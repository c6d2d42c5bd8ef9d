"""Tables and sentences about generated volumes, for reports, the terminal and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from volumediff.evaluation.generation import GenerationEvaluation
from volumediff.evaluation.generation_case import LEVELS
from volumediff.evaluation.generation_metrics import generation_metric
from volumediff.evaluation.table_line import Line, plain

__all__ = ["copy_lines", "generation_columns", "generation_notes", "generation_table", "to_values"]


def generation_columns(results: Sequence[GenerationEvaluation]) -> list[str]:
    """Headings of the columns: a folder and its p-values, each; the real volumes come last."""
    return [*(name for r in results for name in (r.method, "p")), "real"]


def generation_table(results: Sequence[GenerationEvaluation]) -> list[Line]:
    """A row for every measure that all folders have."""
    names = [n for n in results[0].measures if all(n in r.measures for r in results)]
    lines = []
    for name in names:
        found = [r.measures[name] for r in results]
        cells = [cell for each in found for cell in (each.generated, plain(each.p))]
        # The real volumes are the same for all folders.
        cells.append(found[0].real)
        metric = generation_metric(name)
        lines.append(Line(metric.title, metric, cells))
    return lines


def copy_lines(result: GenerationEvaluation) -> list[str]:
    """What was found of memorization, a sentence for every flagged sample."""
    lines = []
    for by, test in result.memorization.items():
        chance = test.rate * len(test.samples)
        lines.append(
            f"{result.method}: {len(test.flagged)} of {len(test.samples)} samples are nearer to a "
            f"training volume than chance allows, by {by} (at most {chance:.2g} would be by "
            "chance)."
        )
    for copy in result.copies:
        lines.append(
            f"{result.method}: {copy.case} resembles the training volume {copy.training} by "
            f"{copy.by} (p = {copy.p:.2g})."
        )
    return lines


def generation_notes(results: Sequence[GenerationEvaluation]) -> list[str]:
    """What everything stands on, each sentence once."""
    notes = [
        "Distances are those of the generated volumes from the real ones; beside them stand those "
        "between two random halves of the real ones."
    ]
    if features := results[0].features:
        notes.append(f"Features: {features}.")
    notes += [f"{r.method}: {note}" for r in results for note in r.notes]
    return list(dict.fromkeys(notes))


def to_values(results: Sequence[GenerationEvaluation]) -> dict[str, Any]:
    """Everything as plain values for JSON."""
    return {
        r.method: {
            "folder": str(r.folder),
            "volumes": {"generated": r.generated, "real": r.real},
            "features": r.features,
            "measures": {
                name: {
                    "heading": generation_metric(name).title,
                    "generated": asdict(c.generated),
                    "real": asdict(c.real),
                    "p": c.p,
                }
                for name, c in r.measures.items()
            },
            "memorization": {by: asdict(test) for by, test in r.memorization.items()},
            "copies": [asdict(copy) for copy in r.copies],
            "spectrum": {
                "cycles_per_mm": list(r.frequencies),
                **{name: power.mean(0).tolist() for name, power in r.power.items()},
            },
            "intensities": {
                "level": LEVELS.tolist(),
                **{name: values.tolist() for name, values in r.quantiles.items()},
            },
            "notes": list(r.notes),
        }
        for r in results
    }
