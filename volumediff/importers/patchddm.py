r"""PatchDDM (FlorentinBieder/PatchDDM-3D): masks of a tumour given four MR images.

Input channels there: four images, three coordinates (none in the variants `fullres` and
`halfres`), one noisy mask; here the state comes first, then the images, then the coordinates.
Masks are coded 0 and 1, not -1 and 1. Along an axis on which its arrays run the other way, a
coordinate changes its sign.

References:
    Bieder et al. (2023), Memory-Efficient 3D Denoising Diffusion Models for Medical Image
    Processing, arXiv:2303.15288
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _axes, _guided
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Shapes

__all__ = ["PatchDDM"]

IMAGES = ("t1", "t1ce", "t2", "flair")
STEM = "network.stem.weight"


@dataclass(frozen=True)
class PatchDDM(Importer):
    """Runs of PatchDDM, as its run.sh configures them: linear schedule, 1000 steps, eps, and as
    many groups as the finest level has channels.

    Arguments:
        axes: directions of the arrays it was trained with; those of BraTS files run to the left,
            posterior and superior
    """

    axes: str = "LPS"

    def __post_init__(self) -> None:
        _axes.mirrors(self.axes)

    def origin(self, source: ForeignCheckpoint) -> Origin:
        # Volumes of BraTS: skull-stripped, on the grid of the SRI24 atlas.
        return Origin(
            "PatchDDM",
            "https://github.com/FlorentinBieder/PatchDDM-3D",
            source.published.licence or "MIT",
            template="sri24",
            stripped=True,
        )

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        given, masks = _guided.in_channels(source), _guided.out_channels(source)
        places = given - masks - len(IMAGES)
        if masks != 1 or places not in (0, 3):
            raise DataError(
                f"{source.where}: has {given} channels in and {masks} out; PatchDDM has "
                f"{len(IMAGES)} images, 3 or no coordinates and 1 mask in, 1 mask out."
            )
        network = _guided.architecture(source, self.axes)
        return {
            "method": "patchddm",
            "data": {
                "channels": list(IMAGES),
                "preprocessing": {
                    "spacing_mm": 1.0,
                    "shape": [256, 256, 256],
                    # From 0, the background, to almost the brightest voxel of the brain.
                    "intensity": {"name": "percentile", "low": 0.0, "high": 99.4},
                    "centre": "volume",
                },
            },
            "space": {"name": "voxel"},
            "kernel": {"name": "gaussian", "schedule": {"name": "linear"}, "prediction": "eps"},
            "network": {
                **network,
                "groups": network["widths"][0],
                "coordinates": places == 3,
            },
            "recipe": {
                "name": "label_diffusion",
                "labels": [1],
                "coding": {"name": "signed", "absent": 0.0},
            },
            "crop": [128, 128, 128] if places else None,
            "optim": {"lr": 1e-5},
        }

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        found = _guided.network(source, shapes, self.axes)
        # The mask goes from the last place to the first; the others keep their order.
        stem = found[STEM].roll(1, dims=1)
        if stem.shape[1] > 1 + len(IMAGES):
            sign = torch.tensor([-1.0 if m else 1.0 for m in _axes.mirrors(self.axes)])
            stem[:, -3:] *= sign[:, None, None, None]
        return {
            **found,
            STEM: stem,
            "space.shift": torch.zeros(1),
            "space.scale": torch.ones(1),
        }
