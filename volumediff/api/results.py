"""Results in the voxel order and on the grid of the image that was given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8

from volumediff.data.arrays import nibabel_image
from volumediff.data.grid import Grid, native_order
from volumediff.data.label_names import label_name, names_in
from volumediff.errors import UsageError
from volumediff.findings.schema import Finding
from volumediff.inference.localized_case import Localized
from volumediff.inference.segment import Segmented
from volumediff.inference.translate import Translated
from volumediff.outputs.export import blocks_of
from volumediff.storage.folder import made

if TYPE_CHECKING:
    import nibabel as nib
    from matplotlib.figure import Figure

__all__ = ["LocalizationResult", "SegmentationResult", "TranslationResult"]

Result = TypeVar("Result", Localized, Segmented)


@dataclass(frozen=True, eq=False, repr=False)
class LocalizationResult:
    """What a method found in one image; arrays are indexed as the image was.

    Voxel (i, j, k) of every array is voxel (i, j, k) of the image: `array[i, j, k]` of nibabel and
    (array, affine), `data[0, i, j, k]` of TorchIO and MONAI, `image[i, j, k]` of SimpleITK.

    Arguments:
        localized: the result on the prepared grid, with the way back
    """

    localized: Localized

    @cached_property
    def map(self) -> Float[np.ndarray, "i j k"]:
        """Higher is more abnormal; outside the foreground the lowest value, at most 0."""
        return self._home(self.localized.arrays.map)

    @cached_property
    def mask(self) -> Bool[np.ndarray, "i j k"] | None:
        """Map above the threshold; None where the method has no threshold."""
        mask = self.localized.arrays.mask
        return None if mask is None else self._home(mask)

    @cached_property
    def foreground(self) -> Bool[np.ndarray, "i j k"]:
        """Voxels that were looked at."""
        return self._home(self.localized.arrays.foreground)

    @cached_property
    def pseudo_healthy(self) -> Float[np.ndarray, "c i j k"] | None:
        """The image without its findings, in its own intensities, channels first; None where the
        method makes none."""
        healthy = list(self.localized.arrays.healthy.values())
        return native_order(np.stack(healthy), self._grid) if healthy else None

    @cached_property
    def uncertainty(self) -> Float[np.ndarray, "i j k"] | None:
        """Deviation of the map between the seeds of an ensemble; None with one seed."""
        found = self.localized.arrays.uncertainty
        return None if found is None else self._home(found)

    @cached_property
    def trace(self) -> dict[str, Shaped[np.ndarray, "i j k"]]:
        """Masks and maps of the method's components by name; empty with `trace=False`."""
        found: dict[str, np.ndarray] = {}
        if self.localized.trace:
            grid = self.localized.grid
            for name, block in blocks_of(self.localized.found).items():
                is_mask = block.dtype == torch.bool
                array = grid.label(block[0]) > 0 if is_mask else grid.image(block[0])
                found[name] = self._home(array[0])
        return found

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The connected components of the mask, the most urgent first: volume in ml, place in RAS
        millimetres, scores, probability; see `volumediff.findings.schema`."""
        return self.localized.findings.findings

    @property
    def statement(self) -> str:
        """What was found, in one sentence."""
        return self.localized.findings.statement

    @property
    def score(self) -> float:
        """Score of the whole volume; higher is more abnormal."""
        return self.localized.found.score

    @property
    def threshold(self) -> float | None:
        """The mask is where the map is higher."""
        return self.localized.found.threshold

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is recorded beside the map: method, weights, inputs, thresholds, versions."""
        return self.localized.facts

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was noticed and treated while the image was read and prepared."""
        return tuple(remark.message for remark in self.localized.grid.record.findings)

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index (i, j, k) to RAS millimetres, of the image."""
        return self._grid.affine

    @property
    def _grid(self) -> Grid:
        return self.localized.grid.record.native

    def _home(self, array: Shaped[np.ndarray, "d h w"]) -> Shaped[np.ndarray, "i j k"]:
        return native_order(array[None], self._grid)[0]

    def numpy(self, what: str = "map") -> Shaped[np.ndarray, "*c i j k"]:
        """One of `map`, `mask`, `foreground`, `pseudo_healthy`, `uncertainty`, or of the trace.

        Raises:
            UsageError: no such array, or the method does not make it
        """
        own = ("map", "mask", "foreground", "pseudo_healthy", "uncertainty")
        found = getattr(self, what) if what in own else self.trace.get(what)
        return _present(found, what, [*own, *self.trace])

    def to_nibabel(self, what: str = "map") -> "nib.Nifti1Image":
        """The array of `numpy(what)` with the image's affine; masks as uint8."""
        array = self.numpy(what)
        return nibabel_image(array[None] if array.ndim == 3 else array, self._grid)

    def save(self, folder: Path | str, *, case: str | None = None) -> list[Path]:
        """Writes the files that `volumediff localize` writes, without its ledger.

        Arguments:
            folder: created where it is not there; files of the same names are replaced
            case: what the files begin with; None takes the name of the file, or `image`
        """
        return _named(self.localized, case).write(made(folder))

    def save_dicom(self, folder: Path | str, *, case: str | None = None) -> list[Path]:
        """Writes findings (Segmentation), map (Parametric Map) and measurements (structured
        report) as DICOM objects in the space of the series that was given; see `save`.

        Raises:
            UsageError: highdicom is not installed
            DataError: the image was not the folder of a DICOM series, or no object can refer to it
        """
        return _named(self.localized, case).write_dicom(made(folder))

    def plot(self, *, slices: int = 3) -> "Figure":
        """Axial slices through the highest values: image, pseudo-healthy image, map and mask.

        Arguments:
            slices: how many, one row each

        Returns:
            a figure of matplotlib: notebooks show it, and `.savefig(path)` writes it
        """
        from volumediff.api.plotting import localization_figure

        return localization_figure(self.localized.arrays, slices=slices)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._grid.shape))
        limit = "none" if self.threshold is None else f"{self.threshold:.4g}"
        return (
            f"LocalizationResult({self.facts['method']}, {shape} voxels {self._grid.axes}, score "
            f"{self.score:.4g}, threshold {limit}, {len(self.findings)} findings)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult:
    """Labels of one image; arrays are indexed as the image was, as in `LocalizationResult`.

    Arguments:
        segmented: the result on the prepared grid, with the way back
    """

    segmented: Segmented

    @cached_property
    def labels(self) -> UInt8[np.ndarray, "i j k"]:
        """Most probable label at each voxel, 0 for the background."""
        return self._home(self.segmented.labels)

    @cached_property
    def mask(self) -> Bool[np.ndarray, "i j k"]:
        """Voxels of any label."""
        return self.labels > 0

    @cached_property
    def probabilities(self) -> dict[int, Float[np.ndarray, "i j k"]]:
        """Probability of each label."""
        return self._per_label(self.segmented.found.probabilities)

    @cached_property
    def variance(self) -> dict[int, Float[np.ndarray, "i j k"]]:
        """Variance of the samples, of each label; empty where a method draws none."""
        found = self.segmented.found.variance
        return {} if found is None else self._per_label(found)

    @cached_property
    def entropy(self) -> Float[np.ndarray, "i j k"]:
        """Entropy of the label in nats."""
        return self._home(self.segmented.grid.image(self.segmented.found.entropy[0]))

    @cached_property
    def mutual_information(self) -> Float[np.ndarray, "i j k"] | None:
        """How much the members of an ensemble disagree, in nats; None for one answer."""
        found = self.segmented.found.mutual_information
        return None if found is None else self._home(self.segmented.grid.image(found[0]))

    @property
    def label_names(self) -> dict[int, str]:
        """Label value -> its name in the data set of the run, or `label 1`."""
        names = names_in(self.facts)
        return {value: label_name(value, names) for value in self.segmented.found.values}

    @property
    def volumes_ml(self) -> dict[int, float]:
        """Volume of each label in millilitres."""
        return {int(k): v for k, v in self.segmented.volumes_ml(self.labels).items()}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is recorded beside the labels: method, weights, inputs, versions."""
        return self.segmented.facts

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was noticed and treated while the image was read and prepared."""
        return tuple(remark.message for remark in self.segmented.grid.record.findings)

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index (i, j, k) to RAS millimetres, of the image."""
        return self._grid.affine

    @property
    def _grid(self) -> Grid:
        return self.segmented.grid.record.native

    def _home(self, array: Shaped[np.ndarray, "1 d h w"]) -> Shaped[np.ndarray, "i j k"]:
        return native_order(array, self._grid)[0]

    def _per_label(self, stacked: torch.Tensor) -> dict[int, np.ndarray]:
        grid = self.segmented.grid
        return {
            value: self._home(grid.image(stacked[0, i : i + 1]))
            for i, value in enumerate(self.segmented.found.values)
        }

    def numpy(self, what: str = "labels") -> Shaped[np.ndarray, "i j k"]:
        """One of `labels`, `mask`, `entropy`.

        Raises:
            UsageError: no such array
        """
        own = ("labels", "mask", "entropy")
        return _present(getattr(self, what) if what in own else None, what, own)

    def to_nibabel(self, what: str = "labels") -> "nib.Nifti1Image":
        """The array of `numpy(what)` with the image's affine."""
        return nibabel_image(self.numpy(what)[None], self._grid)

    def save(self, folder: Path | str, *, case: str | None = None) -> list[Path]:
        """Writes the files that `volumediff segment` writes, without its ledger.

        Arguments:
            folder: created where it is not there; files of the same names are replaced
            case: what the files begin with; None takes the name of the file, or `image`
        """
        return _named(self.segmented, case).write(made(folder))[0]

    def save_dicom(self, folder: Path | str, *, case: str | None = None) -> list[Path]:
        """Writes labels and probabilities (Segmentations) and measurements (structured report) as
        DICOM objects in the space of the series that was given; see `save`.

        Raises:
            UsageError: highdicom is not installed
            DataError: the image was not the folder of a DICOM series, or no object can refer to it
        """
        return _named(self.segmented, case).write_dicom(made(folder))

    def plot(self, *, slices: int = 3) -> "Figure":
        """Axial slices through the largest areas: image and labels on it.

        Arguments:
            slices: how many, one row each
        """
        from volumediff.api.plotting import segmentation_figure

        labels = self.segmented.labels[0]
        return segmentation_figure(self.segmented, labels, slices=slices)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._grid.shape))
        names = self.label_names
        volumes = ", ".join(f"{names[k]}: {v:.3g} ml" for k, v in self.volumes_ml.items())
        method = self.facts["method"]
        return f"SegmentationResult({method}, {shape} voxels {self._grid.axes}, {volumes})"


