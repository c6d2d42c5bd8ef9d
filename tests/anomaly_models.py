"""Models whose denoiser is known in closed form, in any space, to test localization."""

import torch

from volumediff.autoencoders.binary import Binary
from volumediff.autoencoders.kl import KL
from volumediff.classification import ClassPosterior
from volumediff.condition import Condition
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

SHAPE = (8, 12, 8)
SPACING = (2.0, 2.0, 2.0)
SCHEDULE = Cosine()


class Wiener(Network):
    r"""Volumes x ~ N(mean, C) with C diagonal in Fourier space, seen through an orthonormal space.

    E[x | x_t] = mean + F^-1[alpha P / (alpha^2 P + sigma^2) F(x_t - alpha mean)] with the
    eigenvalues P of C; P = std^2 for white volumes.
    """

    def __init__(self, space, shape=SHAPE, *, mean=0.0, std=0.1, correlation=0.0):
        super().__init__(1, 1)
        self.space, self.shape, self.mean = [space], shape, mean
        k2 = sum(f**2 for f in torch.meshgrid(*map(torch.fft.fftfreq, shape), indexing="ij"))
        power = torch.exp(-2 * torch.pi**2 * correlation**2 * k2)
        self.power = std**2 * power / power.mean()

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        alpha, sigma = (per_sample(a, z_t) for a in SCHEDULE(t))
        x_t = self.space[0].synthesis(z_t, self.shape)
        gain = alpha * self.power / (alpha**2 * self.power + sigma**2)
        rest = torch.fft.ifftn(gain * torch.fft.fftn(x_t - alpha * self.mean, dim=(2, 3, 4)))
        return self.space[0].analysis(self.mean + rest.real.to(z_t.dtype))

    def sample(self, seed):
        g = torch.Generator().manual_seed(seed)
        white = torch.randn((1, 1, *self.shape), generator=g)
        return self.mean + torch.fft.ifftn(self.power.sqrt() * torch.fft.fftn(white)).real


class States(Network):
    """States ~ N(means[label], std^2) per state voxel; the null class is their wider union."""

    def __init__(self, means=(0.0,), std=0.3, *, classes=0):
        super().__init__(1, 1, classes=classes)
        self.means, self.std = torch.tensor(means), std

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        label = None if condition is None else condition.label
        if condition is not None and condition.mixture is not None:
            # as linear in the class as a small network's first order is
            shares = condition.mixture[0]
            each = [Condition(label=torch.full((len(z_t),), i)) for i in range(len(shares))]
            return sum(w * self(z_t, t, c) for w, c in zip(shares, each, strict=True))
        if label is None:
            label = torch.full((len(z_t),), len(self.means) if len(self.means) > 1 else 0)
        union = torch.cat([self.means, self.means.mean()[None]])
        spread = self.means.var(correction=0)
        variance = torch.cat([torch.zeros_like(self.means), spread[None]]) + self.std**2
        mean, p = (per_sample(v[label], z_t) for v in (union, variance))
        alpha, sigma = (per_sample(a, z_t) for a in SCHEDULE(t))
        return mean + alpha * p / (alpha**2 * p + sigma**2) * (z_t - alpha * mean)


KERNEL = Gaussian(SCHEDULE, prediction="x0")


def wiener(space=None, shape=SHAPE, **prior):
    space = space or Voxel()
    return Model(space, KERNEL, Wiener(space, shape, **prior))


def states(space=None, **prior):
    return Model(space or Voxel(), KERNEL, States(**prior))


def tiny_autoencoder(channels=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KL(channels, latent_channels=2, widths=(4, 4), strides=((2, 2, 2),), blocks=1)


def posterior(means=(-0.2, 0.3), std=0.3):
    """The exact class posterior of states N(means[y], std^2) in every voxel, equal priors."""

    def log_probability(z_t, t):
        alpha, sigma = (per_sample(a, z_t) for a in SCHEDULE(t))
        variance = alpha**2 * std**2 + sigma**2
        fits = [-((z_t - alpha * m) ** 2 / variance / 2).flatten(1).sum(1) for m in means]
        return torch.log_softmax(torch.stack(fits, 1), 1)

    return ClassPosterior(log_probability, SCHEDULE, len(means), "exact")


def tiny_binary():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Binary(1, latent_channels=4, widths=(4, 4), strides=((2, 2, 2),), blocks=1)


SPACES = {
    "voxel": Voxel,
    "wavelet": Wavelet,
    "slices": lambda: Slices(Wavelet(axes="hw")),
    "latent": lambda: Latent(tiny_autoencoder()),
}


def foreground(shape=SHAPE):
    m = torch.zeros((1, 1, *shape), dtype=torch.bool)
    m[..., 1:-1, 1:-1, 1:-1] = True
    return m


def blob(shape=SHAPE):
    m = torch.zeros((1, 1, *shape), dtype=torch.bool)
    m[..., 3:6, 4:7, 3:6] = True
    return m
