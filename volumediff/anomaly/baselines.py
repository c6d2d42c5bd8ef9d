"""Baselines without a network: what every table must be read against."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile, smooth
from volumediff.anomaly.calibration import Example
from volumediff.anomaly.localizer import Finding, Learned, Method
from volumediff.data.atomic import atomic
from volumediff.errors import DataError

__all__ = ["Atlas", "AtlasZ", "Baseline", "Intensity", "Prevalence", "Smoothing"]

FORMAT = "1"


@dataclass(frozen=True, eq=False, repr=False)
class Atlas:
    """Mean and deviation of healthy volumes at every voxel, for volumes aligned to one grid.

    Arguments:
        mean: mean intensity
        std: standard deviation, with n - 1
        volumes: number n of volumes
    """

    mean: Float[Tensor, "1 c d h w"]
    std: Float[Tensor, "1 c d h w"]
    volumes: int

    def __repr__(self) -> str:
        data = self.mean.float().cpu().numpy().tobytes() + self.std.float().cpu().numpy().tobytes()
        return f"Atlas({self.volumes}, {hashlib.sha256(data).hexdigest()[:16]})"

    @staticmethod
    def fit(volumes: Iterable[Float[Tensor, "1 c d h w"]]) -> "Atlas":
        """Atlas of healthy training volumes, one at a time (Welford, 1962).

        Raises:
            ValueError: fewer than two volumes, or volumes on different grids
        """
        n, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for x in volumes:
            x = x.double()
            if n and x.shape != mean.shape:
                raise ValueError(
                    f"atlas: expected volumes of shape {tuple(mean.shape[1:])}, got "
                    f"{tuple(x.shape[1:])}; align the volumes to one grid."
                )
            n += 1
            delta = x - mean
            mean = mean + delta / n
            squares = squares + delta * (x - mean)
        if n < 2:
            raise ValueError(f"atlas: expected at least two healthy volumes, got {n}.")
        return Atlas(mean.float(), (squares / (n - 1)).sqrt().float(), n)

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file."""
        tensors = {"mean": self.mean.contiguous(), "std": self.std.contiguous()}
        meta = {"format": FORMAT, "volumes": json.dumps(self.volumes)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(safetensors.torch.save(tensors, metadata=meta))

    @staticmethod
    def load(path: Path | str) -> "Atlas":
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing, damaged or no atlas
        """
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: no readable atlas ({error}); fit it again.") from error
        if meta.get("format") != FORMAT or set(tensors) != {"mean", "std"}:
            raise DataError(f"{path}: expected an atlas with mean and std; fit it again.")
        return Atlas(tensors["mean"], tensors["std"], json.loads(meta["volumes"]))


@dataclass(frozen=True, kw_only=True)
class Baseline(Method, ABC):
    """A method that needs no model."""

    @abstractmethod
    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """The map of a volume, before normalization."""

    def check(self, model: Learned) -> None:
        """Nothing to check: the model is not used."""


@dataclass(frozen=True, kw_only=True)
class Intensity(Baseline):
    """The intensity itself, a = (1 + sign · mean_c x) / 2: bright or dark voxels are abnormal.

    Preprocessing has normalized intensities already, so that they are not equalised once more; the
    order of the voxels of a volume would be the same.

    Arguments:
        sign: 1 for bright lesions (FLAIR), -1 for dark ones

    References:
        Meissen et al. (2021), Challenging Current Semi-Supervised Anomaly Segmentation Methods for
        Brain MRI, arXiv:2109.06023
    """

    sign: Literal[1, -1] = 1

    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """The intensities in the foreground."""
        a = (1 + self.sign * example.x.mean(dim=1, keepdim=True)) / 2
        return Finding(a * example.foreground, None)


@dataclass(frozen=True, kw_only=True)
class Smoothing(Baseline):
    """Residual of a Gaussian mean, a = mean_c |x - G_σ x|: no learning at all.

    Arguments:
        sigma_mm: standard deviation σ; tune on validation among 1, 2, 4, 8 mm
    """

    sigma_mm: float = 4.0

    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """The residual; the pseudo-healthy volume is the smoothed one, background untouched."""
        healthy = smooth(
            example.x,
            sigma_mm=self.sigma_mm,
            spacing_mm=example.spacing_mm,
            foreground=example.foreground,
        )
        healthy = torch.where(example.foreground, healthy, example.x)
        return Finding((example.x - healthy).abs().mean(dim=1, keepdim=True), healthy)


@dataclass(frozen=True, kw_only=True)
class AtlasZ(Baseline):
    """Deviation from the healthy atlas, a = mean_c |x - μ| / (s + δ median(s)), at each voxel.

    Arguments:
        floor: share δ of the median deviation in the foreground that is added to s
        atlas: of the training volumes; from `load_row(..., atlas=...)`, never from YAML
    """

    floor: float = 0.1
    atlas: Atlas | None = None

    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """The absolute z-score; the pseudo-healthy volume is the atlas mean."""
        if self.atlas is None:
            raise ValueError(
                "baseline atlas_z: expected a healthy atlas, got none; fit one on the training "
                "volumes and pass it to load_row."
            )
        mean, std = (a.to(example.x) for a in (self.atlas.mean, self.atlas.std))
        if mean.shape != example.x.shape:
            raise ValueError(
                f"baseline atlas_z: expected a volume on the atlas grid {tuple(mean.shape[1:])}, "
                f"got {tuple(example.x.shape[1:])}; align the volume first."
            )
        inside = example.foreground.expand_as(std)
        middle = inside_quantile(std, 0.5, foreground=inside)
        unit = std + (self.floor * middle if middle > 0 else 1.0)
        a = ((example.x - mean).abs() / unit).mean(dim=1, keepdim=True)
        return Finding(a * example.foreground, mean)


@dataclass(frozen=True, kw_only=True)
class Prevalence(Baseline):
    """A constant map: its AP is the share of lesion voxels, the floor of every table."""

    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """One in the foreground."""
        return Finding(example.foreground.to(example.x.dtype), None)
