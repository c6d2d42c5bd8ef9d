"""Denoising diffusion GAN: a diffusion model that takes a few large steps, each a draw.

Its network is any of the package, with a random latent beside time and condition, and learns
against a discriminator of steps. It is trained like a plain diffusion, in any space and with any
recipe whose noise is everywhere, from scratch or begun with a diffusion run (`start_from`), and is
then walked by `sampler: student`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count as count_up
from itertools import islice

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from volumediff.autoencoders._base import frozen as constant
from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import gan_problem
from volumediff.denoising_gan import (
    TransitionDiscriminator,
    discriminator_loss,
    energy_score,
    generator_loss,
    penalised,
    spread,
    transition,
)
from volumediff.errors import UsageError
from volumediff.model import Model
from volumediff.randomness import key
from volumediff.samplers.posterior_spans import PosteriorSpans
from volumediff.samples.dataset import Samples, collate
from volumediff.samples.loss_noise import LossNoise
from volumediff.settings.sections import Section
from volumediff.shapes import Shape
from volumediff.tasks._backbones import Backbone, take_backbone
from volumediff.tasks._base import Criterion, Task
from volumediff.tasks.diffusion import DiffusionConfig, DiffusionTask

__all__ = ["DenoisingGANConfig", "DenoisingGANTask"]

JUDGE = "discriminator"
SPREAD = "spread"
# Of the spread, whose right value is 1: draws have a third of the variance, or less.
COLLAPSED = 0.5


class GANSection(Section):
    """What a denoising diffusion GAN has beside a diffusion model.

    Arguments:
        steps: number T of steps from t = 1 to 0
        latent: length of the random latent
        widths: channels of the discriminator on each level
        penalty: weight gamma of the penalty on the discriminator's gradient
        penalty_every: the penalty is computed for one sample in so many
    """

    steps: PositiveInt = 4
    latent: PositiveInt = 100
    widths: tuple[PositiveInt, ...] = Field((32, 64, 128), min_length=1)
    penalty: NonNegativeFloat = 0.05
    penalty_every: PositiveInt = 15


class DenoisingGANConfig(DiffusionConfig):
    """Keys of a denoising diffusion GAN: those of a diffusion model, and `gan`.

    Arguments:
        gan: steps, latent and discriminator
    """

    gan: GANSection = GANSection()


class DenoisingGANTask(DiffusionTask):
    """A generator, which is a diffusion model, and a discriminator of its steps.

    Arguments:
        config: of the run
        model: the generator
        given: see `DiffusionTask`
    """

    schema = DenoisingGANConfig
    noun = "a denoising diffusion GAN"
    adaptable = False  # two networks learn against each other, and both change as a whole
    blockwise = False  # the discriminator's loss asks for gradients on its way

    def __init__(self, config: DenoisingGANConfig, model: Model, **given: object) -> None:
        require(gan_problem(model), UsageError)
        if config.validation.best is not None and not model.recipe.segments:
            raise UsageError(
                "validation.best: expected null for a denoising diffusion GAN, whose single "
                "predictions are draws and no maps; its energy score selects checkpoints."
            )
        super().__init__(config, model, **given)
        network, section = model.network, config.gan
        network.take_latent(section.latent)
        model.walk = PosteriorSpans(section.steps)
        self.discriminator = TransitionDiscriminator(
            network.in_channels,
            image_channels=network.image_channels,
            classes=network.embedding.classes,
            scalars=network.embedding.scalars,
            coordinates=network.coordinates,
            widths=section.widths,
        )
        self.module = nn.ModuleDict({"model": model, JUDGE: self.discriminator})

    @property
    def result(self) -> nn.Module:
        return self.model

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), JUDGE: self.discriminator}

    @property
    def loss_noise(self) -> LossNoise | None:
        # A step takes three fields, drawn by its player.
        return None

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        """L_G or L_D; in validation the energy score of the generator."""
        model, section = self._seen, self.config.gan
        step = transition(model, batch, steps=section.steps, player=player)
        if not self.module.training:
            one, two = step.drawn(model)
            return energy_score(one, two, step.z_0)
        if player == JUDGE:
            with torch.no_grad():
                fake = step.generated(model)
            return discriminator_loss(
                self.discriminator,
                step,
                fake,
                penalty=section.penalty,
                every=section.penalty_every,
            )
        return generator_loss(constant(self.discriminator), step, step.generated(model))

    def begin_with(self, other: Task, *, where: str) -> str:
        """The network of any diffusion run with the same kernel; the latent starts without effect,
        so that the first generator is that model."""
        model = other.lend(Model)
        if model is None:
            raise UsageError(f"{where}: trains {other.noun}, expected a diffusion model.")
        if model.kernel != self.model.kernel:
            raise UsageError(
                f"{where}: expected the kernel of this run, {self.model.kernel}, got "
                f"{model.kernel}; write the kernel of that run."
            )
        mine, source = (Backbone(m.network, m.space) for m in (self.model, model))
        return take_backbone(mine, source, where=where, head=True)

    # Validation

    def criterion(self, samples: Samples) -> Criterion | None:
        """The Dice of sampled label maps, where labels are drawn; the energy score elsewhere."""
        return super().criterion(samples) if self.recipe.segments else None

    def indicators(self, samples: Samples) -> Sequence[Criterion]:
        """How far two draws from pure noise are apart."""
        count = min(self.config.validation.volumes, len(samples.held))
        return [Criterion(SPREAD, count, partial(self._spread, samples))]

    @torch.no_grad()
    def _spread(self, samples: Samples, index: int) -> float:
        drawn = samples.held.sample(index, key=key(self.config.seed, "validation", index))
        batch, model = collate([drawn]).to(self.device), self._seen
        _, high = model.time_density.support
        t = torch.full((1,), high, dtype=torch.float64, device=self.device)
        step = transition(model, batch, steps=self.config.gan.steps, player=self.main, t=t)
        return float(spread(*step.drawn(model), step.z_0))

    def alarms(self, row: Mapping[str, float]) -> Sequence[str]:
        """Says so where the generator ignores its latent."""
        found = row.get(SPREAD)
        if found is None or found >= COLLAPSED:
            return ()
        return (
            f"mode collapse: two draws for the same noisy volume differ by {found:.2f} of what "
            "the data ask for (spread, right is 1), so that samples are alike and too smooth; "
            "train longer, raise gan.penalty, or take more gan.steps.",
        )

    # Planning

    def batch(self, shape: Shape, count: int, *, device: torch.device | str = "cpu") -> Batch:
        """All of its samples are penalised: the largest step that training takes."""
        every = self.config.gan.penalty_every
        keys = islice((n for n in count_up() if penalised(n, every)), count)
        return replace(super().batch(shape, count, device=device), keys=tuple(keys))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels = (self.model.network.in_channels,)
        names = ("model.space.shift", "model.space.scale")
        return Task.shapes(self) | dict.fromkeys(names, channels)
