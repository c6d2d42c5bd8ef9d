"""Contract of methods: anything that localizes in a volume."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._sound import sound
from volumediff.anomaly.calibration import Calibration, Example, Normalization, Raw, Residual
from volumediff.anomaly.finding import Finding, Localization
from volumediff.anomaly.post import MASK, Post
from volumediff.anomaly.score import Score, TopFraction
from volumediff.anomaly.threshold import HealthyFPR, OwnMap, Threshold
from volumediff.autoencoders import Reconstructor
from volumediff.condition import Condition
from volumediff.data.seen import Seen
from volumediff.model import Model

__all__ = ["BAR", "Learned", "Method"]

Learned = Model | Reconstructor | None
"""What a method works with: a diffusion model, an autoencoder, or nothing."""

BAR = "first.threshold"  # among the statistics of a calibration


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Anything that localizes: rows of the engine and baselines.

    Arguments:
        supervision: what training needs beside volumes: none at all, healthy volumes
            (unsupervised), synthetic anomalies (self), volume labels (weak), masks (full)
        scope: what the method claims to find, in words
        normalize: the map in units of healthy maps
        post: post-processing, applied in its fixed order
        threshold: from map to mask
        score: from map to volume score
    """

    supervision: Literal["none", "unsupervised", "self", "weak", "full"] = "unsupervised"
    scope: str = "any deviation from healthy volumes"
    normalize: Normalization = field(default_factory=Raw)
    post: tuple[Post, ...] = ()
    threshold: Threshold = field(default_factory=HealthyFPR)
    score: Score = field(default_factory=TopFraction)

    @abstractmethod
    def check(self, model: Learned) -> None:
        """Raises ValueError, with the reason, for a model with which the method is meaningless."""

    @abstractmethod
    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """The map of a volume, before normalization."""

    @property
    def lent(self) -> dict[str, Seen]:
        """SHA-256 of the weights of other runs that the method works with -> what they saw."""
        return {}

    @property
    def bar(self) -> "tuple[Method, float] | None":
        """A row and the quantile of its healthy maps that this method waits for; None for none."""
        return None

    def with_bar(self, statistics: Mapping[str, Tensor]) -> "Method":
        """The method with what it waits for, from the statistics of its calibration."""
        return self

    @property
    def fingerprint(self) -> str:
        """Identifies the blocks that shape map and score; a calibration belongs to one."""
        free = ("threshold", "supervision", "scope")
        parts = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name not in free]
        text = f"{type(self).__name__}({', '.join(parts)})"
        # a slot that came later and is not filled changes nothing, in a first row neither
        text = text.replace(", adapt=None", "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @torch.no_grad()
    def residual(self, model: Learned, example: Example, *, key: int) -> Residual:
        """The map of a volume, prepared for normalization; used to calibrate."""
        found = self.find(model, example, key=key)
        return self._prepared(found, example)

    @torch.no_grad()
    def finish(
        self, residual: Residual, statistics: Mapping[str, Tensor]
    ) -> Float[Tensor, "1 1 d h w"]:
        """Normalization and post-processing of the map."""
        a = self.normalize(residual, statistics)
        for post in sorted(self.post, key=lambda p: p.rank):
            if post.rank < MASK:
                a = post(a, foreground=residual.foreground, spacing_mm=residual.spacing_mm)
        return a

    @torch.no_grad()
    def localize(
        self,
        model: Learned,
        x: Float[Tensor, "1 c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        spacing_mm: tuple[float, float, float],
        key: int,
        condition: Condition = Condition(),  # noqa: B008 - frozen and empty
        calibration: Calibration | None = None,
        region: Bool[Tensor, "1 1 d h w"] | None = None,
        saliency: Float[Tensor, "1 1 d h w"] | None = None,
    ) -> Localization:
        """Map, mask, pseudo-healthy volume and score of one volume.

        Arguments:
            model: the denoiser with its space, or an autoencoder; baselines take None
            x: the volume, as preprocessed for training
            foreground: voxels that count
            spacing_mm: voxel size along d, h, w
            key: of all noise; the result depends on nothing else that is random
            condition: what the denoiser is told; the class defaults to healthy
            calibration: of this method on healthy volumes
            region: voxels to redraw, for the policy `given`
            saliency: a map from elsewhere, for the route `external`

        Raises:
            ValueError: the method does not fit the model or the calibration; the message says why
        """
        self.check(model)
        if not bool(foreground.any()):
            raise ValueError("expected a foreground with voxels, got an empty one.")
        statistics = self._statistics(calibration)
        given = {"region": region, "saliency": saliency}
        example = Example(x, foreground, spacing_mm, condition, **given)
        found = self.with_bar(statistics).find(model, example, key=key)
        a = self.finish(self._prepared(found, example), statistics)
        sound(a, foreground, maker=self, what="map after normalization and post-processing")
        # Normalized maps are negative where a volume is more usual than most: air must not win.
        a = torch.where(foreground, a, a[foreground].min().clamp(max=0))
        value = self.threshold(calibration)
        if isinstance(self.threshold, OwnMap):
            value = self.threshold.of(a, foreground=foreground)
        mask = None
        if value is not None:
            mask = self._mask(a, value, example)
        healthy = None if calibration is None else calibration.errors
        return Localization(
            map=a,
            mask=mask,
            pseudo_healthy=found.healthy,
            score=self.score(a, foreground=foreground, errors=found.errors, healthy=healthy),
            trace=found.trace,
            threshold=value,
            uncertainty=found.uncertainty,
        )

    def _prepared(self, found: Finding, example: Example) -> Residual:
        sound(found.map, example.foreground, maker=self, what="map")
        raw = Residual(found.map, example.x, example.foreground, example.spacing_mm, found.errors)
        return self.normalize.prepare(raw)

    def _mask(self, a: Tensor, threshold: float, example: Example) -> Tensor:
        mask = (a > threshold) & example.foreground
        for post in sorted(self.post, key=lambda p: p.rank):
            if post.rank > MASK:
                mask = post(mask, foreground=example.foreground, spacing_mm=example.spacing_mm)
        return mask

    def _statistics(self, calibration: Calibration | None) -> Mapping[str, Tensor]:
        if calibration is None:
            if self.normalize.fitted or self.bar is not None:
                part = "policy" if self.bar else f"normalize {type(self.normalize).__name__}"
                raise ValueError(
                    f"{part.lower()}: expected a calibration on healthy volumes, got none; fit "
                    "one, or use normalize: raw and policy.threshold."
                )
            return {}
        if calibration.fingerprint != self.fingerprint:
            raise ValueError(
                f"expected a calibration of this method ({self.fingerprint}), got one of another "
                f"({calibration.fingerprint}); fit it again."
            )
        return calibration.statistics
