"""Contract of methods: anything that localizes in a volume."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._check_output import sound
from volumediff.anomaly._level import Level
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.leave_one_out import Without
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.normalization import Normalization, Raw, Residual
from volumediff.anomaly.post import MASK, MinComponent, Post
from volumediff.anomaly.raw_map import Localization, RawLocalization
from volumediff.anomaly.score import Score, TopFraction
from volumediff.anomaly.threshold import FindingsPerVolume, Threshold
from volumediff.autoencoders import Reconstructor
from volumediff.component import Component, Request, is_handed_in, presentation
from volumediff.condition import Condition
from volumediff.data.seen import Seen
from volumediff.model import Model

__all__ = ["FIRST_THRESHOLD", "Learned", "Lesions", "Method"]

Learned = Model | Reconstructor | None
"""What a method works with: a diffusion model, an autoencoder, or nothing."""

Lesions = Iterable[tuple[Residual, Bool[Tensor, "1 1 d h w"]]]
"""Maps of volumes with lesions, and where those are."""

FIRST_THRESHOLD = "first.threshold"  # among the statistics of a calibration


@dataclass(frozen=True, kw_only=True)
class Method(Component, ABC):
    """Anything that localizes.

    `mark` is the key by which a YAML file is known to be a method of this kind; `section` is the
    key below which a method that is one component has its own arguments, all but those in
    `beside`, which stand next to it as the keys that all methods share.

    Arguments:
        supervision: what training needs beside volumes: none at all, healthy volumes
            (unsupervised), synthetic anomalies (self), volume labels (weak), masks (full)
        scope: what the method claims to find, in words
        normalize: the map in units of healthy maps
        post: post-processing, applied in its fixed order
        threshold: from map to mask
        score: from map to volume score
    """

    mark: ClassVar[str | None] = None
    section: ClassVar[str | None] = None
    beside: ClassVar[tuple[str, ...]] = ()
    supervision: Literal["none", "unsupervised", "self", "weak", "full"] = presentation(
        "unsupervised"
    )
    scope: str = presentation("any deviation from healthy volumes")
    normalize: Normalization = field(default_factory=Raw)
    post: tuple[Post, ...] = ()
    threshold: Threshold = presentation(default_factory=FindingsPerVolume)
    score: Score = field(default_factory=TopFraction)

    @abstractmethod
    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The map of a volume, before normalization."""

    @property
    def takes_region(self) -> bool:
        """Whether the caller must say what to redraw."""
        return False

    @property
    def finding_ml(self) -> float:
        """Smallest volume of a finding, in millilitres: that of the post step `min_component`."""
        return max((p.volume_ml for p in self.post if isinstance(p, MinComponent)), default=0.0)

    @property
    def own_map(self) -> bool:
        """Whether there is a pseudo-healthy volume, for a second pass to start from."""
        return True

    def noise_levels(self) -> tuple[Level, ...]:
        """The noise levels that the method's last pass begins at; none without noise."""
        return ()

    @property
    def passes(self) -> tuple["Method", ...]:
        """The method, its first pass, the first pass of that, and so on."""
        return (self,)

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """Keys without a default."""
        return tuple(
            f.name
            for f in fields(cls)
            if f.init and f.default is MISSING and f.default_factory is MISSING
        )

    @classmethod
    def slots(cls, *, whole: bool = False) -> tuple[str, ...]:
        """Keys of a YAML file of this kind, beside its section.

        Arguments:
            whole: whether the class is named by the key `method`, so that there is no section
        """
        own = [f.name for f in fields(cls) if f.init and not is_handed_in(f)]
        if cls.section is None or whole:
            return tuple(own)
        shared = {f.name for f in fields(Method)} | set(cls.beside)
        return tuple(name for name in own if name in shared)

    def key(self, name: str) -> tuple[str, ...]:
        """Where a YAML file has a field."""
        inside = self.section is not None and name not in self.slots()
        return (self.section, name) if inside else (name,)

    @property
    def seen(self) -> Seen:
        """What the models of other runs have seen that the method works with."""
        found = Seen()
        for request in self.requests():
            if request.value is not None:
                found |= request.value.seen
        return found

    def check(self, model: Learned, *, borrowed: bool = True) -> None:
        """Checks a model against the needs of the method and its components.

        Arguments:
            model: of a run
            borrowed: whether what comes from other runs must be there already

        Raises:
            ValueError: the method is meaningless with the model; one line says why
        """
        own = self.needs
        for requirement in own:
            requirement.check(model)
        for request in self.requests():
            if borrowed and request.value is None and request.loan.required:
                raise ValueError(_missing(request))
        for requirement in self.requirements():
            if requirement not in own:
                requirement.check(model)

    @property
    def first_threshold(self) -> "tuple[Method, float] | None":
        """The first pass and the quantile of its healthy maps that this method needs, or None."""
        return None

    def with_first_threshold(self, statistics: Mapping[str, Tensor]) -> "Method":
        """The method with what it waits for, from the statistics of its calibration."""
        return self

    @property
    def needs_healthy(self) -> bool:
        """Whether the map needs statistics of healthy volumes."""
        return self.normalize.fitted or self.first_threshold is not None

    @property
    def needs_lesions(self) -> bool:
        """Whether the map needs volumes with lesions as well."""
        return False

    def statistics_of(
        self, residuals: Sequence[Residual], lesions: Lesions = ()
    ) -> dict[str, Tensor]:
        """Statistics that finish a map, of prepared residuals of healthy volumes.

        Arguments:
            residuals: of healthy volumes
            lesions: for methods that need some
        """
        return self.normalize.fit(residuals)

    def held_out(
        self, residuals: Sequence[Residual], statistics: Mapping[str, Tensor]
    ) -> Iterator[Float[Tensor, "1 1 d h w"]]:
        """The finished map of every healthy volume with the statistics of the others.

        Arguments:
            residuals: at least two where the normalization is fitted
            statistics: of all of them, for what is not fitted on healthy volumes
        """
        for i in range(len(residuals)):
            own = self.normalize.fit(Without(residuals, i)) if self.normalize.fitted else {}
            yield self.finish(residuals[i], own)

    def contributions(
        self, residual: Residual, statistics: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, "1 1 d h w"]]:
        """What each member of a fusion adds to the finished map, by its name."""
        return {}

    def calls_elsewhere(self, network_calls: Mapping[str, int]) -> int:
        """How many of the members' network calls are those of other runs' networks."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Identifies the components that shape map and score; a calibration belongs to one."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @torch.no_grad()
    def residual(self, model: Learned, example: Example, *, key: int) -> Residual:
        """The map of a volume, prepared for normalization; used to calibrate."""
        found = self.find(model, example, key=key)
        return self.prepared(found, example)

    @torch.no_grad()
    def finish(
        self, residual: Residual, statistics: Mapping[str, Tensor]
    ) -> Float[Tensor, "1 1 d h w"]:
        """Normalization and post-processing of the map."""
        return self.processed(self.normalize(residual, statistics), residual)

    def processed(self, a: Float[Tensor, "1 1 d h w"], residual: Residual) -> Tensor:
        """The map after those steps of post-processing that come before the threshold."""
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
            condition: what the denoiser is conditioned on; the class defaults to healthy
            calibration: of this method on healthy volumes
            region: voxels to redraw, for the selector `given`
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
        found = self.with_first_threshold(statistics).find(model, example, key=key)
        residual = self.prepared(found, example)
        a = self.finish(residual, statistics)
        sound(a, foreground, maker=self, what="map after normalization and post-processing")
        # Normalized maps are negative where a volume is more usual than most: air must not win.
        a = torch.where(foreground, a, a[foreground].min().clamp(max=0))
        value = self.threshold(calibration)
        if value is None:
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
            finding_ml=self.finding_ml,
            contributions=self.contributions(residual, statistics),
            network_calls=found.network_calls,
        )

    def prepared(self, found: RawLocalization, example: Example) -> Residual:
        """The map of a volume, prepared for normalization."""
        sound(found.map, example.foreground, maker=self, what="map")
        raw = Residual(found.map, example.x, example.foreground, example.spacing_mm, found.errors)
        return self.normalize.prepare(raw)

    def _mask(self, a: Tensor, threshold: float, example: Example) -> Tensor:
        mask = (a > threshold) & example.foreground
        for post in sorted(self.post, key=lambda p: p.rank):
            if post.rank > MASK:
                mask = post(mask, foreground=example.foreground, spacing_mm=example.spacing_mm)
        return mask

    def _uncalibrated(self) -> str:
        part = "editing" if self.first_threshold else f"normalize {type(self.normalize).__name__}"
        return (
            f"{part.lower()}: expected a calibration on healthy volumes, got none; fit one, or "
            "use normalize: raw and editing.threshold."
        )

    def _statistics(self, calibration: Calibration | None) -> Mapping[str, Tensor]:
        if calibration is None:
            if self.needs_healthy:
                raise ValueError(self._uncalibrated())
            return {}
        if calibration.fingerprint != self.fingerprint:
            raise ValueError(
                f"expected a calibration of this method ({self.fingerprint}), got one of another "
                f"({calibration.fingerprint}); fit it again."
            )
        return calibration.statistics


def _missing(request: Request) -> str:
    """What is wrong where a model of another run was not handed in."""
    loan = request.loan
    whole = request.name == loan.option
    use = f"give its run as {request.name}" if whole else f"use {request.name}=RUN"
    who = loan.kind if whole else request.name
    return f"{who}: expected {loan.what}, got none; {use}, see configs/{loan.configurations}."
