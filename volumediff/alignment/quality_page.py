"""qc.html: every aligned case to look at, and a page with a viewer for each."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from volumediff.alignment.aligning import Aligned
from volumediff.alignment.quality import (
    LEAST_COVERED,
    LEAST_DICE,
    LEAST_SIMILARITY,
    MOST_ROTATION,
    MOST_SHEAR,
    SCALES,
    VOLUME_SCALES,
    Quality,
    all_flags,
)
from volumediff.data.alignment_template import Template
from volumediff.data.volume import read
from volumediff.reporting.case_list import CaseColumn, ListedCase, case_list
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.panel import figure_of
from volumediff.reporting.scene import OutlinedMask, Scene
from volumediff.reporting.tables import bullets
from volumediff.reporting.thumbnails import thumbnail
from volumediff.storage.atomic import atomic

__all__ = ["AlignedCase", "pictured", "write_page"]

WHITE = 99.5  # percentile that becomes white
TEMPLATE, MASK = "#ff5a4d", "#2fe0ff"
COLUMNS = (
    CaseColumn(
        f"Dice (from {LEAST_DICE:g})",
        "Overlap of the brain mask with the template's brain; empty where the mask is the "
        "template's own.",
    ),
    CaseColumn(
        f"seen (from {LEAST_COVERED:.0%})", "Share of the template's brain that the volume shows."
    ),
    CaseColumn(
        "similarity before",
        "Normalised mutual information with the template, as the files lie.",
    ),
    CaseColumn(
        f"after (from {LEAST_SIMILARITY:g})",
        "Normalised mutual information with the template after registration; more than before.",
    ),
    CaseColumn(
        f"scales ({SCALES[0]:g} to {SCALES[1]:g})",
        "By which the volume was stretched along each axis to fit the template.",
    ),
    CaseColumn(f"shear (to {MOST_SHEAR:g})", "Largest shear of the map to the template."),
    CaseColumn(f"rotation (to {MOST_ROTATION:.0f}°)", "Angle of the map to the template."),
    CaseColumn(
        f"volume scale ({VOLUME_SCALES[0]:g} to {VOLUME_SCALES[1]:g})",
        "By which a volume grows on its way to the template.",
    ),
    CaseColumn("mask in ml", "Volume of the brain mask in the native volume."),
)


@dataclass(frozen=True)
class AlignedCase:
    """A finished case.

    Arguments:
        case: id
        quality: its numbers
        picture: PNG file
        images: channel -> aligned image
        brain: aligned brain mask
        notes: what was treated while reading
    """

    case: str
    quality: Quality
    picture: Path
    images: Mapping[str, Path]
    brain: Path
    notes: Sequence[str] = ()

    def scene(self, template: Template) -> Scene:
        """The aligned images and the template in one viewer, with both brains outlined."""
        brain = read(self.brain, kind="label").array[0] > 0
        images = {name: read(path).array[0] for name, path in self.images.items()}
        return Scene(
            title=self.case,
            images={**images, "template": template.x},
            outlines={
                "brain mask": OutlinedMask(brain, MASK, "inside the brain mask"),
                "template's brain": OutlinedMask(
                    template.object, TEMPLATE, "in the template's brain"
                ),
            },
            spacing_mm=template.grid.spacing_mm,
            affine=template.grid.affine,
            start=_middle(template.object),
            one_window=False,
        )


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
            if axis != 0:  # the patient's right is on the left, as in the viewer
                axes.invert_xaxis()
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
    path: Path | str,
    rows: Sequence[AlignedCase],
    *,
    template: Template,
    failed: Mapping[str, str],
    title: str,
) -> dict[str, list[str]]:
    """Writes the page and those of its cases, and returns the flags of the flagged cases.

    Arguments:
        path: of the page
        rows: finished cases
        template: on the grid of the aligned images
        failed: case -> reason
        title: what was done, such as the template
    """
    flagged = all_flags({row.case: row.quality for row in rows})
    order = sorted(rows, key=lambda row: (row.case not in flagged, row.case))
    listed = []
    with CasePages(Path(path)) as pages:
        for row in order:
            reasons = flagged.get(row.case, [])
            scene = row.scene(template)
            pages.write(scene, body=_body(row, reasons), outputs=row.images)
            listed.append(
                ListedCase(
                    row.case,
                    page=pages.address(row.case),
                    thumbnail=thumbnail(scene),
                    values=_values(row.quality),
                    flags=reasons,
                )
            )
    noun = "case" if len(rows) == 1 else "cases"
    lines = [
        f"{len(rows)} {noun}, {len(flagged)} to look at, {len(failed)} failed.",
        "Flagged cases come first; their numbers are outside of what is expected, which stands "
        "in the headings. A flag is a reason to look, not a verdict.",
        "Every case has a page with a viewer: the aligned volume and the template, whose "
        "anatomy it should show in the same places.",
    ]
    failures = [f"{case}: {why}" for case, why in failed.items()]
    text = framed(
        "Alignment",
        [
            Chapter("summary", "Summary", [bullets(lines)]),
            Chapter("failed", "Failed", [bullets(failures, kind="caution")] if failed else []),
            Chapter("all-cases", "Cases", case_list(listed, COLUMNS) if listed else []),
        ],
        lead=[title],
    )
    with atomic(path) as file:
        file.write(text.encode())
    return flagged


def _values(q: Quality) -> list[tuple[float, str] | str]:
    shear = max(map(abs, q.shears))
    return [
        "" if q.dice is None else (q.dice, f"{q.dice:.3f}"),
        (q.covered, f"{q.covered:.1%}"),
        (q.before, f"{q.before:.3f}"),
        (q.after, f"{q.after:.3f}"),
        (max(q.scales), " ".join(f"{s:.2f}" for s in q.scales)),
        (shear, f"{shear:.2f}"),
        (q.rotation_degrees, f"{q.rotation_degrees:.1f}°"),
        (q.volume_scale, f"{q.volume_scale:.2f}"),
        (q.native_ml, f"{q.native_ml:.0f}"),
    ]


def _body(row: AlignedCase, reasons: Sequence[str]) -> list[str]:
    """Below the viewer: what to look at, and the native volume beside the template."""
    parts = [bullets(reasons, kind="caution")] if reasons else []
    spans = row.quality.bias.items()
    if fields := [f"{name} {v[0]:.2f} to {v[1]:.2f}" for name, v in spans if v is not None]:
        parts.append(f"<p>Bias field inside the mask: {escape(', '.join(fields))}.</p>")
    if row.notes:
        parts.append(f"<p>{escape('; '.join(row.notes))}</p>")
    caption = (
        f"{row.case}: the native volume with its mask, the aligned one, and the template, whose "
        "brain is outlined in red; the mask is outlined in blue and covers the red where it is "
        "the template's. The patient's right is on the left."
    )
    return [*parts, figure_of(row.picture.read_bytes(), caption)]
