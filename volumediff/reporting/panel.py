"""The part of a report about one case: slices, the steps of the method, and its findings."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from volumediff.data.label_names import label_name
from volumediff.reporting.segmentation_pictures import label_picture, samples_picture
from volumediff.reporting.segmentation_views import LabelView
from volumediff.reporting.timeline import strip
from volumediff.reporting.views import WHERE, CaseView, picture

__all__ = ["case_panel", "figure_of", "findings_table", "label_panel", "preparation"]

# Rows of the table; the file has all of them.
MOST = 12
COLUMNS = (
    *("finding", "look", "where", "ml", "mean score", "severity", "probability", "± of map"),
    "against expected",
)
SHARES = "share of members"  # a further column, for fusions


def case_panel(view: CaseView) -> list[str]:
    """HTML of a case, for below its viewer."""
    outline = ", lesion outlined" if view.truth is not None and view.truth.any() else ""
    found = ", findings outlined in green" if view.found is not None and view.found.any() else ""
    caption = f"{view.title}{outline}{found}; {view.note}"
    parts = ["<h3>Slices</h3>", figure_of(picture(view), caption)]
    if view.steps:
        _, _, k = view.start()
        truth = None if view.truth is None else view.truth[:, :, k]
        aspect = view.spacing_mm[1] / view.spacing_mm[0]
        caption = (
            f"{view.title}: what the method did, in order, in one axial plane. Masks (grey) say "
            "where it redraws or trusts the model; maps share one scale."
        )
        parts.append("<h3>Steps of the method</h3>")
        parts.append(figure_of(strip(view.steps, aspect=aspect, outline=truth), caption))
    if view.members:
        parts.append(f"<p>{escape(_members(view.members))}</p>")
    if view.prepared:
        parts += [
            "<h3>Preparation of the scan</h3>",
            f"<p>{escape(preparation(view.prepared))}</p>",
        ]
    if view.statement or view.findings:
        parts += ["<h3>Findings</h3>", f"<p>{escape(view.statement)}</p>"]
    if view.findings:
        parts += findings_table(view.findings, view.label_names)
    return parts


def preparation(prepared: Mapping[str, Any]) -> str:
    """How a raw scan was brought to the space of the run, in sentences."""
    if prepared.get("template") is None:
        return "What is not brain was removed; the scan stays on its own grid."
    said = [
        f"The scan was aligned with the template {prepared['template']} by its channel "
        f"{prepared['aligned_channel']}: normalised mutual information "
        f"{prepared['similarity']:.3f} afterwards, brain of {prepared['brain_ml']:.0f} ml, which "
        f"grows by a factor of {prepared['volume_scale']:.2f} on the way."
    ]
    if prepared.get("n4"):
        said.append("Its bias field was corrected.")
    warnings = prepared.get("warnings") or ()
    if warnings:
        said.append(f"Look at the alignment: {'; '.join(warnings)}.")
    said.append("The viewer can outline the template's brain, which shows whether it fits.")
    return " ".join(said)


def _members(members: Sequence[Mapping[str, Any]]) -> str:
    """What each member of a fusion adds to the map and costs, in a sentence."""
    said = (
        f"{m['name']} {_share(m['share'])} with {m['network_calls']} network calls"
        for m in members
    )
    return f"Share of each member in the map of the volume: {', '.join(said)}."


def findings_table(
    findings: Sequence[Mapping[str, Any]], names: Mapping[int, str] | None = None
) -> list[str]:
    """The findings of a case as a table whose rows move the viewer to their peaks.

    Arguments:
        findings: as in the JSON of a case
        names: of labels, for findings in a segmentation
    """
    columns = [*COLUMNS, *([SHARES] if any(f.get("shares") for f in findings) else [])]
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    rows = [_row(finding, place, names or {}) for place, finding in enumerate(findings[:MOST])]
    rest = len(findings) - MOST
    more = f" {rest} more are in the file." if rest > 0 else ""
    return [
        '<div class="scroll" tabindex="0" role="region" aria-label="Findings">'
        '<table class="findings"><caption>A row moves the viewer to the peak of the finding. The '
        "order is one of reading by fixed rules, not a clinical score."
        f"{more}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</div>"
    ]


def label_panel(view: LabelView) -> list[str]:
    """HTML of a segmented case: planes of truth and methods, then readers and samples."""
    caption = (
        f"{view.title}: labels in colours, the truth outlined in white over every method. "
        f"{view.note}"
    )
    parts = ["<h3>Slices</h3>", figure_of(label_picture(view), caption)]
    if view.samples:
        caption = (
            f"{view.title}: readers and samples in one axial plane, each a whole label map; "
            "what most readers say is outlined in white."
        )
        parts.append(figure_of(samples_picture(view), caption))
    return parts


def figure_of(png: bytes, caption: str, *, kind: str = "volume") -> str:
    """A PNG with its caption.

    Arguments:
        png: the picture
        caption: text below it
        kind: `volume` pictures stay as they are in a dark page, `plot` ones turn dark
    """
    data = base64.b64encode(png).decode()
    return (
        f'<figure class="{kind}"><img alt="{escape(caption)}" '
        f'src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _row(finding: Mapping[str, Any], place: int, names: Mapping[int, str]) -> str:
    level = str(finding["urgency"]["level"])
    mark = f'<span class="level {level if level.isalpha() else ""}">{escape(level)}</span>'
    against = "; ".join(f"{i['direction']} ({i['relative']:+.0%})" for i in finding["intensities"])
    cells = [
        escape(str(finding["id"]) + _label(finding.get("label"), names)),
        mark,
        escape(" · ".join(str(finding["place"][name]) for name in WHERE)),
        f"{finding['volume_ml']:.3g}",
        f"{finding['mean_score']:.3g}",
        f"{finding['severity']:.3g}",
        _share(finding["probability"]),
        _share(finding["relative_uncertainty"]),
        escape(against) or "–",
    ]
    if shares := finding.get("shares"):
        cells.append(escape(", ".join(f"{name} {share:.0%}" for name, share in shares.items())))
    reason = escape(str(finding["urgency"]["reason"]), quote=True)
    inner = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr data-place="{place}" title="{reason}">{inner}</tr>'


def _label(value: int | None, names: Mapping[int, str]) -> str:
    return "" if value is None else f" · {label_name(value, names)}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