@dataclass(frozen=True, eq=False, repr=False)
class TranslationResult:
    """Channels that were made for one case; arrays are indexed as its first image was.

    Arguments:
        translated: the result on the prepared grid, with the way back
    """

    translated: Translated

    @cached_property
    def images(self) -> dict[str, Float[np.ndarray, "i j k"]]:
        """The translated channels by name: from 0, the background, to 1, or in HU for CT; the mean
        where there are several draws."""
        return self._home(self.translated.channels)

    @cached_property
    def deviations(self) -> dict[str, Float[np.ndarray, "i j k"]]:
        """Standard deviation of the draws by channel, in the same unit; empty for one draw."""
        return self._home(self.translated.deviations)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is recorded beside the channels: method, weights, inputs, versions."""
        return self.translated.facts

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was noticed and treated while the image was read and prepared."""
        return tuple(remark.message for remark in self.translated.grid.record.findings)

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index (i, j, k) to RAS millimetres, of the first image."""
        return self._grid.affine

    @property
    def _grid(self) -> Grid:
        return self.translated.grid.record.native

    def _home(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: native_order(array, self._grid)[0] for name, array in arrays.items()}

    def to_nibabel(self, channel: str | None = None) -> "nib.Nifti1Image":
        """A translated channel with the image's affine.

        Arguments:
            channel: its name; None where there is one

        Raises:
            UsageError: no such channel, or several and none was named
        """
        names = list(self.images)
        name = names[0] if channel is None and len(names) == 1 else channel
        if name not in self.images:
            raise UsageError(f"channel {channel}: choose from {', '.join(names)}.")
        return nibabel_image(self.images[name][None], self._grid)

    def save(self, folder: Path | str, *, case: str | None = None) -> list[Path]:
        """Writes the files that `volumediff translate` writes, without its ledger.

        Arguments:
            folder: created where it is not there; files of the same names are replaced
            case: what the files begin with; None takes the name of the file, or `image`
        """
        translated = self.translated
        if case is not None:
            examination = replace(translated.examination, id=case)
            facts = {**translated.facts, "case": case}
            translated = replace(translated, examination=examination, facts=facts)
        return translated.write(made(folder))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._grid.shape))
        names, draws = ", ".join(self.images), self.facts["draws"]
        return (
            f"TranslationResult({self.facts['method']}, {names}, {shape} voxels "
            f"{self._grid.axes}, {draws} draw{'s' if draws > 1 else ''})"
        )


def _named(result: Result, case: str | None) -> Result:
    """The result of a case of another name; None leaves it as it is."""
    if case is None:
        return result
    examination = replace(result.examination, id=case)
    return replace(result, examination=examination, facts={**result.facts, "case": case})


def _present(found: np.ndarray | None, what: str, names: Sequence[str]) -> np.ndarray:
    if found is None and what in names:
        raise UsageError(f"{what}: this method makes none; choose another array or method.")
    if found is None:
        raise UsageError(f"{what}: no such array; choose from {', '.join(names)}.")
    return found
