r"""The method that is made of parts: members are predicted, streamed, fused, and finished.

    predictor: sampled                      what a run says about a volume
    sampler: {name: dpmpp, steps: 20}       of predictors that walk from noise to labels
    samples: 5                              seeds
    ensemble: [flips]                       what is varied beside them; all combinations
    fusion: mean
    post: [{name: min_component, volume_ml: 0.1}]

The image is prepared once per volume and flip. Members are drawn `batch` at a time and forgotten:
what stays of each is its label map, one byte per voxel, so that memory does not grow with the
number of steps, and results do not depend on the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from volumediff.compatibility import require
from volumediff.compatibility.methods import level_problem
from volumediff.component import Component
from volumediff.condition import Condition
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.label_ensembles import LabelEnsemble, Members, members
from volumediff.segmentation.label_fusions import Fusing, LabelFusion, Mean, every_class
from volumediff.segmentation.label_posts import LabelPost
from volumediff.segmentation.predictors._base import Image, Predictor
from volumediff.segmentation.predictors.sampled import SampledLabels
from volumediff.segmentation.result import Segmentation, entropy_of, label_map
from volumediff.segmentation.segmenters._base import Segmenter

__all__ = ["Composed", "SampleMoments"]


@dataclass
class SampleMoments:
    """Mean and variance of a stream, one value at a time (Welford 1962)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, value: Float[Tensor, "*shape"]) -> None:
        """Adds a value; in place, for these are the largest tensors of a method."""
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = value.clone(), torch.zeros_like(value)
            return
        delta = value - self.mean
        self.mean.add_(delta, alpha=1 / self.count)
        self.squares.addcmul_(delta, value - self.mean)

    @property
    def variance(self) -> Tensor:
        """Mean squared deviation."""
        return self.squares / max(self.count, 1)


