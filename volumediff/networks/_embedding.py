r"""Embedding of time, class and scalars into one vector per sample.

.. math:: e = a\big(W_2\, a(W_1 \gamma(t)) + E_y + \mathrm{MLP}(c)\big), \qquad
          \gamma(t) = [\cos 1000\,t\,\omega_i,\ \sin 1000\,t\,\omega_i], \quad
          \omega_i = 10^{-4 i / n}

The factor 1000 puts t in [0, 1] on the scale of the discrete step counts of the literature.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.networks._layers import Linear

__all__ = ["Embedding", "SplitEmbedding", "StepEmbedding", "WideEmbedding", "fourier"]


def fourier(t: Float[Tensor, "b"], width: int) -> Float[Tensor, "b n"]:
    """Cosines and sines of 1000 t at width // 2 frequencies from 1 down to 1e-4.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.5
    """
    half = width // 2
    index = torch.arange(half, device=t.device, dtype=t.dtype)
    angle = 1000 * t[:, None] * torch.exp(-math.log(10_000) / half * index)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class Embedding(nn.Module):
    """Maps (t, class, scalars) to the vector e that conditions the residual blocks.

    Arguments:
        frequencies: even number of Fourier features of t
        classes: number of classes; the table has one entry more, the null class, index `classes`
        scalars: number of standardised scalars
        width: length of e; None for four times the features
        steps: T, the number of steps on whose scale t is read
    """

    def __init__(
        self,
        frequencies: int,
        *,
        classes: int = 0,
        scalars: int = 0,
        width: int | None = None,
        steps: int = 1000,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.frequencies = 2 * max(1, frequencies // 2)
        self.width = width or 4 * self.frequencies
        self.classes = classes
        self.scalars = scalars
        self.time = nn.ModuleList(
            [Linear(self.frequencies, self.width), Linear(self.width, self.width)]
        )
        self.label = nn.Embedding(classes + 1, self.width) if classes else None
        self.scalar = (
            nn.ModuleList([Linear(scalars, self.width), Linear(self.width, self.width)])
            if scalars
            else None
        )

    def forward(self, t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b n"]:
        # `fourier` counts in thousandths.
        e = _mlp(self.time, fourier(t * (self.steps / 1000), self.frequencies))
        label = _class(self.label, condition, self.classes, e)
        if label is not None:
            e = e + label
        scalars = _scalars(condition, self.scalars)
        if scalars is not None:
            e = e + _mlp(self.scalar, scalars.to(e.dtype))
        return F.silu(e)


class WideEmbedding(nn.Module):
    r"""The embedding of MONAI's networks: groups of scalars lengthen e instead of adding to it,

    .. math:: e = a\big([W_2\, a(W_1 \gamma(\tau)) + E_y,\ \mathrm{MLP}_1(c_1),\
              \mathrm{MLP}_2(c_2), \ldots]\big), \qquad \tau = T t + \tau_0.

    Scalars of a context, the last ones, follow e as they are.

    Arguments:
        frequencies: even number of Fourier features of the time
        classes: number of classes; the table has one entry more, the null class, index `classes`
        scalars: number of scalars
        scalar_groups: how many scalars, in their order, share a perceptron; by default all do
        context: how many of the scalars, the last, are those of a context
        steps, offset: T and the offset of the time step that the network reads

    References:
        Guo et al. (2024), MAISI, arXiv:2409.11169
    """

    def __init__(
        self,
        frequencies: int,
        *,
        classes: int = 0,
        scalars: int = 0,
        scalar_groups: tuple[int, ...] = (),
        context: int = 0,
        steps: int = 1000,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        embedded = scalars - context
        groups = scalar_groups or (embedded,) * (embedded > 0)
        if sum(groups) != embedded or any(n < 1 for n in groups):
            raise ValueError(
                f"scalar_groups {tuple(groups)} must be positive and sum to the {embedded} scalars"
            )
        # No width at all is refused, in its own words, by the layers that have it.
        frequencies = 2 * max(1, frequencies // 2)
        self.frequencies, self.classes, self.scalars = frequencies, classes, scalars
        self.steps, self.offset = steps, offset
        part = 4 * frequencies
        self.width = part * (1 + len(groups))
        self.time = nn.ModuleList([Linear(frequencies, part), Linear(part, part)])
        self.label = nn.Embedding(classes + 1, part) if classes else None
        self.scalar = nn.ModuleList(
            nn.ModuleList([Linear(n, part), Linear(part, part)]) for n in groups
        )
        self.groups, self.context = groups, context

    def forward(self, t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b n"]:
        # `fourier` counts in thousandths.
        e = _mlp(self.time, fourier((self.steps * t + self.offset) / 1000, self.frequencies))
        label = _class(self.label, condition, self.classes, e)
        if label is not None:
            e = e + label
        scalars = _scalars(condition, self.scalars)
        if scalars is None:
            return F.silu(e)
        *split, context = scalars.to(e.dtype).split((*self.groups, self.context), dim=1)
        parts = [_mlp(layers, c) for layers, c in zip(self.scalar, split, strict=True)]
        return torch.cat((F.silu(torch.cat((e, *parts), dim=1)), context), dim=1)


class SplitEmbedding(nn.Module):
    r"""The embedding of FlowLet: time and condition stay apart, for layers that read one of them,

    .. math:: e = \big[a(W_2\, a(W_1 \gamma(\tau))),\
              E_y + \textstyle\sum_i \mathrm{MLP}_i(c_i)\big], \qquad \tau = T t + \tau_0,

    the second without an activation.

    Arguments:
        frequencies: even number of Fourier features of the time
        length: of the condition's part; 0 without classes and scalars
        classes: number of classes; the table has one entry more, the null class, index `classes`
        scalars: number of scalars, each with a perceptron of its own
        steps, offset: T and the offset of the time that the network reads

    References:
        Danese et al. (2026), FlowLet, arXiv:2601.05212
    """

    def __init__(
        self,
        frequencies: int,
        length: int,
        *,
        classes: int = 0,
        scalars: int = 0,
        steps: int = 1000,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        frequencies = 2 * max(1, frequencies // 2)
        self.frequencies, self.classes, self.scalars = frequencies, classes, scalars
        self.steps, self.offset = steps, offset
        timed = 4 * frequencies
        self.parts = (timed, length if classes or scalars else 0)
        self.width = sum(self.parts)
        self.time = nn.ModuleList([Linear(frequencies, timed), Linear(timed, timed)])
        self.label = nn.Embedding(classes + 1, length) if classes else None
        self.scalar = nn.ModuleList(
            nn.ModuleList([Linear(1, length), Linear(length, length)]) for _ in range(scalars)
        )

    def forward(self, t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b n"]:
        timed = F.silu(
            _mlp(self.time, fourier((self.steps * t + self.offset) / 1000, self.frequencies))
        )
        told = timed.new_zeros(len(timed), self.parts[1])
        label = _class(self.label, condition, self.classes, timed)
        if label is not None:
            told = told + label
        scalars = _scalars(condition, self.scalars)
        if scalars is not None:
            columns = scalars.to(timed.dtype).split(1, dim=1)
            for layers, c in zip(self.scalar, columns, strict=True):
                told = told + _mlp(layers, c)
        return torch.cat((timed, told), dim=1)


class StepEmbedding(nn.Module):
    r"""The embedding of Medical Diffusion's network, of the step k = T t - 1,

    .. math:: e = a\big(W_2\, \mathrm{GELU}(W_1 \gamma(k)) + E_y + \mathrm{MLP}(c)\big), \qquad
              \gamma(k) = [\sin k\,\omega_i,\ \cos k\,\omega_i], \quad
              \omega_i = 10^{-4 i / (n - 1)}.

    Arguments:
        frequencies: even number of features, from 4 on
        classes: number of classes; the table has one entry more, the null class, index `classes`
        scalars: number of scalars
        steps: T

    References:
        Khader et al. (2022), Medical Diffusion, arXiv:2211.03364
    """

    def __init__(
        self, frequencies: int, *, classes: int = 0, scalars: int = 0, steps: int
    ) -> None:
        super().__init__()
        self.frequencies, self.classes, self.scalars = frequencies, classes, scalars
        self.steps, self.width = steps, 4 * frequencies
        width = self.width
        self.time = nn.ModuleList([Linear(frequencies, width), Linear(width, width)])
        self.label = nn.Embedding(classes + 1, width) if classes else None
        layers = (Linear(scalars, width), Linear(width, width)) if scalars else ()
        self.scalar = nn.ModuleList(layers)

    def forward(self, t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b n"]:
        half = self.frequencies // 2
        index = torch.arange(half, device=t.device, dtype=t.dtype)
        step = self.steps * t - 1
        angle = step[:, None] * torch.exp(-math.log(10_000) / (half - 1) * index)
        e = self.time[0](torch.cat((angle.sin(), angle.cos()), dim=1))
        e = self.time[1](F.gelu(e))
        label = _class(self.label, condition, self.classes, e)
        if label is not None:
            e = e + label
        scalars = _scalars(condition, self.scalars)
        if scalars is not None:
            e = e + _mlp(self.scalar, scalars.to(e.dtype))
        return F.silu(e)


def _class(
    table: nn.Embedding | None, condition: Condition, classes: int, e: Float[Tensor, "b _"]
) -> Float[Tensor, "b n"] | None:
    """The embedding of each sample's class, the null class where none is given; None without.

    Arguments:
        e: for the number of samples, the dtype and the device
    """
    label, mixture = condition.label, condition.mixture
    if not classes:
        if label is not None or mixture is not None:
            raise ValueError(
                "the condition has a label, but the network was built with classes=0: "
                "leave the label out or train with classes"
            )
        return None
    weight = table.weight.to(e.dtype)
    if mixture is not None:
        if label is not None or mixture.shape[1] != classes + 1:
            raise ValueError(
                f"the network takes a label or a mixture of {classes + 1} classes (the null class "
                f"last), got {'both' if label is not None else mixture.shape[1]}: set one of them"
            )
        return mixture.to(e.dtype) @ weight
    if label is None:
        label = torch.full((len(e),), classes, device=e.device, dtype=torch.int64)
    return weight[label]


def _scalars(condition: Condition, scalars: int) -> Float[Tensor, "b n"] | None:
    """The scalars of each sample; None for a network without."""
    given = condition.scalars
    if scalars:
        if given is None or given.shape[1] != scalars:
            count = "none" if given is None else given.shape[1]
            raise ValueError(
                f"the network takes {scalars} scalars per sample, got {count}: "
                "set Condition.scalars"
            )
        return given
    if given is not None:
        raise ValueError(
            "the condition has scalars, but the network was built with scalars=0: "
            "leave them out or train with scalars"
        )
    return None


def _mlp(layers: nn.ModuleList, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
    return layers[1](F.silu(layers[0](x)))
