"""Cases prepared for a report: what their pages show, and pictures of slices."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from volumediff.colours import DIFFERENCE, UNCERTAIN, gradient
from volumediff.data.files import stem_of
from volumediff.data.read_policy import WRITTEN
from volumediff.data.volume import read
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.output_folders import maps_in
from volumediff.evaluation.truths import Truth
from volumediff.findings.schema import read_findings
from volumediff.outputs.export import FINDINGS, HEALTHY, MAP, MASK, UNCERTAINTY
from volumediff.outputs.sidecar import read_facts
from volumediff.reporting.scene import (
    WHITE,
    NamedPlace,
    OutlinedMask,
    Scene,
    ScoreMap,
    limits,
)
from volumediff.reporting.timeline import TimelineEntry, read_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CaseView",
    "outputs_of",
    "picture",
    "start_of",
    "views_of",
]

# Edges of lesions and of the method's own findings, as in the viewer.
TRUTH, FOUND, TEMPLATE = "#2fe0ff", "#8cff66", "#ff5a4d"
# Words of a finding that say where it is.
WHERE = ("laterality", "front_back", "up_down")


@dataclass(frozen=True, eq=False)
class CaseView:
    """One case to look at, all arrays on one grid with axes along R, A, S.

    Arguments:
        title: of the case
        note: one line beside it
        image: intensities
        maps: map of every method, by name; the first is shown first
        truth: lesion voxels, or the labels of a segmentation
        healthy: pseudo-healthy volume of the first method
        spacing_mm: voxel size
        uncertainty: of the first method's map
        found: its mask, or the labels that it gives
        steps: its trace, at the plane of `start`
        findings: entries of its findings file
        statement: what that file says in a sentence
        affine: voxel index to RAS millimetres
        members: of a fusion, with their share in the map and their cost
        at: the voxel to look at first; None takes the lesion, or the peak of the map
        files: name -> file that the page links to
        label_names: label value -> what it is, of a segmentation
        prepared: how a raw scan was prepared, from the JSON of the result; empty for other images
        brain: the template's brain where the alignment puts it
    """

    title: str
    note: str
    image: Float[np.ndarray, "d h w"]
    maps: Mapping[str, Float[np.ndarray, "d h w"]]
    truth: Bool[np.ndarray, "d h w"] | UInt8[np.ndarray, "d h w"] | None = None
    healthy: Float[np.ndarray, "d h w"] | None = None
    spacing_mm: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))
    uncertainty: Float[np.ndarray, "d h w"] | None = None
    found: Bool[np.ndarray, "d h w"] | UInt8[np.ndarray, "d h w"] | None = None
    steps: Sequence[TimelineEntry] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    statement: str = ""
    affine: Float[np.ndarray, "4 4"] | None = None
    members: Sequence[Mapping[str, Any]] = ()
    at: tuple[int, int, int] | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)
    brain: Bool[np.ndarray, "d h w"] | None = None

    def start(self) -> tuple[int, int, int]:
        """The voxel to look at first: the lesion where it is thickest, else the map's peak."""
        if self.at is not None:
            return self.at
        first = next(iter(self.maps.values()), self.image)
        return start_of(self.truth, first, self.spacing_mm)

    def scene(self) -> Scene:
        """The same for the viewer of its page."""
        images = {"image": self.image}
        if self.healthy is not None:
            images["pseudo-healthy"] = self.healthy
        maps = {name: ScoreMap(array) for name, array in self.maps.items()}
        if self.uncertainty is not None:
            maps["uncertainty"] = ScoreMap(self.uncertainty, colours=UNCERTAIN)
        outlines = {}
        if self.truth is not None:
            outlines["lesion"] = OutlinedMask(self.truth, TRUTH, "inside the lesion")
        if self.found is not None:
            outlines["findings"] = OutlinedMask(self.found, FOUND, "inside a finding")
        if self.brain is not None:
            outlines["template's brain"] = OutlinedMask(
                self.brain, TEMPLATE, "in the template's brain", shown=False
            )
        return Scene(
            title=self.title,
            images=images,
            maps=maps,
            outlines=outlines,
            spacing_mm=self.spacing_mm,
            affine=self.affine,
            start=self.start(),
            places=[_place(finding) for finding in self.findings],
            note=self.note,
        )


