"""Cases prepared for a report: small uint8 volumes for the viewer, and pictures of slices."""

import base64
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.volume import read
from volumediff.inference.evaluation import MethodResult
from volumediff.inference.export import HEALTHY, MAP
from volumediff.inference.inputs import stem_of
from volumediff.inference.truths import Truth

__all__ = ["View", "packed", "picture", "scaled", "views_of"]

# Longest side in the page: 128³ bytes per layer; pictures of larger volumes are thinned out.
LONGEST = 128
# The viewer's white: the few brightest voxels would make everything else dark.
WHITE = 99.8


@dataclass(frozen=True, eq=False)
class View:
    """One case to look at, all arrays on one grid with axes along R, A, S.

    Arguments:
        title: of the case
        note: one line beside it
        image: intensities
        maps: map of every method, by name; the first is shown first
        truth: lesion voxels
        healthy: pseudo-healthy volume of the first method
        spacing_mm: voxel size
    """

    title: str
    note: str
    image: Float[np.ndarray, "d h w"]
    maps: Mapping[str, Float[np.ndarray, "d h w"]]
    truth: Bool[np.ndarray, "d h w"] | None = None
    healthy: Float[np.ndarray, "d h w"] | None = None
    spacing_mm: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))

    def start(self) -> tuple[int, int, int]:
        """The voxel to look at first: the lesion where it is thickest, else the map's peak."""
        from scipy import ndimage

        if self.truth is not None and self.truth.any():
            depth = ndimage.distance_transform_edt(self.truth, sampling=self.spacing_mm)
            return _argmax(depth)
        first = next(iter(self.maps.values()), self.image)
        return _argmax(first)


def _argmax(array: np.ndarray) -> tuple[int, int, int]:
    d, h, w = (int(i) for i in np.unravel_index(int(array.argmax()), array.shape))
    return d, h, w


def views_of(
    results: Sequence[MethodResult], truths: Mapping[str, Truth], cases: Sequence[str]
) -> list[View]:
    """Views of cases, read from the folders of the methods; cases without image are left out."""
    views = []
    for case in cases:
        truth = truths.get(case)
        if truth is None or truth.image is None:
            continue
        maps, healthy, numbers = {}, None, []
        for result in results:
            path = _map_of(result.folder, truth)
            if path is None:
                continue
            maps[result.method] = read(path).array[0]
            beside = path.with_name(path.name.replace(MAP, HEALTHY))
            if healthy is None and beside.is_file() and not maps.keys() - {result.method}:
                healthy = read(beside).array[0]
            ap = next((c.ap for c in result.cases if c.case == truth.case), float("nan"))
            if np.isfinite(ap):
                numbers.append(f"{result.method} {ap:.3f}")
        image = read(truth.image)
        views.append(
            View(
                title=truth.case,
                note=f"voxel AP: {', '.join(numbers)}" if numbers else "no lesion",
                image=image.array[0],
                maps=maps,
                truth=truth.marks(image).lesion.numpy(),
                healthy=healthy,
                spacing_mm=image.spacing_mm,
            )
        )
    return views


def _map_of(folder: Path, truth: Truth) -> Path | None:
    names = [truth.case] + ([] if truth.image is None else [stem_of(truth.image)])
    paths = [folder / f"{name}_{MAP}.nii.gz" for name in names]
    return next((p for p in paths if p.is_file()), None)


def scaled(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 from 0 at `low` to 255 at `high`."""
    unit = (array.astype(np.float32) - low) / max(high - low, 1e-12)
    return np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def limits(array: np.ndarray, *, floor: float | None = None) -> tuple[float, float]:
    """What becomes black and white."""
    low = float(array.min()) if floor is None else floor
    values = array[array > low]
    high = float(np.percentile(values, WHITE)) if values.size else low + 1.0
    return low, high


def packed(array: np.ndarray) -> str:
    """Bytes as gzip and base64; equal volumes give equal text."""
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, buffer, mtime=0) as stream:
        stream.write(np.ascontiguousarray(array, dtype=np.uint8).tobytes())
    return base64.b64encode(buffer.getvalue()).decode()


def thinned(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel along each axis, so that no side is longer than `LONGEST`."""
    d, h, w = (-(-n // LONGEST) for n in array.shape)
    return array[::d, ::h, ::w]


def picture(view: View) -> bytes:
    """PNG: slices through the lesion of image, first map and pseudo-healthy volume."""
    from matplotlib.figure import Figure

    name, first = next(iter(view.maps.items()))
    rows = [("image", view.image, "gray", limits(view.image))]
    rows.append((name, first, "inferno", limits(first, floor=0.0)))
    if view.healthy is not None:
        rows.append(("pseudo-healthy", view.healthy, "gray", limits(view.image)))
    figure = Figure(figsize=(3 * 2.1, len(rows) * 2.1), layout="constrained", facecolor="black")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    at = view.start()
    for line, (title, array, colours, (low, high)) in zip(grid, rows, strict=True):
        for axis, axes in zip((2, 1, 0), line, strict=True):
            a, b = (i for i in range(3) if i != axis)
            slab = array.take(at[axis], axis=axis).T
            aspect = view.spacing_mm[b] / view.spacing_mm[a]
            axes.imshow(slab, cmap=colours, vmin=low, vmax=high, origin="lower", aspect=aspect)
            if view.truth is not None and view.truth.any():
                mask = view.truth.take(at[axis], axis=axis).T
                if min(mask.shape) > 1 and mask.any() and not mask.all():
                    axes.contour(mask, levels=[0.5], colors="#2fe0ff", linewidths=0.8)
            axes.set_axis_off()
        line[0].set_title(title, color="white", fontsize=8, loc="left", pad=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()
