"""Translated cases in a report: what was measured, what was drawn, and the gap between them."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from volumediff.data.cases import Case
from volumediff.data.foreground import foreground
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import read
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.metrics.image_similarity import unit_range
from volumediff.outputs.translation_files import translations_in
from volumediff.reporting.panel import figure_of
from volumediff.reporting.scene import Scene, ScoreMap

__all__ = ["TranslationView", "translation_panel", "translation_views"]

Volume = Float[np.ndarray, "d h w"]
REACH = 0.5  # of the range of intensities: the difference that is shown brightest


@dataclass(frozen=True, eq=False)
class TranslationView:
    """One translated case to look at, every image in [0, 1] as for the metrics.

    Arguments:
        title: of the case
        measured: channel -> what was measured
        translated: channel -> method -> what it drew
        start: the voxel to look at first: the middle of the object
        spacing_mm: voxel size
        affine: voxel index to RAS millimetres
        files: name -> file that the page links to
    """

    title: str
    measured: Mapping[str, Volume]
    translated: Mapping[str, Mapping[str, Volume]]
    start: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Float[np.ndarray, "4 4"]
    files: Mapping[str, Path]

    def scene(self) -> Scene:
        """The same for the viewer of its page: every image, and the differences as maps."""
        images, maps = {}, {}
        for channel, x in self.measured.items():
            images[f"{channel}, measured"] = x
            for method, y in self.translated[channel].items():
                images[f"{channel}, {method}"] = y
                maps[f"{channel}, difference of {method}"] = ScoreMap(
                    np.abs(y - x), "of the range"
                )
        return Scene(
            title=self.title,
            images=images,
            maps=maps,
            spacing_mm=self.spacing_mm,
            affine=self.affine,
            start=self.start,
            note="Translated channels are synthetic images.",
        )


def translation_views(
    results: Sequence[TranslationEvaluation],
    measured: Mapping[str, Case],
    policy: ReadPolicy,
    cases: Sequence[str],
) -> Iterator[TranslationView]:
    """Views of cases, read one after another from the folders of the methods.

    Arguments:
        results: of the methods
        measured: case -> measured channels
        policy: decisions on ambiguous files
        cases: names
    """
    folders = [translations_in(r.folder) for r in results]
    for name in cases:
        case = measured[name]
        truths, drawn, files = {}, {}, {}
        start = (0, 0, 0)
        for channel in folders[0][name]:
            volume = read(case.images[channel], policy=policy)
            inside = foreground(volume.array[0], "auto")
            if not truths:
                d, h, w = (int(np.median(axis)) for axis in np.nonzero(inside))
                start = (d, h, w)
            truths[channel] = unit_range(volume.array[0], inside)
            files[f"{channel}, measured"] = case.images[channel]
            drawn[channel] = {}
            for result, folder in zip(results, folders, strict=True):
                path = folder[name][channel]
                drawn[channel][result.method] = unit_range(read(path).array[0], inside)
                files[f"{channel}, {result.method}"] = path
        yield TranslationView(name, truths, drawn, start, volume.spacing_mm, volume.affine, files)


def translation_panel(view: TranslationView) -> list[str]:
    """HTML of a case: a picture of every channel."""
    level = view.start[2]
    parts = ["<h3>Axial slices</h3>"]
    for channel, x in view.measured.items():
        drawn = {m: y[:, :, level] for m, y in view.translated[channel].items()}
        caption = (
            f"{view.title}, {channel}: measured and translated, with the absolute difference "
            f"below (white is {REACH:g} of the range of intensities or more)."
        )
        parts.append(figure_of(_picture(x[:, :, level], drawn), caption))
    return parts


def _picture(truth: np.ndarray, drawn: Mapping[str, np.ndarray]) -> bytes:
    """The measured slice, then above each method's, below its distance from the measured one."""
    from matplotlib.figure import Figure

    columns = 1 + len(drawn)
    figure = Figure(figsize=(2.2 * columns, 4.8), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    grid[0, 0].imshow(truth.T, cmap="gray", vmin=0, vmax=1, origin="lower")
    grid[0, 0].set_title("measured", fontsize=8)
    for i, (method, y) in enumerate(drawn.items(), start=1):
        grid[0, i].imshow(y.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        grid[0, i].set_title(method, fontsize=8)
        grid[1, i].imshow(np.abs(y - truth).T, cmap="magma", vmin=0, vmax=REACH, origin="lower")
        grid[1, i].set_title("absolute difference", fontsize=8)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes in figure.axes:
        if axes.images:  # the patient's right is on the left, as in the viewer
            axes.invert_xaxis()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()
