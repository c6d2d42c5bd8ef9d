"""Components of somebody else: nothing in the package knows this module."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from volumediff.anomaly.maps._base import Map
from volumediff.data.layouts._base import Layout
from volumediff.data.layouts.folder import Folder
from volumediff.networks._base import Network
from volumediff.samplers.ddim import DDIM


@dataclass(frozen=True)
class Huber(Map):
    """Squared residual up to a bound, absolute beyond.

    Arguments:
        delta: the bound
    """

    delta: float = 0.5

    def __call__(self, x, healthy, *, foreground, spacing_mm):
        """The Huber loss of the residual."""
        r = (x - healthy).abs()
        a = torch.where(r < self.delta, r**2 / 2, self.delta * (r - self.delta / 2))
        return a.mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class Careless(Huber):
    """The same, and signed: it breaks the contract."""

    def __call__(self, x, healthy, *, foreground, spacing_mm):
        """The residual."""
        return (x - healthy).mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class Twice(DDIM):
    """DDIM by another name."""


class Pointwise(Network):
    """Two layers that see one voxel and the time.

    Arguments:
        hidden: channels between them
    """

    def __init__(self, in_channels, out_channels, *, hidden: int = 4, **conditions):
        super().__init__(in_channels, out_channels, **conditions)
        self.first = nn.Conv3d(self.input_channels, hidden, 1)
        self.last = nn.Conv3d(hidden, out_channels, 1)

    @property
    def stride(self):
        """Voxels are apart."""
        return 1, 1, 1

    def body(self, x, e):
        """Voxel by voxel."""
        return self.last(torch.tanh(self.first(x)) * (1 + e.mean(1)[:, None, None, None, None]))


@dataclass(frozen=True)
class Upper(Folder):
    """A plain folder whose cases are called in capitals."""

    rank: ClassVar[int] = 2

    def read(self, root):
        """The cases of the folder, renamed."""
        cases, problems = super().read(root)
        return [replace(c, id=c.id.upper()) for c in cases], problems


class NotAMap:
    """No component at all."""


class Unfinished(Layout):
    """A layout that cannot read."""

    def recognises(self, root):
        """Anything."""
        return True
