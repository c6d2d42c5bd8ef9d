"""Probes whose features are the volume itself, so that what they can learn is known."""

import torch
from torch import nn

from volumediff.contracts.segmenters import VALUE
from volumediff.features.probe import Probe
from volumediff.kernels.cold import Cold
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.networks._levels import Tap
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel


class SeesVoxels(Network):
    """Gives back what it sees: x, and as a second level (x, x²)."""

    def __init__(self):
        super().__init__(1, 1)
        self.same, self.both = nn.Identity(), nn.Identity()

    @property
    def stride(self):
        return (1, 1, 1)

    @property
    def taps(self):
        return {"encoder.0": Tap(self.same, 1), "decoder.0": Tap(self.both, 2)}

    def body(self, x, e):
        seen = self.same(x)
        self.both(torch.cat([seen, seen.square()], dim=1))
        return seen


def voxel_probe(labels=(VALUE,), **arguments):
    """A probe of the intensity at every voxel: a restoring model sees the volume itself."""
    model = Model(Voxel(), Cold(Cosine()), SeesVoxels())
    arguments = {"levels": ["encoder"], "times": [0.2], "hidden": (), "members": 2, **arguments}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Probe(model, LabelDiffusion(labels=labels), **arguments).eval()


def probe_of_halves():
    """Labels the voxels above zero, surely."""
    probe = voxel_probe()
    for head in probe.heads:
        with torch.no_grad():
            head.layers[-1].weight.copy_(torch.tensor([[0.0], [50.0]]))
            head.layers[-1].bias.zero_()
    return probe
