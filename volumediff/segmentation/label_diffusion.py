r"""Label diffusion: samples of p(m | x), m one channel per label coded ±1, x the encoded image.

    m_i ~ p(m | x),  y_i = clip((m_i - a) / (1 - a), 0, 1),
    p_l = mean_i y_{i,l},   v_l = mean_i (y_{i,l} - p_l)²,

with a the code of an absent label (-1 unless the recipe says otherwise). Samples are streamed
(Welford, 1962): memory does not grow with their number. For samples that are ±1 throughout,
v_l = p_l (1 - p_l).

References:
    Amit et al. (2021), SegDiff: Image Segmentation with Diffusion Probabilistic Models,
        arXiv:2112.00390
    Wolleb et al. (2022), Diffusion Models for Implicit Image Segmentation Ensembles
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.segmentation._base import Segmentation, Segmenter

__all__ = ["LabelDiffusionSegmenter", "SampleMoments"]


@dataclass
class SampleMoments:
    """Mean and variance of a stream, one batch at a time (Chan et al. 1979, equation 2.1)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, values: Float[Tensor, "n *shape"]) -> None:
        """Adds n values."""
        for value in values:  # one at a time: the result does not depend on the batches
            self.count += 1
            delta = value - self.mean
            self.mean = self.mean + delta / self.count
            self.squares = self.squares + delta * (value - self.mean)

    @property
    def variance(self) -> Tensor:
        """Mean squared deviation."""
        return self.squares / max(self.count, 1)


@dataclass(frozen=True)
class LabelDiffusionSegmenter(Segmenter):
    """Samples label maps given the image, and averages them.

    Arguments:
        sampler: steps of the reverse chain; few steps of a first-order sampler lose rare labels,
            so that the default is DPM-Solver++(2M)
        samples: number of label maps
        batch: how many are drawn at once; changes memory and speed, never the result
        keep: whether the samples themselves are returned
    """

    sampler: Sampler = field(default_factory=lambda: DPMSolverPP(20))
    samples: int = 5
    batch: int = 1
    keep: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise ValueError(
                f"expected samples >= 1 and batch >= 1, got {self.samples} and {self.batch}."
            )

    def check(self, model: Model) -> None:
        if not model.recipe.segments:
            raise ValueError("expected a model of label maps; train with recipe=label_diffusion.")

    @torch.no_grad()
    def segment(
        self,
        model: Model,
        x: Float[Tensor, "1 c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        spacing_mm: tuple[float, float, float],
        key: int,
        condition: Condition = Condition(),  # noqa: B008 - frozen and empty
    ) -> Segmentation:
        """Labels of one volume; sample i depends on (key, i) alone.

        Arguments:
            condition: its image is replaced by x
        """
        recipe = model.recipe
        shape = (len(recipe.labels), *x.shape[2:])
        image = model.encode(x)
        moments, kept = SampleMoments(), []
        for start in range(0, self.samples, self.batch):
            numbers = range(start, min(start + self.batch, self.samples))
            keys = [randomness.key(key, "sample", i) for i in numbers]
            y = self._memberships(model, image, keys, shape, condition, recipe.absent)
            moments.update(y)
            if self.keep:
                kept.append(y)
        return Segmentation(
            values=recipe.labels,
            probabilities=moments.mean[None],
            variance=moments.variance[None],
            samples=torch.cat(kept) if kept else None,
        )

    def _memberships(
        self,
        model: Model,
        image: Tensor,
        keys: list[int],
        shape: tuple[int, ...],
        condition: Condition,
        absent: float,
    ) -> Float[Tensor, "n l d h w"]:
        """Samples as numbers in [0, 1]."""
        n = len(keys)
        told = condition.map(lambda c: c.expand(n, *c.shape[1:]))
        told = told.replace(image=image.expand(n, *image.shape[1:]))
        noise = model.noise(keys, shape)
        z = self.sampler.sample(
            model.denoise,
            model.kernel,
            model.kernel.prior(noise(-1)),
            self.sampler.times(model.kernel.schedule),
            condition=told,
            noise=noise,
        )
        m = model.decode(z, (shape[1], shape[2], shape[3]))
        return ((m - absent) / (1 - absent)).clamp(0, 1)
