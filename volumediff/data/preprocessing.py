r"""From files to what a network sees, and from what it produces back to the files' own grid.

.. math:: \text{file} \to \text{canonical} \to \text{intensities} \to \text{spacing} \to
          \text{crop or pad} \to x

Channels on different grids are resampled to the first channel's; image and label must share one.
Labels are interpolated linearly as memberships between the voxels around a place, without the
wider mean that keeps intensities from aliasing: that mean takes structures of a few voxels away.
With :math:`x_\text{file} = x\,\text{step} + \text{origin}` per axis as the whole geometry, the way
back is the same resampling with the inverse map; `PreprocessingRecord` holds what it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from volumediff.data.cases import Case
from volumediff.data.content import content_remarks
from volumediff.data.grid import agree
from volumediff.data.intensity import BACKGROUND, Intensity, Percentile
from volumediff.data.prepared_grid import Centre, Placement, placement, weights
from volumediff.data.preprocessing_record import PreprocessingRecord
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.readers import majority
from volumediff.data.remarks import Remark
from volumediff.data.resampling import Matrices, onto, resample, resample_labels
from volumediff.data.shared_grid import called, on_first_grid, remarks_of
from volumediff.data.truth import marked
from volumediff.data.volume import Volume, check_grids, read
from volumediff.errors import DataError

__all__ = ["MOST_CROPPED", "Prepared", "Preprocessing"]

# Half width of the triangle that memberships of labels are interpolated with, in voxels.
BETWEEN_VOXELS = 1.0
# Share of the foreground that the shape of a run may cut away.
MOST_CROPPED = 0.05


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as a network sees it.

    Arguments:
        x: channels in [-1, 1], background -1
        label: on the same grid, when the case has one: the consensus of the data set, or what
            most readers say
        foreground: union over the channels
        spacing_mm: along d, h, w
        record: the way back
        cropped: share of the foreground that lies outside the prepared grid, 0 to 1
        readers: label maps of the readers on the same grid, in the order of `Case.labels`
    """

    x: Float[Tensor, "c d h w"]
    label: UInt8[Tensor, "1 d h w"] | None
    foreground: Bool[Tensor, "1 d h w"]
    spacing_mm: tuple[float, float, float]
    record: PreprocessingRecord
    cropped: float = 0.0
    readers: UInt8[Tensor, "r d h w"] | None = None


