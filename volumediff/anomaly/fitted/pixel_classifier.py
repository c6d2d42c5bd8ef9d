r"""Probability of a lesion from diffusion features: an ensemble of small perceptrons,

.. math:: a_p = \mathrm{mean}_j\, \mathrm{sigmoid}(g_j(f_p)).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.fitted._source import FeatureSource
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Requirement
from volumediff.randomness import generator
from volumediff.randomness import key as key_of

__all__ = ["PixelClassifier"]

SHARE = 0.25  # of a cell that makes it a lesion's; half would lose what is as small as a cell


@dataclass(frozen=True, kw_only=True)
class PixelClassifier(Fitted):
    """Perceptrons on the features of positions of the foreground, lesion against none.

    What it learns from is the method's supervision: masks (full), or synthetic lesions (self).
    Fitting keeps at most `samples` positions of each class, one draw over all volumes.

    Arguments:
        features: of the model
        hidden: widths of the hidden layers
        members: perceptrons, each from weights of its own
        epochs: passes over the positions
        samples: most positions of each class

    References:
        Baranchuk et al. (2022), Label-Efficient Semantic Segmentation with Diffusion Models,
        arXiv:2112.03126
    """

    features: FeatureSource = field(
        default_factory=lambda: FeatureSource(log_snrs=(3.47, 1.30, 0.09), noise=1.0)
    )
    hidden: tuple[int, ...] = (128, 32)
    members: int = 5
    epochs: int = 20
    samples: int = 20_000

    def __post_init__(self) -> None:
        if min(self.members, self.epochs, self.samples, *self.hidden, 1) < 1:
            raise ValueError("expected at least one of members, epochs, samples and hidden units.")
        if self.supervision not in ("full", "self"):
            raise ValueError(
                "fitted pixel_classifier: expected supervision full (masks) or self (synthetic "
                f"lesions), got {self.supervision}."
            )

    @property
    def recipe(self) -> tuple[Any, ...]:
        """All arguments."""
        return self.features, self.hidden, self.members, self.epochs, self.samples

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Such features."""
        return (self.features.needed("fitted pixel_classifier"),)

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """Mean and scale of every feature, and the weights of all members.

        Raises:
            ValueError: no lesions, or nothing else
        """
        assert model is not None, "checked"
        kept: list[tuple[Tensor, Tensor]] = []
        volumes = 0
        for example in examples:
            if example.truth is None:
                continue
            f, inside = self.features(model, example).cpu(), self.features.inside(example).cpu()
            grid = self.features.grid(example.x)
            share = F.adaptive_avg_pool3d(example.truth.float().cpu(), grid)[0, 0]
            drawn = torch.rand(inside.shape, generator=generator(key, "samples", volumes))
            parts = [inside & (share == 0), inside & (share >= SHARE)]  # cells between are neither
            new = [(f[:, part].T, drawn[part]) for part in parts]
            kept = [
                _lowest(old, more, self.samples)
                for old, more in zip(kept or [(p[0][:0], p[1][:0]) for p in new], new, strict=True)
            ]
            volumes += 1
        healthy, lesions = (len(rows) for rows, _ in kept) if kept else (0, 0)
        if not (healthy and lesions):
            raise ValueError(
                f"pixel_classifier: expected volumes with masks of lesions, got {volumes} volumes "
                f"with {lesions} lesion cells; give data with labels, or use a method that is "
                "fitted on synthetic lesions."
            )
        rows = torch.cat([part for part, _ in kept])
        labels = torch.arange(2).repeat_interleave(torch.tensor([healthy, lesions]))
        mean, scale = rows.mean(0), rows.std(0).clamp(min=1e-6)
        weights = self._fitted((rows - mean) / scale, labels, key)
        return Fit({"mean": mean, "scale": scale, **weights}, volumes)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The mean probability at every position, interpolated to the voxels."""
        assert model is not None, "checked"
        learnt = self.learnt.to(example.x)
        f = self.features(model, example)
        rows = (f.flatten(1).T - learnt["mean"]) / learnt["scale"]
        total = torch.zeros(len(rows), device=rows.device)
        for j in range(self.members):
            h = rows
            for i in range(len(self.hidden) + 1):
                h = h @ learnt[f"{j}.weight{i}"] + learnt[f"{j}.bias{i}"]
                h = h.relu() if i < len(self.hidden) else h.sigmoid()
            total += h[:, 0]
        a = (total / self.members).view(f.shape[1:])
        return RawLocalization(self.features.voxels(a, example), None)

    def _fitted(self, rows: Tensor, labels: Tensor, key: int) -> dict[str, Tensor]:
        from sklearn.neural_network import MLPClassifier  # heavy import

        found = {}
        for j in range(self.members):
            seed = key_of(key, "member", j) % 2**32  # what numpy's generator takes
            net = MLPClassifier(self.hidden, random_state=seed)
            for _ in range(self.epochs):
                net.partial_fit(rows.double().numpy(), labels.numpy(), classes=[0, 1])
            for i, (w, b) in enumerate(zip(net.coefs_, net.intercepts_, strict=True)):
                found[f"{j}.weight{i}"] = torch.from_numpy(w).float()
                found[f"{j}.bias{i}"] = torch.from_numpy(b).float()
        return found


def _lowest(
    old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """The rows with the lowest ranks of two sets."""
    rows, ranks = torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]])
    order = ranks.argsort(stable=True)[:count]
    return rows[order], ranks[order]
