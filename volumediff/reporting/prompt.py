"""The prompt of a packet: facts, questions, and what a vision-language model must not claim.

No model is shipped and none is called. The text holds measured facts of one finding and no name,
id, date or path of the case, so that it can leave the machine that knows them; whether the
pictures may is for the data's owner to say.
"""

from collections.abc import Sequence
from typing import Any

from volumediff.findings.schema import CaseFindings, Finding
from volumediff.reporting.packet_panels import CONVENTION

__all__ = ["FORMAT", "MUST_NOT", "QUESTION", "VERSION", "prompt_of", "prompt_text"]

FORMAT, VERSION = "volumediff-prompt", 1
ROLE = (
    "You describe pictures of one finding of an automatic search for deviations from healthy "
    "anatomy in a medical volume. Your text goes to a radiologist, who decides."
)
QUESTION = (
    "Is something visible in the image at the outlined place that the pseudo-healthy volume does "
    "not have? Describe its site, shape, border, signal relative to the surroundings, and effect "
    "on neighbouring structures. Then say which of these fits best and why: a visible "
    "abnormality, normal anatomy that the model could not redraw, an artefact or image border, or "
    "not decidable from these pictures."
)
LABEL_QUESTION = (
    "Does the outline hold one structure that the image shows, and does it follow its border? "
    "Describe the site, shape, border and signal of what is inside, relative to the "
    "surroundings. Then say which of these fits best and why: a visible structure, normal anatomy "
    "of another kind, an artefact or image border, or not decidable from these pictures."
)
ANSWER = {
    "visible": "yes | no | unsure",
    "description": "what is seen, in at most five sentences",
    "explanation": "abnormality | normal anatomy | artefact | not decidable",
    "reason": "one sentence that refers to what is seen",
    "next": "what further view, sequence or comparison would decide",
}
MUST_NOT = (
    "Do not name a diagnosis, a grade, a cause or a prognosis, and recommend no treatment.",
    "Do not treat the map, the outline or the urgency as evidence: they are what is to be judged.",
    "Do not say that the rest of the volume is normal: only these planes are shown.",
    "Do not take the pseudo-healthy volume for an earlier scan or for this patient's own healthy "
    "state: a model has drawn it, and what it cannot draw looks like a difference.",
    "Do not give measurements other than those listed, and do not estimate age, sex or identity.",
    "Do not turn a probability that is missing or low into certainty in either direction.",
)


def prompt_of(
    finding: Finding, case: CaseFindings, pictures: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The prompt as values.

    Arguments:
        finding: that it is about
        case: it belongs to
        pictures: file and what it shows, in order
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "role": ROLE,
        "pictures": [{"file": name, "shows": shows} for name, shows in pictures],
        "conventions": [CONVENTION, case.conventions],
        "finding": f"{int(finding.id)} of {len(case.findings)}",
        "facts": facts_of(finding, case),
        "question": QUESTION if finding.label is None else LABEL_QUESTION,
        "answer_as_json": ANSWER,
        "must_not": list(MUST_NOT),
        "disclaimers": list(case.disclaimers),
    }


def facts_of(finding: Finding, case: CaseFindings) -> list[str]:
    """What is known of a finding, one sentence each."""
    place = finding.place
    size = " x ".join(
        f"{b - a:.3g}" for a, b in zip(place.box_low_mm, place.box_high_mm, strict=True)
    )
    lines = [
        f"Location: {place.region}; centre {_point(place.centre_mm)}, highest score at "
        f"{_point(place.peak_mm)}.",
        f"Size: {finding.volume_ml:.3g} ml, {finding.foreground_share:.2%} of the foreground; box "
        f"of {size} mm (left-right, front-back, height).",
        f"Laterality: {place.laterality}, against the middle of the foreground.",
    ]
    if place.template is not None:
        t = place.template
        lines.append(
            f"Template (MNI152): grey matter {t.grey:.0%}, white matter {t.white:.0%}, other "
            f"{t.other:.0%} of the place; {t.seed_distance_mm:g} mm from the seed '{t.seed}'."
        )
    lines += [
        f"Intensity, {i.channel}: {i.direction}; mean {i.observed:.4g}, expected {i.expected:.4g} "
        f"by the pseudo-healthy volume, contrast {i.contrast:+.4g} ({i.relative:+.0%} of the "
        "range of the foreground)."
        for i in finding.intensities
    ] or ["Intensity: the method makes no pseudo-healthy volume to compare with."]
    if finding.label is not None:
        lines += [
            f"Label: {finding.label}, mean probability {finding.mean_score:.4g}, highest "
            f"{finding.peak_score:.4g}, as the model gave them.",
            _uncertainty(finding),
            f"Reading order: {finding.urgency.level} ({finding.urgency.reason}).",
            f"Method: {case.method or 'unknown'}, a segmentation.",
        ]
        return lines
    limit = "unknown" if case.threshold.value is None else f"{case.threshold.value:.4g}"
    lines.append(
        f"Anomaly score: mean {finding.mean_score:.4g}, peak {finding.peak_score:.4g}, threshold "
        f"{limit}; severity (integral) {finding.severity:.4g} x ml."
    )
    lines.append(_probability(finding))
    lines.append(_uncertainty(finding))
    lines.append(f"Reading order: {finding.urgency.level} ({finding.urgency.reason}).")
    lines.append(
        f"Method: {case.method or 'unknown'}, supervision {case.supervision or 'unknown'}; it "
        f"claims to find: {case.scope or 'unknown'}."
    )
    return lines


def prompt_text(prompt: dict[str, Any]) -> str:
    """The same as plain text."""
    pictures = [f"{n}. {p['file']}: {p['shows']}" for n, p in enumerate(prompt["pictures"], 1)]
    answer = [f'  "{name}": "{value}"' for name, value in prompt["answer_as_json"].items()]
    parts = [
        prompt["role"],
        "\n".join(["PICTURES", *pictures, *prompt["conventions"]]),
        "\n".join([f"FINDING {prompt['finding']}", *(f"- {line}" for line in prompt["facts"])]),
        f"QUESTION\n{prompt['question']}",
        "ANSWER AS JSON\n{\n" + ",\n".join(answer) + "\n}",
        "\n".join(["YOU MUST NOT", *(f"- {line}" for line in prompt["must_not"])]),
        "\n".join(prompt["disclaimers"]),
    ]
    return "\n\n".join(parts) + "\n"


def _probability(finding: Finding) -> str:
    if finding.probability is None:
        return "Probability: the run has no calibrated one; none may be inferred from the score."
    return (
        f"Probability: {finding.probability:.2f} of its voxels are expected to be lesion, as "
        f"fitted on validation volumes (highest voxel {finding.peak_probability:.2f})."
    )


def _uncertainty(finding: Finding) -> str:
    if finding.uncertainty is None:
        return "Uncertainty: unknown, the method ran once."
    text = f"Uncertainty: deviation between runs {finding.uncertainty:.4g}"
    if finding.relative_uncertainty is None:
        return f"{text}, in the unit of the map before normalization."
    return f"{text}, {finding.relative_uncertainty:.0%} of the map of the runs."


def _point(point: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{v:.1f}' for v in point)}) mm"
