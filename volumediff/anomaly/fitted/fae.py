r"""FAE: structural dissimilarity of features and what a small autoencoder makes of them,

.. math:: a_p = \mathrm{mean}_k\, \big(1 - SSIM(f_k, \hat f_k)_p\big).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from volumediff.anomaly._similarity import ssim
from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.fitted._source import FeatureSource
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Requirement
from volumediff.randomness import generator

__all__ = ["FAE"]

_RANGE = 3.0  # healthy deviations that become 1, the end of the intensities that SSIM expects
_VOXEL = (1.0, 1.0, 1.0)  # windows are in positions of the grid


@dataclass(frozen=True, kw_only=True)
class FAE(Fitted):
    """A convolutional autoencoder of the features, trained with SSIM; no alignment needed.

    Fitting keeps the features of at most `volumes` volumes, 4 F P bytes each, and trains on the
    CPU, so that the fit depends on the key alone: 200 steps of 64³ voxels at stride 4 take about
    a minute.

    Arguments:
        features: of the model
        widths: channels of the encoder, which halves the grid once for each
        steps: of Adam
        batch_size: volumes per step
        lr: learning rate
        window: standard deviation of the SSIM window, in positions of the grid
        volumes: most volumes to train on, the first ones

    References:
        Meissen et al. (2022), Unsupervised Anomaly Localization with Structural
        Feature-Autoencoders, arXiv:2208.10992
    """

    features: FeatureSource = field(default_factory=FeatureSource)
    widths: tuple[int, ...] = (32, 48)
    steps: int = 200
    batch_size: int = 2
    lr: float = 2e-3
    window: float = 1.5
    volumes: int = 64

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.steps, self.batch_size, self.volumes) < 1:
            raise ValueError("expected at least one of widths, steps, batch_size and volumes.")
        if not (self.lr > 0 and self.window > 0):
            raise ValueError(f"expected lr > 0 and window > 0, got {self.lr} and {self.window}.")

    @property
    def recipe(self) -> tuple[Any, ...]:
        """All arguments."""
        training = (self.steps, self.batch_size, self.lr, self.window, self.volumes)
        return self.features, self.widths, *training

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Such features."""
        return (self.features.needed("fitted fae"),)

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """Mean and scale of every feature, and the trained weights.

        Raises:
            ValueError: no volumes
        """
        assert model is not None, "checked"
        kept = []
        for example in examples:
            kept.append((self.features(model, example).cpu(), self.features.inside(example).cpu()))
            if len(kept) == self.volumes:
                break
        if not kept:
            raise ValueError("fae: expected healthy volumes, got none.")
        rows = torch.cat([f[:, inside] for f, inside in kept], dim=1)
        mean = rows.mean(1)
        scale = _RANGE * rows.std(1).clamp(min=1e-6)
        net = _Autoencoder(len(mean), self.widths)
        net.draw(generator(key, "weights"))
        prepared = [(_scaled(f, mean, scale), inside) for f, inside in kept]
        with torch.enable_grad():
            self._train(net, prepared, key)
        weights = {f"net.{name}": w.detach() for name, w in net.state_dict().items()}
        return Fit({"mean": mean, "scale": scale, **weights}, len(kept))

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The dissimilarity at every position, interpolated to the voxels."""
        assert model is not None, "checked"
        learnt = self.learnt.to(example.x)
        net = _Autoencoder(len(learnt["mean"]), self.widths).to(example.x.device)
        names = (name for name in learnt if name.startswith("net."))
        net.load_state_dict({name.removeprefix("net."): learnt[name] for name in names})
        f = _scaled(self.features(model, example), learnt["mean"], learnt["scale"])
        with torch.no_grad():
            a = self._distance(net, f, self.features.inside(example))
        return RawLocalization(self.features.voxels(a, example), None)

    def _train(self, net: nn.Module, volumes: list[tuple[Tensor, Tensor]], key: int) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        for step in range(self.steps):
            drawn = torch.randint(
                len(volumes), (self.batch_size,), generator=generator(key, "batch", step)
            )
            # one by one: volumes that are not aligned have grids of their own
            losses = [
                self._distance(net, f, inside)[inside].mean()
                for f, inside in (volumes[i] for i in drawn.tolist())
            ]
            optimizer.zero_grad()
            (sum(losses) / len(losses)).backward()
            optimizer.step()

    def _distance(
        self, net: nn.Module, f: Float[Tensor, "f d h w"], inside: Bool[Tensor, "d h w"]
    ) -> Float[Tensor, "d h w"]:
        f, windows = f[None], inside[None, None]
        near = ssim(f, net(f), sigma_mm=self.window, spacing_mm=_VOXEL, foreground=windows)
        return (1 - near).mean(dim=1)[0] * inside


class _Autoencoder(nn.Module):
    """Halves the grid with every width and brings it back; any size."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise([channels, *widths]))
        # without weights of their own, which would be drawn from the global generator
        conv = partial(nn.utils.skip_init, nn.Conv3d)
        self.down = nn.ModuleList(conv(a, b, kernel_size=3, stride=2, padding=1) for a, b in pairs)
        self.up = nn.ModuleList(conv(b, a, kernel_size=3, padding=1) for a, b in reversed(pairs))

    def draw(self, g: torch.Generator) -> None:
        """Weights from a generator; the law of He et al. (2015)."""
        for layer in [*self.down, *self.up]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="leaky_relu", generator=g)
            nn.init.zeros_(layer.bias)

    def forward(self, f: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        sizes = []
        for layer in self.down:
            sizes.append(f.shape[2:])
            f = F.leaky_relu(layer(f))
        for i, (layer, size) in enumerate(zip(self.up, reversed(sizes), strict=True)):
            f = layer(F.interpolate(f, size, mode="trilinear", align_corners=False))
            f = F.leaky_relu(f) if i + 1 < len(self.up) else f
        return f


def _scaled(f: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (f - mean.view(-1, 1, 1, 1)) / scale.view(-1, 1, 1, 1)
