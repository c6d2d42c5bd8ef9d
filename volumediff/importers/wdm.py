r"""WDM (pfriedri/wdm-3d), U-Net variant: unconditional volumes in Haar coefficients.

Its state is the transform W x with the band LLL divided by 3 and the other seven bands as they
are; noise is W of white noise, divided by nothing. Here that is the wavelet space with mu = 0 and
s = (3, 1, 1, 1, 1, 1, 1, 1). Its order of the bands (LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH, the
letters for d, h, w) and its signs (high pass: even minus odd voxel) are those of our space; what
becomes of the signs in arrays that run the other way, see `_guided`.

References:
    Friedrich et al. (2024), WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image
    Synthesis, arXiv:2402.19043
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _axes, _guided
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Shapes
from volumediff.importers._haar import BANDS

__all__ = ["WDM"]

LOW = 3.0  # divisor of the band LLL
# Both published sizes, 128 with five levels and 256 with six, end on a grid of 4 x 4 x 4.
COARSEST = 4
FIELD_MM = 256.0  # BraTS at 1 mm, padded to 256; pooled by 2 for the size 128


@dataclass(frozen=True)
class WDM(Importer):
    """Runs of WDM, as its run.sh configures them: 32 groups, linear schedule, 1000 steps, x0.

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
            "WDM",
            "https://github.com/pfriedri/wdm-3d",
            source.published.licence or "MIT",
            template="sri24",
            stripped=True,
        )

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        channels = (_guided.in_channels(source), _guided.out_channels(source))
        if channels != (BANDS, BANDS):
            raise DataError(
                f"{source.where}: has {channels[0]} channels in and {channels[1]} out; WDM has "
                f"{BANDS} subbands in and out."
            )
        network = _guided.architecture(source, self.axes)
        size = 2 ** len(network["widths"]) * COARSEST
        return {
            "data": {
                "preprocessing": {
                    "spacing_mm": FIELD_MM / size,
                    "shape": [size, size, size],
                    # Its limits are 0 and the 0.999 quantile of the whole volume; the brain is
                    # about a sixth of a BraTS volume.
                    "intensity": {"name": "percentile", "low": 0.0, "high": 99.4},
                    "centre": "volume",
                }
            },
            "space": {"name": "wavelet", "wavelet": "haar", "levels": 1},
            "kernel": {"name": "gaussian", "schedule": {"name": "linear"}, "prediction": "x0"},
            "network": {**network, "groups": 32},
            "recipe": {"name": "healthy"},
            "optim": {"lr": 1e-5},
        }

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        scale = torch.ones(BANDS)
        scale[0] = LOW
        return {
            **_guided.network_of_bands(source, shapes, self.axes),
            "space.shift": torch.zeros(BANDS),
            "space.scale": scale,
        }
