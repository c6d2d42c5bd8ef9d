"""Arrays on the grid of a prepared volume, brought back to the grid of the input."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from volumediff.data.preprocessing import Preprocessing
from volumediff.data.preprocessing_record import PreprocessingRecord
from volumediff.metrics.components import without_small
from volumediff.outputs.result_grid import ResultGrid

__all__ = ["InputGrid", "findings_alone"]


@dataclass(frozen=True, eq=False)
class InputGrid(ResultGrid):
    """The grid of an input that was resampled and cropped, and nothing else.

    Arguments:
        preprocessing: that prepared the volume
        record: the way back
    """

    preprocessing: Preprocessing
    record: PreprocessingRecord

    def image(
        self, array: Shaped[Tensor, "1 d h w"], *, beyond: float | None = None
    ) -> Float[np.ndarray, "1 od oh ow"]:
        values = array.detach().float().cpu()
        fill = min(0.0, float(values.min())) if beyond is None else beyond
        return self.preprocessing.to_canonical(values, self.record, fill=fill)

    def channels(self, array: Float[Tensor, "c d h w"]) -> Float[np.ndarray, "c od oh ow"]:
        values = array.detach().float().cpu().numpy()
        restored = self.preprocessing.to_intensity(values, self.record)
        native = [
            self.preprocessing.to_canonical(channel[None], self.record, fill=low)
            for channel, (low, *_) in zip(restored, self.record.limits, strict=True)
        ]
        return np.concatenate(native)

    def label(
        self, array: Bool[Tensor, "1 d h w"] | UInt8[Tensor, "1 d h w"]
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        values = array.detach().to("cpu", torch.uint8)
        return self.preprocessing.to_canonical(values, self.record, order=0)

    def most_probable(
        self, probabilities: Float[Tensor, "l d h w"], values: Sequence[int]
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        """The most probable label, of probabilities that are interpolated to the input's voxels.

        Borders lie between the voxels of the prepared volume then, and label and probability maps
        agree. The background wins where it is as probable as a label.

        Arguments:
            probabilities: of each label, without the background
            values: of the labels
        """
        best = rest = result = None
        for p, value in zip(probabilities.detach().float().cpu(), values, strict=True):
            share = self.preprocessing.to_canonical(p[None], self.record)
            if best is None:
                rest, best = np.ones_like(share), np.zeros_like(share)
                result = np.zeros(share.shape, np.uint8)
            rest -= share
            wins = share > best
            result[wins], best[wins] = value, share[wins]
        assert best is not None, "there are labels"
        result[rest >= best] = 0
        return result

    def mask(
        self, array: Bool[Tensor, "1 d h w"], *, volume_ml: float
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        return findings_alone(
            self.label(array), affine=self.record.canonical.affine, volume_ml=volume_ml
        )


def findings_alone(
    mask: UInt8[np.ndarray, "1 d h w"], *, affine: Float[np.ndarray, "4 4"], volume_ml: float
) -> UInt8[np.ndarray, "1 d h w"]:
    """A mask without parts below a volume.

    Arguments:
        mask: 0 and 1
        affine: voxel index to millimetres
        volume_ml: smallest volume of a finding, in millilitres
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    kept = without_small(mask[0] > 0, volume_ml=volume_ml, voxel_ml=voxel_ml)
    return kept[None].astype(np.uint8)
