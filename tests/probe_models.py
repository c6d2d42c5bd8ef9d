"""Models of labels that read the volume itself: what they find is known."""

import torch
from torch import nn

from volumediff.conditioners._base import Conditioner
from volumediff.contracts.segmenters import VALUE
from volumediff.features.probe import Probe
from volumediff.kernels.cold import Cold
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.networks._levels import Tap
from volumediff.networks.unet import UNet
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.residual_segmentation import ResidualSegmentation
from volumediff.residual_segmenters import ResidualSegmenter
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


class AnswersTheImage(Conditioner):
    """An image branch that predicts the image itself."""

    anchors = True

    def __init__(self, *, host):
        super().__init__()

    def prepare(self, image):
        return (image,)

    def forward(self, h, place, carried, e):
        return h, carried

    def anchor(self, prepared):
        return prepared[0]


def anchor_of_halves():
    """A model of the label `VALUE` whose image branch finds it where the volume is above zero."""
    network = UNet(1, 1, image_channels=1, widths=(4,), conditioner={"name": AnswersTheImage})
    recipe = LabelDiffusion(labels=(VALUE,))
    return Model(Voxel(), Gaussian(Cosine()), network, recipe=recipe).eval()


class ReadsVolumes(ResidualSegmenter):
    """The logit is 50 times the volume; the residual counts nothing, unless it is weighed."""

    def __init__(self, weight=0.0):
        super().__init__(1)
        self.weight = nn.Parameter(torch.tensor([weight, 50.0]))

    def body(self, pair):
        return (self.weight[:, None, None, None] * pair).sum(1, keepdim=True)


def residual_of_halves(labels=(VALUE,), weight=0.0):
    """Labels the voxels above zero, surely."""
    model = Model(Voxel(), Gaussian(Cosine(), prediction="x0"), SeesVoxels())
    recipe = LabelDiffusion(labels=labels)
    return ResidualSegmentation(model, ReadsVolumes(weight), recipe=recipe).eval()
