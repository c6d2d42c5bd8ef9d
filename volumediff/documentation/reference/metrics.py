"""The reference of metrics: every metric of every evaluation, from its definition."""

from volumediff.documentation.reference.markdown import code, page, table
from volumediff.evaluation.metric_definitions import METRICS

__all__ = ["metrics"]

LEAD = """What `volumediff evaluate` measures, by its name in `evaluation.json`. Tables of reports
have the short name, with the same definition behind it."""


def metrics() -> str:
    """The page."""
    parts = []
    for kind, definitions in METRICS.items():
        rows = (
            (code(name), d.heading, d.definition, d.range, d.better.value)
            for name, d in definitions.items()
        )
        parts.append(f"## {kind.capitalize()}")
        parts.append(table(("name", "in tables", "definition", "range", "which is better"), rows))
    return page("Metrics", LEAD, *parts)
