r"""Label diffusion: samples of p(m | x), m one channel per label coded ±1, x the encoded image.

    m_i ~ p(m | x),  y_i = clip((m_i - a) / (1 - a), 0, 1),
    p_l = mean_i y_{i,l},   v_l = mean_i (y_{i,l} - p_l)²,   h = -Σ_l p_l log p_l,

with a the code of an absent label (-1 unless the recipe says otherwise), the background
p_0 = 1 - Σ_l p_l and, where overlapping labels sum to more than one, the p_l scaled to sum to one
in h. Samples are streamed (Welford, 1962): memory does not grow with their
number. For samples that are ±1 throughout, v_l = p_l (1 - p_l).

References:
    Amit et al. (2021), SegDiff: Image Segmentation with Diffusion Probabilistic Models,
        arXiv:2112.00390
    Wolleb et al. (2022), Diffusion Models for Implicit Image Segmentation Ensembles
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from volumediff import randomness
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.samplers.dpmpp import DPMSolverPP

__all__ = ["Moments", "Segmentation", "Segmenter"]

Labels = Float[Tensor, "1 l d h w"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the samples say.

    Arguments:
        probabilities: p_l of each label, without the background
        labels: value of the most probable label, 0 for the background
        variance: v_l of the samples
        entropy: h in nats, background included
        samples: the y_i, if they were asked for
    """

    probabilities: Labels
    labels: UInt8[Tensor, "1 1 d h w"]
    variance: Labels
    entropy: Float[Tensor, "1 1 d h w"]
    samples: Float[Tensor, "n l d h w"] | None = None


@dataclass
class Moments:
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
class Segmenter:
    """Segments by sampling label maps.

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

    @torch.no_grad()
    def predict(
        self,
        model: Model,
        x: Float[Tensor, "1 c d h w"],
        *,
        key: int,
        labels: tuple[int, ...] = (1,),
        absent: float = -1.0,
        condition: Condition = Condition(),  # noqa: B008 (frozen and empty)
    ) -> Segmentation:
        """Segments one volume.

        Arguments:
            model: trained with the recipe label_diffusion
            x: the image, as preprocessed for training
            key: of all noise; sample i depends on (key, i) alone
            labels: label values of the model's channels, in order
            absent: code of a voxel without the label
            condition: what else the denoiser is told; its image is replaced by x
        """
        shape = (len(labels), *x.shape[2:])
        image = model.encode(x)
        moments, kept = Moments(), []
        for start in range(0, self.samples, self.batch):
            numbers = range(start, min(start + self.batch, self.samples))
            keys = [randomness.key(key, "sample", i) for i in numbers]
            y = self._memberships(model, image, keys, shape, condition, absent)
            moments.update(y)
            if self.keep:
                kept.append(y)
        p = moments.mean[None]
        background = (1 - p.sum(dim=1, keepdim=True)).clamp_min(0)
        every = torch.cat([background, p], dim=1)
        values = torch.tensor([0, *labels], dtype=torch.uint8, device=p.device)
        share = every / every.sum(dim=1, keepdim=True)
        return Segmentation(
            probabilities=p,
            labels=values[every.argmax(dim=1, keepdim=True)],
            variance=moments.variance[None],
            entropy=-torch.special.xlogy(share, share).sum(dim=1, keepdim=True),
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