def _place(finding: Mapping[str, Any]) -> NamedPlace:
    """Where the list of the viewer goes for a finding, and what it says there."""
    x, y, z = finding["place"]["peak_mm"]
    where = ", ".join(str(finding["place"][name]) for name in WHERE)
    text = f"{finding['urgency']['level']}; {where}; {finding['volume_ml']:.3g} ml"
    return NamedPlace(str(finding["id"]), (x, y, z), text)


def start_of(
    truth: Bool[np.ndarray, "d h w"] | None,
    scores: Float[np.ndarray, "d h w"],
    spacing_mm: tuple[float, float, float],
) -> tuple[int, int, int]:
    """Where a lesion is thickest; the peak of a map where there is none."""
    from scipy import ndimage

    if truth is not None and truth.any():
        return _argmax(ndimage.distance_transform_edt(truth, sampling=spacing_mm))
    return _argmax(scores)


def _argmax(array: np.ndarray) -> tuple[int, int, int]:
    d, h, w = (int(i) for i in np.unravel_index(int(array.argmax()), array.shape))
    return d, h, w


def views_of(
    results: Sequence[MethodResult], truths: Mapping[str, Truth], cases: Sequence[str]
) -> Iterator[CaseView]:
    """Views of cases, read one after another from the folders of the methods; cases without an
    image are left out."""
    known = {result.folder: maps_in(result.folder) for result in results}
    for case in cases:
        truth = truths.get(case)
        if truth is None or truth.image is None:
            continue
        maps, numbers, more, files = {}, [], {}, {}
        paths = (_map_of(known[result.folder], truth) for result in results)
        first = next((path for path in paths if path is not None), None)
        shown = truth if first is None else truth.beside(_facts(first))
        assert shown.image is not None, "a truth with an image has one beside every map"
        image = read(shown.image, policy=shown.policy)
        lesion = truth.marks(image).lesion.numpy()
        files["image"] = shown.image
        for result in results:
            path = _map_of(known[result.folder], truth)
            if path is None:
                continue
            maps[result.method] = read(path).array[0]
            files[f"map, {result.method}"] = path
            if len(maps) == 1:
                at = start_of(lesion, maps[result.method], image.spacing_mm)
                more = outputs_of(path, at)
            ap = next((c.ap for c in result.cases if c.case == truth.case), float("nan"))
            if np.isfinite(ap):
                numbers.append(f"{result.method} {ap:.3f}")
        yield CaseView(
            title=truth.case,
            note=f"voxel AP: {', '.join(numbers)}" if numbers else "no lesion",
            image=image.array[0],
            maps=maps,
            truth=lesion,
            spacing_mm=image.spacing_mm,
            affine=image.affine,
            files={**files, **({} if truth.path is None else {"truth": truth.path})},
            **more,
        )


def outputs_of(path: Path, at: tuple[int, int, int]) -> dict[str, Any]:
    """What lies beside a map, as arguments of a `View`.

    Arguments:
        path: of the map
        at: voxel whose axial plane the steps show
    """

    def beside(name: str) -> Path:
        return path.with_name(path.name.replace(MAP, name))

    healthy, uncertainty, mask = beside(HEALTHY), beside(UNCERTAINTY), beside(MASK)
    written = beside(FINDINGS).with_suffix("").with_suffix(".json")
    found = read_findings(written).to_json() if written.is_file() else {}
    return {
        "healthy": read(healthy, policy=WRITTEN).array[0] if healthy.is_file() else None,
        "uncertainty": read(uncertainty).array[0] if uncertainty.is_file() else None,
        "found": read(mask, kind="label").array[0] > 0 if mask.is_file() else None,
        "steps": read_steps(path.parent, _facts(path), at[2]),
        "findings": found.get("findings", ()),
        "statement": found.get("statement", ""),
        "members": _facts(path).get("members", ()),
    }


