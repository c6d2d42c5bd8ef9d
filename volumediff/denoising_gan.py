r"""Denoising diffusion GAN: a few large steps, each of which draws from p(z_0 | z_t),

.. math:: \hat z_0 = G(z_t, t, \zeta), \quad \zeta \sim N(0, 1)^n, \qquad
          \hat z_s \sim q(z_s | z_t, \hat z_0), \qquad s = \max(t - 1 / T, 0),

which no Gaussian around a mean can do once steps are large. A discriminator compares the step with
a true one, and a penalty on its gradient keeps it smooth,

.. math:: L_D &= a(-D(z_s, z_t, t)) + a(D(\hat z_s, z_t, t))
                 + \tfrac{\gamma}{2} |\nabla_{z_s} D(z_s, z_t, t)|^2, \\
          L_G &= a(-D(\hat z_s, z_t, t)), \qquad a(x) = \log(1 + e^x).

A discriminator is no measure of progress. Checkpoints are compared by the energy score of two
draws, which is least where the draws have the law of the clean state,

.. math:: S = \tfrac{1}{2} (|\hat z_0 - z_0| + |\hat z_0' - z_0|) - \tfrac{1}{2}
              |\hat z_0 - \hat z_0'|,

and a generator that ignores its latent is found by how far two draws are apart,

.. math:: \rho = \frac{|\hat z_0 - \hat z_0'|^2}
                      {\tfrac{1}{2} (|\hat z_0 - z_0|^2 + |\hat z_0' - z_0|^2)},

which is 1 on average for draws from p(z_0 | z_t), and 0 for any function of z_t.

References:
    Xiao et al. (2022), Tackling the Generative Learning Trilemma with Denoising Diffusion GANs,
        arXiv:2112.07804, eq. 3 to 6 and appendix C
    Mescheder et al. (2018), Which Training Methods for GANs do actually Converge?,
        arXiv:1801.04406, eq. 9, for the penalty
    Gneiting and Raftery (2007), Strictly Proper Scoring Rules, Prediction, and Estimation,
        doi:10.1198/016214506000001437, section 4.3, for the energy score
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.chain_noise import latents
from volumediff.condition import Condition
from volumediff.kernels._base import Kernel
from volumediff.model import LOSS, Model, full_coordinates, state_noise
from volumediff.networks._embedding import Embedding
from volumediff.networks._layers import Conv, Linear
from volumediff.networks._precision import wide
from volumediff.randomness import key as key_of

__all__ = [
    "Transition",
    "TransitionDiscriminator",
    "discriminator_loss",
    "energy_score",
    "generator_loss",
    "spread",
    "transition",
]

State = Float[Tensor, "b k d h w"]
Judge = Callable[[Tensor, Tensor, Tensor, Condition], Tensor]
"""(z_s, z_t, t, condition) -> logit of each sample."""
SLOPE = 0.2  # of the leaky ReLU, as published
TINY = 1e-12  # mean squared error of draws that are exact


class TransitionBlock(nn.Module):
    """Two convolutions, the second of which halves the grid, beside a 1x1x1 one; no normalisation,
    since the penalty is about the gradient of each sample, twice differentiated.

    Arguments:
        in_channels, out_channels: numbers of channels
        embedding: length of the embedding vector
    """

    def __init__(self, in_channels: int, out_channels: int, *, embedding: int) -> None:
        super().__init__()
        self.first = Conv(in_channels, out_channels)
        self.project = Linear(embedding, out_channels)
        self.second = Conv(out_channels, out_channels, stride=(2, 2, 2))
        self.beside = Conv(in_channels, out_channels, kernel=(1, 1, 1), stride=(2, 2, 2))

    def forward(
        self, x: Float[Tensor, "b c d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        h = self.first(F.leaky_relu(x, SLOPE)) + self.project(e)[:, :, None, None, None]
        h = self.second(F.leaky_relu(h, SLOPE))
        return (h + self.beside(x)) * 0.5**0.5


class TransitionDiscriminator(nn.Module):
    """D(z_s, z_t, t, c): the log-odds that a step is a true one, one number per sample.

    It computes in float32 whatever the dtype of the network: second derivatives of convolutions
    in bfloat16 are not to be had everywhere.

    Arguments:
        channels: of a state
        image_channels: of the image condition in state space, which it sees, too
        classes, scalars: conditions beside the image
        coordinates: whether it sees the position in the full volume
        widths: channels per level; each level but the first halves the grid
    """

    def __init__(
        self,
        channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        coordinates: bool = False,
        widths: tuple[int, ...] = (32, 64, 128),
    ) -> None:
        super().__init__()
        self.image_channels, self.coordinates = image_channels, coordinates
        self.embedding = Embedding(widths[0], classes=classes, scalars=scalars)
        inputs = 2 * channels + image_channels + 3 * coordinates
        self.stem = Conv(inputs, widths[0])
        self.blocks = nn.ModuleList(
            TransitionBlock(c, k, embedding=self.embedding.width) for c, k in pairwise(widths)
        )
        self.head = Conv(widths[-1], 1)

    def forward(
        self, z_s: State, z_t: State, t: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b"]:
        parts = [wide(z_s), wide(z_t)]
        if self.image_channels:
            assert condition.image is not None, "the network asks for it, too"
            parts.append(wide(condition.image).detach())
        if self.coordinates:
            place = condition.coordinates
            if place is None:
                place = full_coordinates(z_t).expand(len(z_t), -1, -1, -1, -1)
            parts.append(wide(place))
        e = self.embedding(t.to(parts[0].dtype), condition)
        h = self.stem(torch.cat(parts, dim=1))
        for block in self.blocks:
            h = block(h, e)
        # The mean over places: logits do not grow with the volume.
        return self.head(F.leaky_relu(h, SLOPE)).flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class Transition:
    """A true step of the samples of a batch, z_t to z_s, and what a generator sees of it.

    Arguments:
        kernel: of the generator
        z_0: clean states
        z_s: less noisy, clean where s = 0
        z_t: more noisy, z_t ~ q(z_t | z_s)
        t, s: times
        condition: of the generator but for its latent
        keys: of the samples
        shape: (c, d, h, w) of the volumes
        player: whose turn it is; it draws for itself
    """

    kernel: Kernel
    z_0: State
    z_s: State
    z_t: State
    t: Float[Tensor, "b"]
    s: Float[Tensor, "b"]
    condition: Condition
    keys: tuple[int, ...]
    shape: tuple[int, ...]
    player: str

    def seen(self, z_s: State) -> State:
        """z_s as a network sees it, of about unit size."""
        return self.kernel.shown(z_s, self.s)[0]

    def judged(self, judge: Judge, seen: State) -> Float[Tensor, "b"]:
        """Logits of steps to a state as it is seen."""
        return judge(seen, self.kernel.shown(self.z_t, self.t)[0], self.t, self.condition)

    def of(self, chosen: Sequence[int]) -> "Transition":
        """Some of the samples."""
        rows = torch.tensor(chosen, device=self.t.device)
        names = ("z_0", "z_s", "z_t", "t", "s")
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in names},
            condition=self.condition.map(lambda a: a[rows]),
            keys=tuple(self.keys[i] for i in chosen),
        )

    def conditioned(self, model: Model, draw: int) -> Condition:
        """The condition with the latent of a draw."""
        length = model.network.latent_length
        latent = latents(self.keys, length, LOSS, self.player, draw, device=self.z_t.device)
        return self.condition.replace(latent=latent)

    def generated(self, model: Model) -> State:
        """z_s of the generator, from the same z_t."""
        prediction = model.denoise(self.z_t, self.t, self.conditioned(model, 0))
        noise = _noise(model, self.keys, self.shape, self.player, "step").to(self.z_t)
        return model.kernel.step(prediction, self.z_t, self.t, self.s, noise)

    def drawn(self, model: Model) -> tuple[State, State]:
        """Two draws of z_0."""
        one, two = (
            model.denoise(self.z_t, self.t, self.conditioned(model, i)).x0 for i in range(2)
        )
        return one, two


def transition(
    model: Model, batch: Batch, *, steps: int, player: str, t: Float[Tensor, "b"] | None = None
) -> Transition:
    """A true step of each sample.

    Arguments:
        steps: T; a step goes down by 1 / T
        player: whose turn it is
        t: where steps begin; by default the time of the sample's key
    """
    shape = tuple(batch.x.shape[1:])
    with torch.no_grad():
        z_0 = model.encode(batch.x)
    condition = model.told(batch.condition, batch.images, batch.mask)
    condition = model.referred(condition, z_0)
    if t is None:
        t = model.time_density.draw(batch.keys, model.kernel.schedule, device=z_0.device)
    s = (t - 1 / steps).clamp(min=0)
    first, second = (_noise(model, batch.keys, shape, player, name).to(z_0) for name in ("s", "t"))
    z_s = model.kernel.corrupt(z_0, s, first)
    z_t = model.kernel.renoise(z_s, s, t, second)
    return Transition(model.kernel, z_0, z_s, z_t, t, s, condition, batch.keys, shape, player)


def _noise(model: Model, keys: tuple[int, ...], shape: tuple[int, ...], *parts: str) -> State:
    return state_noise(
        model.space, model.noise_field, keys, shape, LOSS, *parts, device=model.device
    )


def generator_loss(judge: Judge, step: Transition, fake: State) -> Float[Tensor, "b"]:
    """L_G of each sample.

    Arguments:
        judge: with constant weights
        fake: z_s of the generator
    """
    return F.softplus(-step.judged(judge, step.seen(fake)))


def discriminator_loss(
    judge: Judge,
    step: Transition,
    fake: State,
    *,
    penalty: float,
    every: int,
) -> Float[Tensor, "b"]:
    """L_D of each sample; one sample in `every` is penalised, chosen by its key.

    Arguments:
        fake: z_s of the generator, without gradients
        penalty: gamma
        every: the penalty is lazy: a second derivative costs as much as three passes
    """
    real, false = (step.judged(judge, step.seen(z_s)) for z_s in (step.z_s, fake))
    loss = F.softplus(-real) + F.softplus(false)
    chosen = [i for i, key in enumerate(step.keys) if penalised(key, every)]
    if not (penalty and chosen):
        return loss
    rows = torch.tensor(chosen, device=loss.device)
    step = step.of(chosen)
    seen = step.seen(step.z_s).detach().requires_grad_()
    logit = step.judged(judge, seen)
    (slope,) = torch.autograd.grad(logit.sum(), seen, create_graph=True)
    return loss.index_add(0, rows, penalty / 2 * slope.square().flatten(1).sum(1))


def penalised(key: int, every: int) -> bool:
    """Whether the discriminator's gradient on a sample is penalised."""
    return key_of(key, "penalty") % every == 0


def energy_score(one: State, two: State, z_0: State) -> Float[Tensor, "b"]:
    """S of each sample, with root mean squares as norms: 0 for draws that are z_0 itself."""
    near = (_distance(one, z_0).sqrt() + _distance(two, z_0).sqrt()) / 2
    return near - _distance(one, two).sqrt() / 2


def spread(one: State, two: State, z_0: State) -> Float[Tensor, "b"]:
    """rho of each sample."""
    error = (_distance(one, z_0) + _distance(two, z_0)) / 2
    return _distance(one, two) / error.clamp(min=TINY)


def _distance(a: State, b: State) -> Float[Tensor, "b"]:
    """Mean squared difference."""
    return (wide(a) - wide(b)).square().flatten(1).mean(1)
