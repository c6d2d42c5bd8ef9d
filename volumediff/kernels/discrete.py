r"""Discrete kernel: independent variables of K classes, each kept or drawn anew from a law pi,

.. math:: q(z_t | z_0) &= Cat(\bar\alpha_t z_0 + (1 - \bar\alpha_t) \pi), \qquad
          \bar\alpha = \alpha^2, \quad a = \bar\alpha_t / \bar\alpha_s, \\
          q(z_t | z_s) &= Cat(a z_s + (1 - a) \pi), \\
          p(z_s = j | z_t) &= \big(a [z_t = j] + (1 - a) \pi_{z_t}\big)
          \Big(\bar\alpha_s w_j + (1 - \bar\alpha_s) \pi_j \sum_k w_k\Big), \\
          w_k &= p(z_0 = k | z_t) \,/\, \big(\bar\alpha_t [z_t = k] + (1 - \bar\alpha_t)
          \pi_{z_t}\big),

where the last two lines sum q(z_s | z_t, z_0) over what the network thinks of z_0: at K operations
per variable the exact law, while q(z_s | z_t, E z_0) would be biased towards rare classes. pi is
1 / K, or a law of its own in every voxel.

States are coded in -1 and 1, so that they have the size of noise and E[z_0] is affine in the
probabilities: bits have one channel per variable; else there are K channels per variable, 1 in
that of its class. Noise comes in as white Gaussian noise, as for every kernel; its distribution
function makes uniform numbers of it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.component import handed_in
from volumediff.kernels._base import Kernel, Prediction
from volumediff.schedules._base import per_sample

__all__ = ["Discrete"]

State = Float[Tensor, "b k d h w"]
Classes = Float[Tensor, "b n classes d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class Discrete(Kernel):
    r"""Transitions between K classes towards a law pi; K = 2 is Bernoulli noise on bits.

    The network gives logits of z_0: of the value 1 for each bit, or of each class; or, for bits,
    those of the noise, z_0 != z_t. A prediction's x0 is E[z_0] = 2 p - 1 and so holds the
    probabilities p; there is no eps and no v, they are NaN. The loss of a sample is a mean over
    variables, in nats,

    .. math:: -\log p(z_0 | z_t) + \lambda\,
              KL\big(q(z_s | z_t, z_0) \,\|\, p(z_s | z_t)\big), \qquad s = t - 1 / T,

    whose two terms are least at the same p, the true posterior.

    Arguments:
        schedule: of alpha; the signal kept is alpha², as in the papers
        classes: K; 0 leaves it to the code that is diffused, see `over`
        divergence: λ, weight of the divergence
        levels: T, steps of the chain that the divergence is about
        prediction: what the logits are about: z_0 (x0), or for bits whether z_t differs (xor)
        law: E[z_1] of the volumes at hand, see `given`; pi = 1 / K without
        grouped: whether variables of two classes have two channels, as those of more have, and
            are no bits

    References:
        Hoogeboom et al. (2021), Argmax Flows and Multinomial Diffusion, arXiv:2102.05379;
        Zbinden et al. (2023), CCDM, arXiv:2303.08888, for the sum over classes;
        Chen et al. (2023), BerDiff, arXiv:2304.04429, for the sum of both losses and for xor; its
        released code lets bits decay to 0, where the formula and this kernel have 1/2;
        Chen et al. (2024), HiDiff, arXiv:2407.03548, for pi of a segmentation network
    """

    path: ClassVar[str] = "discrete"
    valued: ClassVar[bool] = True
    classes: int = 2
    divergence: float = 1.0
    levels: int = 1000
    prediction: Literal["x0", "xor"] = "x0"
    law: Float[Tensor, "b k d h w"] | None = handed_in(None)
    grouped: bool = handed_in(False)

    def __post_init__(self) -> None:
        if not self.variance_preserving:
            raise ValueError(
                "schedule: expected one that preserves variance, whose alpha² and sigma² are the "
                f"shares of what is kept and drawn anew, got {type(self.schedule).__name__}; use "
                "for example cosine."
            )
        if self.classes == 1 or self.classes < 0 or self.divergence < 0 or self.levels < 1:
            raise ValueError(
                "expected classes >= 2 (or 0 for those of the code), divergence >= 0 and "
                f"levels >= 1, got {self.classes}, {self.divergence} and {self.levels}."
            )
        if self.prediction == "xor" and (self.classes > 2 or self.grouped):
            raise ValueError(
                f"prediction xor is about bits: expected classes 2, got {self.classes}"
                f"{', in one channel each' if self.grouped else ''}; use x0, or the coding signed."
            )

    @property
    def bits(self) -> bool:
        """Whether every channel is a variable of its own."""
        return self.classes == 2 and not self.grouped

    def over(self, classes: int, *, grouped: bool = False) -> "Discrete":
        return replace(self, classes=self.classes or classes, grouped=grouped)

    def given(self, law: State | None) -> "Discrete":
        return replace(self, law=law)

    def prior(self, noise: State, start: float = 1.0) -> State:
        """pi, uniform over the classes where there is no law."""
        return self._draw(self._law(self._split(noise)), noise)

    def corrupt(self, z_0: State, t: Level, noise: State) -> State:
        alpha, sigma = self.schedule(t)
        return self._redrawn(z_0, alpha.square(), sigma.square(), noise)

    def renoise(self, z_s: State, s: Level, t: Level, noise: State) -> State:
        kept = self._kept(s, t)
        return self._redrawn(z_s, kept, 1 - kept, noise)

    def predict(self, output: State, z_t: State, t: Level) -> Prediction:
        x0 = self._join(self.log_probabilities(output, z_t).exp())
        undefined = x0.new_full((), float("nan")).expand_as(x0)
        return Prediction(x0, undefined, undefined)

    def probabilities(self, x0: State) -> Classes:
        """p of the classes from E[z_0]; what guidance pushed out of [0, 1] is cut to it."""
        p = self._split(x0).clamp(0, 1)
        return p / p.sum(2, keepdim=True)

    def log_probabilities(self, output: State, z_t: State) -> Classes:
        """log p of the classes of z_0 from a network's output."""
        if self.bits:
            logit = -z_t.to(output) * output if self.prediction == "xor" else output
            return torch.stack([F.logsigmoid(logit), F.logsigmoid(-logit)], dim=2)
        return F.log_softmax(self._grouped(output), dim=2)

    def indicators(self, z: State) -> Classes:
        """1 for the class of each variable of a clean state, first that of the code 1 of bits."""
        return self._split(z)

    def posterior(self, p: Classes, z_t: State, t: Level, s: Level) -> Classes:
        """p(z_s | z_t), summed over the classes of z_0 with probabilities p, for any s < t."""
        now = self._split(z_t)
        law = self._law(now)
        here = (law * now).sum(2, keepdim=True)  # pi of the class of z_t
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        w = p / (_level(alpha_t.square(), p) * now + _level(sigma_t.square(), p) * here)
        kept = self._kept(s, t)
        forward = _level(kept, p) * now + _level(1 - kept, p) * here
        rest = _level(sigma_s.square(), w) * law
        return forward * (_level(alpha_s.square(), w) * w + rest * w.sum(2, keepdim=True))

    def skip(self, p: Classes, z_t: State, t: Level, s: Level, *, share: float) -> Classes:
        r"""p(z_s) of a chain that skips levels and keeps the exact marginals for any share,

        .. math:: g z_t + (\bar\alpha_s - g \bar\alpha_t) p
                  + \big(1 - \bar\alpha_s - g (1 - \bar\alpha_t)\big) \pi, \qquad
                  g = \text{share} \cdot (1 - \bar\alpha_s) / (1 - \bar\alpha_t).

        Arguments:
            p: probabilities of the classes of z_0
            share: of the largest g, in [0, 1]: 0 draws everything anew, 1 keeps what may be kept

        References:
            Song et al. (2021), DDIM, arXiv:2010.02502, appendix A
        """
        now = self._split(z_t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        g = share * (sigma_s / sigma_t).square()
        clean = alpha_s.square() - g * alpha_t.square()
        noisy = (1 - share) * sigma_s.square()  # the last bracket above, without cancellation
        return _level(g, p) * now + _level(clean, p) * p + _level(noisy, p) * self._law(now)

    def step(self, prediction: Prediction, z_t: State, t: Level, s: Level, noise: State) -> State:
        p = self.posterior(self.probabilities(prediction.x0), z_t, t, s)
        return self.draw(p, s, noise)

    def draw(self, p: Classes, s: Level, noise: State) -> State:
        """States at the times s with these probabilities; at s = 0 the likeliest class."""
        return self._draw(p, torch.where(per_sample(s, noise) > 0, noise, 0.0))

    def loss(self, output: State, z_0: State, z_t: State, t: Level, noise: State) -> Level:
        dtype = torch.promote_types(output.dtype, torch.float32)
        log_p, truth = self.log_probabilities(output.to(dtype), z_t), self._split(z_0.to(dtype))
        loss = -(truth * log_p).sum(2).flatten(1).mean(1)
        if self.divergence == 0:
            return loss
        s = (t - 1 / self.levels).clamp(min=0)
        q, p = (self.posterior(x, z_t.to(dtype), t, s) for x in (truth, log_p.exp()))
        tiny = torch.finfo(dtype).tiny  # of logits so wrong that exp(log p) is 0
        kl = (torch.special.xlogy(q, q) - q * p.clamp(min=tiny).log()).sum(2)
        return loss + self.divergence * kl.flatten(1).mean(1)

    def _law(self, like: Classes) -> Classes:
        """pi in the layout of states."""
        if self.law is None:
            return like.new_full((), 1 / self.classes).expand_as(like)
        return self._split(self.law).to(like).expand_as(like)

    def _kept(self, s: Level, t: Level) -> Level:
        """a, the share of variables that are not drawn anew between s and t."""
        return (self.schedule(t)[0] / self.schedule(s)[0]).square()

    def _redrawn(self, z: State, kept: Level, lost: Level, noise: State) -> State:
        return self._draw(self._mixed(z, kept, lost), noise)

    def _mixed(self, z: State, kept: Level, lost: Level) -> Classes:
        """Cat(kept z + lost pi)."""
        now = self._split(z)
        return _level(kept, now) * now + _level(lost, now) * self._law(now)

    def _split(self, z: State) -> Classes:
        """Indicators of the classes, or their probabilities, from a state or its mean."""
        if self.bits:
            return torch.stack([(1 + z) / 2, (1 - z) / 2], dim=2)
        return (1 + self._grouped(z)) / 2

    def _join(self, p: Classes) -> State:
        """The inverse of `_split`."""
        return 2 * p[:, :, 0] - 1 if self.bits else (2 * p - 1).flatten(1, 2)

    def _grouped(self, z: State) -> Classes:
        if not self.classes:
            raise ValueError(
                "classes: expected the number of classes of the code, got 0; see over."
            )
        if z.shape[1] % self.classes:
            raise ValueError(
                f"expected one channel per class of each variable, a multiple of {self.classes}, "
                f"got {z.shape[1]} channels."
            )
        return z.unflatten(1, (-1, self.classes))

    def _draw(self, p: Classes, noise: State) -> State:
        """States with these probabilities: exact for p = 0 and 1, the likeliest without noise."""
        if self.bits:
            # rounding takes p beyond 1, where the quantile is NaN and a certain bit would flip
            first = noise < torch.special.ndtri(p[:, :, 0].clamp(0, 1))
            return torch.where(first, 1.0, -1.0).to(noise.dtype)
        # Largest log p + g, with Gumbel noise g = -log(-log u) of uniform u = Φ(noise)
        gumbel = -torch.log(-torch.special.log_ndtr(self._grouped(noise)))
        best = (p.log() + gumbel).argmax(2)
        one = F.one_hot(best, self.classes).movedim(-1, 2)
        return self._join(one.to(noise.dtype))


def _level(values: Level, p: Classes) -> Float[Tensor, "b 1 1 1 1 1"]:
    return values.to(p)[:, None, None, None, None, None]