def _facts(path: Path) -> dict[str, Any]:
    """The JSON beside a map, nothing where there is none."""
    sidecar = path.with_suffix("").with_suffix(".json")
    return read_facts(sidecar) if sidecar.is_file() else {}


def _map_of(maps: Mapping[str, Path], truth: Truth) -> Path | None:
    names = [truth.case] + ([] if truth.image is None else [stem_of(truth.image)])
    return next((maps[name] for name in names if name in maps), None)


def picture(view: CaseView) -> bytes:
    """PNG: three planes through the lesion, a row each, of the image beside what it is judged by.

    The pair of image and pseudo-healthy volume comes first, with one scale of grey, then their
    difference (red brighter than expected), the first map, and its uncertainty.
    """
    from matplotlib.figure import Figure

    columns = _columns(view)
    at, spacing = view.start(), view.spacing_mm
    # every row is as high as its plane at the width of a column, so that there is no empty band
    planes = [(axis, [i for i in range(3) if i != axis]) for axis in (2, 1, 0)]
    size = [n * s for n, s in zip(view.image.shape, spacing, strict=True)]
    cell = 11.2 / max(len(columns), 4)
    heights = [cell * size[b] / size[a] for _, (a, b) in planes]
    figure = Figure(
        figsize=(cell * len(columns), sum(heights) + 0.25),
        layout="constrained",
        facecolor="black",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    grid = figure.subplots(3, len(columns), squeeze=False, height_ratios=heights)
    for line, (axis, (a, b)) in zip(grid, planes, strict=True):
        aspect = spacing[b] / spacing[a]
        for axes, (_, array, colours, (low, high)) in zip(line, columns, strict=True):
            slab = array.take(at[axis], axis=axis).T
            axes.imshow(
                slab, cmap=gradient(colours), vmin=low, vmax=high, origin="lower", aspect=aspect
            )
            for mask, colour in ((view.found, FOUND), (view.truth, TRUTH)):
                if mask is not None:
                    _outline(axes, mask.take(at[axis], axis=axis).T, colour)
            if axis != 0:  # the patient's right is on the left, as in the viewer
                axes.invert_xaxis()
            axes.set_axis_off()
    for axes, (title, *_) in zip(grid[0], columns, strict=True):
        axes.set_title(title, color="white", fontsize=8, loc="left", pad=2)
    for line, name in zip(grid, ("RL", "RL", "PA"), strict=True):
        for x, letter in zip((0.02, 0.98), name, strict=True):
            side = "left" if x < 0.5 else "right"
            place = {"transform": line[0].transAxes, "ha": side, "va": "center", "fontsize": 7}
            line[0].text(x, 0.5, letter, color="#cfd9e2", **place)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()


def _columns(view: CaseView) -> list[tuple[str, np.ndarray, str, tuple[float, float]]]:
    """Title, volume, colours and their range of each column."""
    greys = limits(view.image)
    columns = [("image", view.image, "gray", greys)]
    if view.healthy is not None:
        difference = view.image - view.healthy
        reach = float(np.percentile(np.abs(difference), WHITE)) or 1.0
        columns.append(("pseudo-healthy", view.healthy, "gray", greys))
        columns.append((f"difference, ±{reach:.3g}", difference, DIFFERENCE, (-reach, reach)))
    for name, array in view.maps.items():
        span = limits(array, floor=0.0)
        columns.append((f"map, {name}, {span[0]:.2g} to {span[1]:.2g}", array, "inferno", span))
        break
    if view.uncertainty is not None:
        span = limits(view.uncertainty, floor=0.0)
        columns.append((f"uncertainty, to {span[1]:.2g}", view.uncertainty, UNCERTAIN, span))
    return columns


def _outline(axes: "Axes", mask: np.ndarray, colour: str) -> None:
    if min(mask.shape) > 1 and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=colour, linewidths=0.8)
