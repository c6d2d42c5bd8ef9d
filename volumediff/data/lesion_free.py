r"""Partly healthy volumes: training crops from the lesion-free slabs of volumes with lesions.

A plane is lesion-free if no lesion voxel lies in it or within a margin of it, since tissue beside
a lesion is not healthy, either. Crops of a volume with lesions lie in lesion-free planes alone, at
keyed positions as ever; volumes without a lesion give crops from everywhere. Augmentation moves
the planes, and they are found after it; where it leaves no window, the sample is not augmented.

Against leakage: splits keep patients together, so that a patient whose slabs train is in no other
part; the record of what a run has seen names the patient, and evaluations refuse all volumes of
that patient. What represents health as a whole (atlas, thresholds, fitted methods) leaves volumes
with lesions out.

References:
    Bercea et al., Diffusion models for anomaly localization in medical images, Sec. 6.3:
    lesion-free slices as healthy ones, and why they may be none
"""

from dataclasses import dataclass

from jaxtyping import Bool, UInt8
from torch import Tensor

__all__ = ["AXES", "LesionFree"]

# Planes are named by the two axes that they hold; volumes are RAS.
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class LesionFree:
    """Lesion-free planes of a volume along one axis.

    Arguments:
        planes: sagittal, coronal or axial
        margin_mm: distance to the nearest lesion voxel along the axis that is still too near
    """

    planes: str = "axial"
    margin_mm: float = 10.0

    def __post_init__(self) -> None:
        if self.planes not in AXES or self.margin_mm < 0:
            raise ValueError(
                f"expected planes out of {', '.join(AXES)} and a margin of at least 0 mm, got "
                f"{self.planes} and {self.margin_mm:g}."
            )

    @property
    def axis(self) -> int:
        """Axis of the volume across the planes."""
        return AXES[self.planes]

    def free(
        self, label: UInt8[Tensor, "1 d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Bool[Tensor, "n"]:
        """Which planes are lesion-free."""
        others = tuple(a for a in range(3) if a != self.axis)
        lesion = (label[0] > 0).any(dim=others[1]).any(dim=others[0])
        near = int(self.margin_mm / spacing_mm[self.axis] + 1e-6)
        free = ~lesion
        for plane in lesion.nonzero().flatten().tolist():
            free[max(plane - near, 0) : plane + near + 1] = False
        return free

    def starts(self, free: Bool[Tensor, "n"], *, size: int, stride: int) -> list[int]:
        """Positions, in strides, of windows of `size` planes that are lesion-free throughout.

        Planes that padding to the stride or to the size of the window adds are lesion-free.
        """
        last = max(-(-len(free) // stride) - size // stride, 0)
        return [
            first
            for first in range(last + 1)
            if bool(free[first * stride : first * stride + size].all())
        ]
