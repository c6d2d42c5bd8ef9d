"""qc.html: every aligned case to look at, in one file that opens from disk with no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from volumediff.alignment.aligning import Aligned
from volumediff.alignment.quality import Quality, all_flags
from volumediff.data.alignment_template import Template
from volumediff.storage.atomic import atomic

__all__ = ["AlignedCase", "pictured", "write_page"]

# Pictures are 90 kB each: flagged cases all have theirs, the others up to this many.
MOST_PICTURES = 200
WHITE = 99.5  # percentile that becomes white
TEMPLATE, MASK = "#ff5a4d", "#2fe0ff"
PAIRS = (
    ".slices { display: grid; grid-template-columns: repeat(auto-fill, minmax(27rem, 1fr)); "
    "gap: 0 1.5rem; align-items: end; }"
)
NOTICE = "Research software. Not a medical device, not for diagnosis."


@dataclass(frozen=True)
class AlignedCase:
    """A finished case.

    Arguments:
        case: id
        quality: its numbers
        picture: PNG file
        notes: what was treated while reading
    """

    case: str
    quality: Quality
    picture: Path
    notes: Sequence[str] = ()


def pictured(found: Aligned, template: Template) -> bytes:
    """PNG: the native first channel with its mask, the aligned one, and the template."""
    from matplotlib.figure import Figure

    first = next(iter(found.images))
    native, spacing = found.native, template.grid.spacing_mm
    here, there = _middle(found.native_brain), _middle(template.object)
    brain = (template.object, TEMPLATE)
    both = [brain, (found.brain, MASK)]
    rows = [
        ("native, mask", native.array[0], native.spacing_mm, here, [(found.native_brain, MASK)]),
        (f"aligned {first}, template and mask", found.images[first], spacing, there, both),
        ("template", template.x, spacing, there, [brain]),
    ]
    figure = Figure(figsize=(7.2, 7.8), layout="constrained", facecolor="black")
    grid = figure.subplots(3, 3, squeeze=False)
    for line, (title, x, spacing, at, outlines) in zip(grid, rows, strict=True):
        mask = outlines[-1][0]
        shown = x[mask] if mask.any() else x
        high = float(np.percentile(shown, WHITE))
        low = min(0.0, float(np.percentile(shown, 100 - WHITE)))
        for axis, axes in zip((2, 1, 0), line, strict=True):
            a, b = (i for i in range(3) if i != axis)
            aspect = spacing[b] / spacing[a]
            slab = x.take(at[axis], axis=axis).T
            axes.imshow(
                slab, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower",
                aspect=aspect,
            )  # fmt: skip
            for outline, colour in outlines:
                cut = outline.take(at[axis], axis=axis).T
                if min(cut.shape) > 1 and cut.any() and not cut.all():
                    axes.contour(cut, levels=[0.5], colors=colour, linewidths=0.7)
            axes.set_axis_off()
        line[0].set_title(title, color="white", fontsize=8, loc="left", pad=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()


def _middle(mask: np.ndarray) -> tuple[int, int, int]:
    if not mask.any():
        d, h, w = mask.shape
        return d // 2, h // 2, w // 2
    d, h, w = (round(float(v)) for v in np.argwhere(mask).mean(axis=0))
    return d, h, w


def write_page(
    path: Path | str, rows: Sequence[AlignedCase], *, failed: Mapping[str, str], title: str
) -> dict[str, list[str]]:
    """Writes the page, whole or not at all, and returns the flags of the flagged cases.

    Arguments:
        path: of the page
        rows: finished cases
        failed: case -> reason
        title: what was done, such as the template
    """
    flagged = all_flags({row.case: row.quality for row in rows})
    order = sorted(rows, key=lambda row: (row.case not in flagged, row.case))
    style = files("volumediff.reporting").joinpath("report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
    body = [
        "<h1>Alignment</h1>",
        f'<p class="sub">{escape(title)}</p>',
        f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
        f"<p>{len(rows)} cases, {len(flagged)} to look at, {len(failed)} failed. Pictures: "
        "the native volume, the aligned one, and the template, whose anatomy it should show in "
        f'the same places; <b style="color:{TEMPLATE}">red</b> the '
        f'template\'s brain, <b style="color:{MASK}">blue</b> the mask, which '
        "covers the red where it is the template's. Left in the pictures is left of the "
        "patient.</p>",
        *_failures(failed),
        _table(order, flagged),
        '<h2>Pictures</h2><div class="slices">',
    ]
    body += [_figure(row, flagged.get(row.case, [])) for row in _shown(order, flagged)]
    left_out = len(rows) - len(_shown(order, flagged))
    if left_out:
        body.append(f"<p>{left_out} more cases without flag: see the qc.png in their folders.</p>")
    html = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Alignment</title><style>{style}{PAIRS}</style></head><body>",
        *body,
        "</div></body></html>\n",
    ]
    with atomic(path) as file:
        file.write("\n".join(html).encode())
    return flagged


def _shown(order: Sequence[AlignedCase], flagged: Mapping[str, list[str]]) -> list[AlignedCase]:
    return list(order[: len(flagged) + MOST_PICTURES])


def _failures(failed: Mapping[str, str]) -> list[str]:
    if not failed:
        return []
    items = "".join(f"<li>{escape(case)}: {escape(why)}</li>" for case, why in failed.items())
    return [f'<div class="notice"><strong>Failed</strong><ul>{items}</ul></div>']


def _table(rows: Sequence[AlignedCase], flagged: Mapping[str, list[str]]) -> str:
    names = ("case", "Dice", "seen", "similarity before", "after", "scales", "largest shear",
             "rotation", "volume scale", "mask ml", "bias field")  # fmt: skip
    head = "".join(f'<th scope="col">{n}</th>' for n in names)
    lines = []
    for row in rows:
        q = row.quality
        spans = [f"{n} {v[0]:.2f}–{v[1]:.2f}" for n, v in q.bias.items() if v is not None]
        cells = (
            escape(row.case),
            "–" if q.dice is None else f"{q.dice:.3f}",
            f"{q.covered:.1%}",
            f"{q.before:.3f}",
            f"{q.after:.3f}",
            " ".join(f"{s:.2f}" for s in q.scales),
            f"{max(map(abs, q.shears)):.2f}",
            f"{q.rotation_degrees:.1f}°",
            f"{q.volume_scale:.2f}",
            f"{q.native_ml:.0f}",
            escape(", ".join(spans)) or "–",
        )
        mark = ' class="main"' if row.case in flagged else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    caption = (
        "Dice of mask and template's brain (none where the mask is the template's); share of the "
        "template's brain that is seen; normalised mutual information with the template, as the "
        "files lie and after registration; the map from native to template; range of the bias "
        "field in the mask."
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div><p><small>{caption}</small></p>"
    )


def _figure(row: AlignedCase, reasons: Sequence[str]) -> str:
    data = base64.b64encode(row.picture.read_bytes()).decode()
    text = f"<strong>{escape(row.case)}</strong>"
    if reasons:
        text += f' <b style="color:#c0392b">look: {escape("; ".join(reasons))}</b>'
    if row.notes:
        text += f" <small>{escape('; '.join(row.notes))}</small>"
    alt = f"slices of {escape(row.case)}"
    return (
        f"<figure><figcaption>{text}</figcaption>"
        f'<img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
    )
