r"""Signed distance from the surface of a label: smooth where masks jump, at home in wavelets.

.. math:: x = \operatorname{clip}(\delta / \delta_{max}, -1, 1), \qquad
          u = \operatorname{clip}\left(\tfrac12 + \frac{x\, \delta_{max}}{r}, 0, 1\right),

with :math:`\delta` the distance in mm to the nearest voxel on the other side, positive inside,
and r the width of the ramp between outside and inside. A label that is not there is -1
everywhere. The shares u of several labels are read as those of signed masks are.

References:
    Maurer et al. (2003), A Linear Time Algorithm for Computing Exact Euclidean Distance
    Transforms of Binary Images in Arbitrary Dimensions, IEEE TPAMI 25(2)
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.codings._base import Coding
from volumediff.codings.signed import Signed

__all__ = ["Distance"]


@dataclass(frozen=True)
class Distance(Coding):
    """One channel per label, the signed distance in units of its largest value.

    Arguments:
        limit_mm: distance from which on the code is 1 or -1
        ramp_mm: width of the ramp between outside and inside when codes are read; at most the
            size of two voxels, or else clean codes do not come back as they were
    """

    limit_mm: float = 10.0
    ramp_mm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.ramp_mm <= 2 * self.limit_mm:
            raise ValueError(
                "expected 0 < ramp_mm <= 2 limit_mm, got "
                f"ramp_mm {self.ramp_mm:g} and limit_mm {self.limit_mm:g}."
            )

    def channels(self, labels: int) -> int:
        return labels

    def shares(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n l d h w"]:
        # as steep at the surface as the ramp
        return torch.sigmoid(x * (4 * self.limit_mm / self.ramp_mm))

    def encode(
        self, masks: Bool[Tensor, "l d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "c d h w"]:
        signed = [self._signed_mm(m, spacing_mm) for m in masks.cpu().numpy()]
        x = torch.from_numpy(np.stack(signed)).to(masks.device)
        return (x / self.limit_mm).clamp(-1, 1).float()

    def decode(
        self, x: Float[Tensor, "n c d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "n l d h w"]:
        ramp = 0.5 + x * (self.limit_mm / self.ramp_mm)
        return Signed(absent=0.0).decode(ramp, spacing_mm=spacing_mm)

    def _signed_mm(
        self, mask: Bool[np.ndarray, "d h w"], spacing_mm: tuple[float, float, float]
    ) -> Float[np.ndarray, "d h w"]:
        from scipy.ndimage import distance_transform_edt

        if mask.all() or not mask.any():
            return np.full(mask.shape, self.limit_mm if mask.all() else -self.limit_mm)
        inside = distance_transform_edt(mask, sampling=spacing_mm)
        return inside - distance_transform_edt(~mask, sampling=spacing_mm)
