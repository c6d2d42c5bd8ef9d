r"""Residual networks of Med3D, whose features compare volumes as those of Inception do pictures.

The definition is that of the published weights: names of tensors are theirs (`conv1.weight`,
`layer1.0.bn2.bias`, ...), and layers 3 and 4 keep the grid of layer 2 with dilations 2 and 4.
Depth and kind of the blocks follow from the names, so that the files of ResNet-10, 18, 34, 50 and
101 are told apart by themselves. Statistics of the batch norms are those of the file.

Weights are published as pickles, which nothing here opens; they are converted once, elsewhere:

    state = torch.load("resnet_50_23dataset.pth", weights_only=True)["state_dict"]
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "med3d.safetensors")

References:
    Chen, Ma, Zheng (2019), Med3D: Transfer Learning for 3D Medical Image Analysis,
    arXiv:1904.00625
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Med3D", "is_med3d", "med3d"]

WIDTHS = (64, 128, 256, 512)
STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)
FIRST = "conv1.weight"
PREFIX = "module."  # of data parallel training
TINY = 1e-6


def is_med3d(names: Mapping[str, object]) -> bool:
    """Whether tensors are named as those of a residual network of Med3D."""
    return FIRST in {name.removeprefix(PREFIX) for name in names}


def med3d(tensors: Mapping[str, Tensor]) -> "Med3D":
    """The network of published weights, in evaluation mode.

    Raises:
        ValueError: tensors are missing, or have other shapes
    """
    known = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    blocks = []
    for layer in range(1, 5):
        found = [re.match(rf"layer{layer}\.(\d+)\.", name) for name in known]
        blocks.append(1 + max((int(m[1]) for m in found if m), default=-1))
    if not all(blocks):
        raise ValueError("expected the tensors of layer1 to layer4, got some of them")
    network = Med3D(
        blocks,
        deep="layer1.0.conv3.weight" in known,
        projected="layer2.0.downsample.0.weight" in known,
    )
    own = network.state_dict()
    # Counters of batches decide nothing, and old files have none.
    counters = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(known) - set(counters))
    if missing:
        raise ValueError(f"expected {len(own)} tensors, got none named {missing[0]}")
    try:
        network.load_state_dict({**counters, **{n: t for n, t in known.items() if n in own}})
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    return network.requires_grad_(False).eval()


class Med3D(nn.Module):
    """The encoder of a residual network.

    Arguments:
        blocks: number of blocks in each of the four layers
        deep: whether blocks are bottlenecks of three convolutions with four times the channels
        projected: whether shortcuts are convolutions; else they leave voxels out and add channels
            of zeros
    """

    def __init__(self, blocks: list[int], *, deep: bool, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(WIDTHS[0])
        channels = WIDTHS[0]
        for i, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True)):
            layer = []
            for n in range(count):
                stride = STRIDES[i] if n == 0 else 1
                layer.append(_Block(channels, width, stride, DILATIONS[i], deep, projected))
                channels = layer[-1].channels
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
        self.channels = channels

    def forward(self, x: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b f d2 h2 w2"]:
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x

    @torch.no_grad()
    def vector(self, x: Float[Tensor, "c d h w"]) -> Float[Tensor, "n"]:
        """Mean features of a volume, channel by channel.

        Intensities are standardised by those of the voxels above the lowest one, the foreground of
        a volume whose background has one value.
        """
        found = []
        for channel in x.float():
            inside = channel[channel > channel.min()]
            mean, deviation = inside.mean(), inside.std().clamp(min=TINY)
            features = self(((channel - mean) / deviation)[None, None])
            found.append(features.mean((0, 2, 3, 4)))
        return torch.cat(found)


class _Block(nn.Module):
    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, deep: bool, projected: bool
    ) -> None:
        super().__init__()
        self.channels = 4 * width if deep else width
        self.stride = stride

        def wide(i: int, o: int, stride: int) -> nn.Conv3d:
            return nn.Conv3d(
                i, o, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
            )

        if deep:
            convolutions = [
                nn.Conv3d(inputs, width, 1, bias=False),
                wide(width, width, stride),
                nn.Conv3d(width, self.channels, 1, bias=False),
            ]
        else:
            convolutions = [wide(inputs, width, stride), wide(width, width, 1)]
        self.steps = len(convolutions)
        for n, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{n}", convolution)
            self.add_module(f"bn{n}", nn.BatchNorm3d(convolution.out_channels))
        self.downsample: nn.Sequential | None = None
        if projected and (stride != 1 or inputs != self.channels):
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, self.channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(self.channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for n in range(1, self.steps + 1):
            y = self.get_submodule(f"bn{n}")(self.get_submodule(f"conv{n}")(y))
            y = F.relu(y) if n < self.steps else y
        return F.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        s = self.stride
        x = x[:, :, ::s, ::s, ::s]
        return F.pad(x, (0,) * 6 + (0, self.channels - x.shape[1]))