@dataclass(frozen=True)
class Composed(Component, Segmenter):
    """A predictor, the members that it is asked for, and what is made of them.

    Arguments:
        predictor: asks the run
        sampler: of predictors that walk; None takes their own
        samples: number of seeds
        ensemble: what is varied beside the seed
        fusion: from members to probabilities
        post: what is done to the label map, in this order
        batch: members at once; changes memory and speed, never the result
    """

    predictor: Predictor = field(default_factory=SampledLabels)
    sampler: Sampler | None = None
    samples: int = 5
    ensemble: tuple[LabelEnsemble, ...] = ()
    fusion: LabelFusion = field(default_factory=Mean)
    post: tuple[LabelPost, ...] = ()
    batch: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise ValueError(
                f"expected samples >= 1 and batch >= 1, got {self.samples} and {self.batch}."
            )
        name = type(self.predictor).__name__
        if self.sampler is not None and not self.predictor.walks:
            raise ValueError(f"sampler: expected none for the predictor {name}, which draws none.")
        if self.fusion.steps and not self.predictor.walks:
            raise ValueError(
                f"fusion: {type(self.fusion).__name__} needs the steps of a chain, and the "
                f"predictor {name} has none; use mean."
            )
        if self.samples > 1 and not self.predictor.draws:
            raise ValueError(
                f"samples: expected 1 for the predictor {name}, whose answers are all the same, "
                f"got {self.samples}."
            )

        if sum(isinstance(factor, Members) for factor in self.ensemble) > 1:
            raise ValueError("ensemble: expected members once, got it twice; name all runs in it.")

    def check(self, model: nn.Module) -> None:
        self.predictor.check(model)
        self.predictor.check_draws(model, members(self.samples, self.ensemble, key=0))
        require(level_problem(model, levels=any(factor.agreement for factor in self.ensemble)))
        if self.sampler is not None:
            self.predictor.check_sampler(model, self.sampler)

    @property
    def needs_fit(self) -> bool:
        return any(post.needs_fit for post in self.post)

    def fit(self, cases: Sequence[tuple[Segmentation, UInt8[Tensor, "1 1 d h w"]]]) -> "Composed":
        pairs = [(found.probabilities, truth) for found, truth in cases]
        values = cases[0][0].values
        return replace(self, post=tuple(p.fit(pairs, values) for p in self.post))

    @property
    def fitted(self) -> tuple[tuple[float, ...], ...]:
        return tuple(post.fitted for post in self.post)

    def with_fitted(self, numbers: tuple[tuple[float, ...], ...]) -> "Composed":
        pairs = zip(self.post, numbers, strict=True)
        return replace(self, post=tuple(post.with_fitted(found) for post, found in pairs))

    @torch.no_grad()
    def segment(
        self,
        model: nn.Module,
        x: Float[Tensor, "1 c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        spacing_mm: tuple[float, float, float],
        key: int,
        condition: Condition = Condition(),  # noqa: B008 - frozen and empty
    ) -> Segmentation:
        values = self.predictor.labels(model)
        draws = members(self.samples, self.ensemble, key=key)
        image = Image(x, foreground, spacing_mm, condition)
        fusing, several = self.fusion.start(), len(draws) > 1
        moments, unsure = SampleMoments(), SampleMoments()
        maps: list[UInt8[Tensor, "1 d h w"]] = []
        for draw, y in self._members(model, image, draws, fusing):
            fusing.update(y, draw.weight)
            if several:
                moments.update(y)
                unsure.update(entropy_of(every_class(y)[None]))
                maps.append(label_map(y[None], values))
        found = Segmentation(values, fusing.result()[None].clamp(0, 1))
        if several:
            samples = torch.cat(maps)
            votes = [(samples == value).sum(dim=0) / len(maps) for value in values]
            found = Segmentation(
                values,
                found.probabilities,
                variance=moments.variance[None],
                votes=torch.stack(votes)[None].to(x.dtype),
                samples=samples,
                mutual_information=_information(moments.mean, unsure.mean),
            )
        # Without its fit a method says what the members do; this is what it is fitted on.
        return found if self.needs_fit or not self.post else self._finished(found, spacing_mm)

    def _members(
        self, model: nn.Module, image: Image, draws: Sequence[Draw], fusing: Fusing
    ) -> Iterator[tuple[Draw, Float[Tensor, "l d h w"]]]:
        """The members one at a time, those of the same run and flip together, mirrored back."""
        models = [model, *(lent.model for factor in self.ensemble for lent in factor.lent)]
        ordered = sorted(draws, key=_prepared_for)
        for (run, flips), same in groupby(ordered, key=_prepared_for):
            dims = [axis - 3 for axis in flips]
            model = models[run]
            prepared = self.predictor.prepare(model, image.flipped(flips))

            def estimate(
                y: Tensor, step: int, steps: int, dims: Sequence[int] = tuple(dims)
            ) -> None:
                for each in y:
                    fusing.estimate(each.flip(dims), step, steps)

            group = list(same)
            for start in range(0, len(group), self.batch):
                part = group[start : start + self.batch]
                y = self.predictor.memberships(
                    model,
                    prepared,
                    part,
                    sampler=self.sampler,
                    told=estimate if self.fusion.steps else None,
                )
                yield from zip(part, y.flip(dims), strict=True)

    def _finished(
        self, found: Segmentation, spacing_mm: tuple[float, float, float]
    ) -> Segmentation:
        labels = found.labels
        for post in self.post:
            labels = post(
                labels,
                values=found.values,
                probabilities=found.probabilities,
                spacing_mm=spacing_mm,
            )
        return replace(found, final=labels)


def _information(
    mean: Float[Tensor, "l d h w"], unsure: Float[Tensor, "1 1 d h w"]
) -> Float[Tensor, "1 1 d h w"]:
    """Entropy of the mean member less the mean entropy of the members."""
    return (entropy_of(every_class(mean)[None]) - unsure).clamp(min=0)


def _prepared_for(draw: Draw) -> tuple[int, tuple[int, ...]]:
    """What members share."""
    return draw.member, draw.flips