@dataclass(frozen=True)
class Preprocessing:
    """Spacing, shape and intensities of the volumes that a model is trained on.

    Arguments:
        spacing_mm: along d, h, w; None keeps the file's
        shape: crop and pad to it; None keeps what the spacing gives
        intensity: normalization
        centre: what the grid is centred on: the box around the foreground, the file's field of
            view, or a point in RAS millimetres. The box moves by voxels with a subject's outermost
            ones; volumes that are aligned to a template keep their places with a point alone
        policy: decisions on ambiguous files
    """

    spacing_mm: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    intensity: Intensity = field(default_factory=Percentile)
    centre: Centre = "foreground"
    policy: ReadPolicy = field(default_factory=ReadPolicy)

    def __post_init__(self) -> None:
        if self.spacing_mm is not None and not min(self.spacing_mm) > 0:
            raise ValueError(f"Preprocessing takes spacing_mm > 0, got {self.spacing_mm}.")
        if self.shape is not None and min(self.shape) < 1:
            raise ValueError(f"Preprocessing takes a shape of at least 1, got {self.shape}.")

    def of_channels(self, numbers: Sequence[int]) -> "Preprocessing":
        """The same for volumes that hold these channels alone, in this order."""
        return replace(self, intensity=self.intensity.of_channels(numbers))

    def prepare(self, case: Case) -> Prepared:
        """Reads and prepares a case; of its label the lesions, or else its boxes filled.

        Raises:
            DataError: a file is refused, or image and label lie on different grids
        """
        images = [read(path, policy=self.policy) for path in case.images.values()]
        found = marked(case, images[0], self.policy)
        own = None if found.readers and case.label is None else found.label
        return self.prepare_volumes(images, own, readers=found.readers)

    def prepare_volumes(
        self,
        images: Sequence[Volume],
        label: Volume | None = None,
        *,
        readers: Sequence[Volume] = (),
    ) -> Prepared:
        """Prepares volumes that are in memory; the first image sets the grid.

        Arguments:
            label: of the case; without it, what most readers say on the prepared grid
            readers: label maps of the readers

        Raises:
            DataError: an image shows nothing, or image and label lie on different grids
        """
        if not images:
            raise ValueError("expected at least one image of the case, got none.")
        first, findings = images[0], []
        channels, covered = on_first_grid(images, findings)
        for volume in (*([] if label is None else [label]), *readers):
            check_grids(first, volume)
            if len(volume.array) != 1:
                raise DataError(
                    f"{volume.path}: expected one label volume, got {len(volume.array)} frames; "
                    "give one file of numbered labels."
                )
            # a reader who marks nothing has an opinion, and the file no fault
            alone = volume is label
            findings += [f for f in remarks_of(volume) if alone or f.code != "empty_mask"]
        x = channels.numpy()
        masks, limits = self._limits(x, covered)
        owners = [image for image in images for _ in image.array]
        for channel, mask, owner in zip(x, masks, owners, strict=True):
            findings += self._seen(channel, mask, owner)
        for i, (mask, limit) in enumerate(zip(masks, limits, strict=True)):
            x[i] = self.intensity.apply(x[i], mask, limits=limit, channel=i)
        inside = np.logical_or.reduce(masks)
        shape, step, origin = self._placement(first, inside)
        held = 4 * len(x) * prod(shape)
        if held > self.policy.budget_bytes:
            raise DataError(
                f"{first.path}: {shape} voxels need {held / 2**30:.3g} GiB, more than the budget "
                f"of {self.policy.budget_bytes / 2**30:.3g} GiB; choose a coarser spacing_mm."
            )
        matrices = weights(first.grid.shape, shape, step=step, origin=origin)
        kept = resample(torch.from_numpy(inside)[None].float(), matrices, fill=0.0) >= 0.5
        cropped = _cropped(inside, matrices)
        if cropped:
            text = f"{cropped:.1%} of the foreground is cropped"
            findings.append(Remark("warning", "cropped", text))
        near = weights(first.grid.shape, shape, step=step, origin=origin, width=BETWEEN_VOXELS)
        maps = [resample_labels(torch.from_numpy(v.array[:1]), near) for v in readers]
        opinions = torch.cat(maps) if maps else None
        target = None
        if label is not None:
            target = resample_labels(torch.from_numpy(label.array[:1]), near)
        elif opinions is not None:
            target = torch.from_numpy(majority(opinions.numpy()))
        spacing = first.spacing_mm
        return Prepared(
            resample(channels, matrices, fill=BACKGROUND),
            target,
            kept,
            (spacing[0] * step[0], spacing[1] * step[1], spacing[2] * step[2]),
            PreprocessingRecord(
                first.native, first.grid, shape, step, origin, limits, tuple(findings)
            ),
            cropped,
            opinions,
        )

    def label_at_spacing(self, label: Volume) -> UInt8[Tensor, "1 od oh ow"]:
        """What the spacing leaves of a label map; without background planes, and without the crop
        that needs the image."""
        whole = replace(self, shape=None, centre="volume")
        shape, step, origin = whole._placement(label, np.zeros((1, 1, 1), bool))
        y, found = label.array[:1], np.argwhere(label.array[0])
        if len(found) == 0:
            return torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
        matrices = []
        for axis, matrix in enumerate(
            weights(label.grid.shape, shape, step=step, origin=origin, width=BETWEEN_VOXELS)
        ):
            first, last = int(found[:, axis].min()), int(found[:, axis].max()) + 1
            # beyond the box every membership is 0
            y = y.take(range(first, last), axis=axis + 1)
            matrix = matrix[:, first:last]
            rows = (matrix != 0).any(1)
            matrices.append(matrix[rows] if rows.any() else matrix[:1])
        d, h, w = matrices
        return resample_labels(torch.from_numpy(np.ascontiguousarray(y)), (d, h, w))

    def to_prepared(self, volume: Volume, record: PreprocessingRecord) -> Float[Tensor, "c d h w"]:
        """Another volume of a case, such as a map of its own, on the prepared grid.

        Values stay as they are; outside the volume's field of view they are 0.
        """
        x = torch.from_numpy(volume.array).float()
        if agree(record.canonical, volume.grid):
            x, _ = onto(x, volume.grid, record.canonical, fill=0.0)
        matrices = weights(
            record.canonical.shape, record.shape, step=record.step, origin=record.origin
        )
        return resample(x, matrices, fill=0.0)

    def to_canonical(
        self,
        array: Shaped[Tensor, "c d h w"] | Shaped[np.ndarray, "c d h w"],
        record: PreprocessingRecord,
        *,
        order: Literal[0, 1] = 1,
        fill: float = 0.0,
    ) -> Shaped[np.ndarray, "c od oh ow"]:
        """The array on the voxels of the input, with axes along R, A, S whatever the input's are.

        `write(..., like=record.native)` takes it; `data.grid.native_order` gives it the order of
        the input.

        Arguments:
            array: on the prepared grid: a map, pseudo-healthy channels, or labels (one channel)
            order: 1 interpolates linearly, 0 takes the label whose membership is largest
            fill: value where the prepared volume does not reach
        """
        values = torch.as_tensor(array)
        step = tuple(1 / s for s in record.step)
        origin = tuple(-o / s for o, s in zip(record.origin, record.step, strict=True))
        if order == 0:
            near = weights(
                record.shape,
                record.canonical.shape,
                step=step,
                origin=origin,
                width=BETWEEN_VOXELS,
            )
            return resample_labels(values.to(torch.uint8), near).numpy()
        matrices = weights(record.shape, record.canonical.shape, step=step, origin=origin)
        return resample(values.float(), matrices, fill=fill).numpy()

    def to_intensity(
        self, array: Float[np.ndarray, "c d h w"], record: PreprocessingRecord
    ) -> Float[np.ndarray, "c d h w"]:
        """Normalized channels in the unit of their files, on any grid."""
        pairs = enumerate(zip(array, record.limits, strict=True))
        return np.stack([self.intensity.invert(y, limits=v, channel=i) for i, (y, v) in pairs])

    def limits_of(self, case: Case) -> tuple[tuple[float, ...], ...]:
        """What the intensities of a case are normalized by, per channel; its label is not read.

        Raises:
            DataError: a file is refused
        """
        images = [read(path, policy=self.policy) for path in case.images.values()]
        channels, covered = on_first_grid(images, [])
        return self._limits(channels.numpy(), covered)[1]

    def _limits(
        self, x: Float[np.ndarray, "c d h w"], covered: Sequence[Bool[np.ndarray, "d h w"]]
    ) -> tuple[list[Bool[np.ndarray, "d h w"]], tuple[tuple[float, ...], ...]]:
        """Foreground and limits of every channel."""
        masks = [self.intensity.mask(c) & m for c, m in zip(x, covered, strict=True)]
        limits = (self.intensity.limits(c, m) for c, m in zip(x, masks, strict=True))
        return masks, tuple(limits)

    def _seen(
        self,
        x: Float[np.ndarray, "d h w"],
        inside: Bool[np.ndarray, "d h w"],
        image: Volume,
    ) -> list[Remark]:
        """Remarks on what a channel shows.

        Raises:
            DataError: nothing, or something else than the intensities are for
        """
        found = content_remarks(x, inside, self.intensity)
        for remark in found:
            if remark.severity == "error":
                raise DataError(f"{image.path}: {remark.message}.")
        return [Remark(r.severity, r.code, f"{called(image)}: {r.message}") for r in found]

    def _placement(self, first: Volume, inside: Bool[np.ndarray, "d h w"]) -> Placement:
        return placement(
            first, inside, spacing_mm=self.spacing_mm, size=self.shape, centre=self.centre
        )


def _cropped(inside: Bool[np.ndarray, "d h w"], matrices: Matrices) -> float:
    """Share of the foreground that no voxel of the prepared grid sees."""
    seen = [(m != 0).any(0).numpy() for m in matrices]
    # along each axis the crop is an interval; voxels skipped between samples are not lost
    box = tuple(
        slice(int(s.argmax()), len(s) - int(s[::-1].argmax())) if s.any() else slice(0, 0)
        for s in seen
    )
    total = int(inside.sum())
    return (total - int(inside[box].sum())) / max(total, 1)
