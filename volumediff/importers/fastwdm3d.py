r"""fastWDM3D (AliciaDurrer/fastWDM3D, folder WDM3D): healthy T1w tissue in a void, in Haar
coefficients and two steps.

Its input is the eight bands of the noisy volume, those of the volume whose void is background,
and those of the void as a volume of -1 and 1. All bands are divided by sqrt(8), so that they are
in [-1, 1] as the intensities are: the wavelet space with mu = 0 and s = sqrt(8). The signal is
that of the variance-preserving SDE between the times 0.001 and 1, relative to its start,

.. math:: \beta(s)\, ds \text{ with } s = s_0 + (1 - s_0)\, t, \quad s_0 = 10^{-3}: \qquad
          \beta_{first} = (1 - s_0)(0.1 + 19.9\, s_0), \quad \beta_{last} = (1 - s_0)\, 20.

Chains there start from white noise of unit variance in the divided bands, as ours do; in training
its noise was divided, too. It was trained on crops around a void, with normalisations of the crop;
here volumes are whole.

References:
    Durrer et al. (2025), fastWDM3D: Fast and Accurate 3D Healthy Tissue Inpainting,
    arXiv:2507.13146
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _axes, _guided
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Shapes
from volumediff.importers._haar import BANDS

__all__ = ["FastWDM3D"]

VOLUMES = 3  # the noisy one, the one with the void, the void
START = 1e-3  # of the time of the SDE
RATES = (0.1, 20.0)  # of noise, at the times 0 and 1


@dataclass(frozen=True)
class FastWDM3D(Importer):
    """Runs of fastWDM3D, as its run.sh configures them: 32 groups, x0.

    Arguments:
        steps: T, with which it was trained, which no shape tells; the published weights have 2
        axes: directions of the arrays it was trained with; those of BraTS files run to the left,
            posterior and superior
    """

    steps: int = 2
    axes: str = "LPS"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}.")
        _axes.mirrors(self.axes)

    def origin(self, source: ForeignCheckpoint) -> Origin:
        # Volumes of BraTS: skull-stripped, on the grid of the SRI24 atlas.
        return Origin(
            "fastWDM3D",
            "https://huggingface.co/AliciaDurrer/fastWDM3D",
            source.published.licence,
            template="sri24",
            stripped=True,
        )

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        channels = (_guided.in_channels(source), _guided.out_channels(source))
        if channels != (VOLUMES * BANDS, BANDS):
            raise DataError(
                f"{source.where}: has {channels[0]} channels in and {channels[1]} out; fastWDM3D "
                f"has {BANDS} subbands of {VOLUMES} volumes in and {BANDS} out."
            )
        first, last = RATES
        return {
            "data": {
                "preprocessing": {
                    "spacing_mm": 1.0,
                    "shape": [160, 192, 160],
                    # Its limits are the quantiles 0.005 and 0.995 of the whole volume; the brain
                    # is about a sixth of a BraTS volume.
                    "intensity": {"name": "percentile", "low": 0.0, "high": 97.0},
                    "centre": "foreground",
                }
            },
            "space": {"name": "wavelet", "wavelet": "haar", "levels": 1},
            "kernel": {
                "name": "gaussian",
                "schedule": {
                    "name": "vp_sde",
                    "beta_first": (1 - START) * (first + (last - first) * START),
                    "beta_last": (1 - START) * last,
                },
                "prediction": "x0",
            },
            "times": {"name": "grid", "steps": self.steps},
            "network": {
                **_guided.architecture(source, self.axes),
                "groups": 32,
                "steps": self.steps,
            },
            "recipe": {"name": "voided"},
            "crop": [128, 128, 128],
            "optim": {"lr": 2e-5},
        }

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        return {
            **_guided.network_of_bands(source, shapes, self.axes),
            "space.shift": torch.zeros(BANDS),
            "space.scale": torch.full((BANDS,), math.sqrt(BANDS)),
        }
