r"""cWDM (pfriedri/cwdm): one contrast of BraTS given the other three, in Haar coefficients.

Its input is the eight bands of the noisy contrast, then those of the three others in the order of
CONTRASTS; the band LLL of each is divided by 3. Intensities u run from 0 to 1, ours from -1 to 1:
with x = 2 u - 1 and W the transform, W u = (W x + W 1) / 2, and W 1 is sqrt(8) in the band LLL and
0 in the others. Here that is the wavelet space with mu = (-sqrt 8, 0, ..., 0) and s = (6, 2, ...,
2). Noise is white in the divided bands, as ours is.

References:
    Friedrich et al. (2024), cWDM: Conditional Wavelet Diffusion Models for Cross-Modality 3D
    Medical Image Synthesis, arXiv:2411.17203
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _axes, _guided
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Shapes
from volumediff.importers._haar import BANDS

__all__ = ["CWDM"]

CONTRASTS = ("t1n", "t1c", "t2w", "t2f")
LOW = 3.0  # divisor of the band LLL


@dataclass(frozen=True)
class CWDM(Importer):
    """Runs of cWDM, as its run.sh configures them: 32 groups, linear schedule, 1000 steps, x0.

    Arguments:
        target: the contrast that the checkpoint draws, which no shape tells; the file's name in
            the publication does
        axes: directions of the arrays it was trained with; those of BraTS files run to the left,
            posterior and superior
    """

    target: Literal["t1n", "t1c", "t2w", "t2f"] = "t1n"
    axes: str = "LPS"

    def __post_init__(self) -> None:
        _axes.mirrors(self.axes)

    def origin(self, source: ForeignCheckpoint) -> Origin:
        # Volumes of BraTS: skull-stripped, on the grid of the SRI24 atlas.
        return Origin(
            f"cWDM, {self.target}",
            "https://github.com/pfriedri/cwdm",
            source.published.licence or "MIT",
            template="sri24",
            stripped=True,
        )

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        channels = (_guided.in_channels(source), _guided.out_channels(source))
        expected = (BANDS * len(CONTRASTS), BANDS)
        if channels != expected:
            raise DataError(
                f"{source.where}: has {channels[0]} channels in and {channels[1]} out; cWDM has "
                f"{BANDS} subbands of {len(CONTRASTS)} contrasts in and {BANDS} out."
            )
        return {
            "method": "cwdm",
            "data": {
                "channels": list(CONTRASTS),
                "preprocessing": {
                    "spacing_mm": 1.0,
                    "shape": [224, 224, 160],
                    # Its limits are the quantiles 0.001 and 0.999 of the whole volume; the brain
                    # is about a sixth of a BraTS volume.
                    "intensity": {"name": "percentile", "low": 0.0, "high": 99.4},
                    "centre": "volume",
                },
            },
            "space": {"name": "wavelet", "wavelet": "haar", "levels": 1},
            "kernel": {"name": "gaussian", "schedule": {"name": "linear"}, "prediction": "x0"},
            "network": {**_guided.architecture(source, self.axes), "groups": 32},
            "recipe": {"name": "translation", "targets": [self.target]},
            "optim": {"lr": 1e-5},
        }

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        shift, scale = torch.zeros(BANDS), torch.full((BANDS,), 2.0)
        shift[0], scale[0] = -math.sqrt(BANDS), 2 * LOW
        return {
            **_guided.network_of_bands(source, shapes, self.axes),
            "space.shift": shift,
            "space.scale": scale,
        }
