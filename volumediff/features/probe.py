r"""A probe: heads that read classes of voxels from features of a frozen diffusion model,

.. math:: p_j(y | x, i) = g_j\big(f_{t_1}(x)_i, \dots, f_{t_T}(x)_i\big),

with f_t the levels of the network at time t, side by side, interpolated to the voxel i, and
member j of an ensemble of heads. A shared head sees one time at a time, and its answers are
averaged: :math:`p_j = \frac1T \sum_t g_j(f_t)`.

Training draws as many voxels of every class. To learn the shares that classes have in volumes all
the same, the cross entropy of class c is weighed by

.. math:: w_c = b_c \left(\frac{\text{share of the voxels}}{\text{share of the drawn}}\right)^\pi,

so that π = 1 is the loss over all voxels, in expectation, and π = 0 takes classes for equally
likely.

References:
    Baranchuk et al. (2022), arXiv:2112.03126 (LEDM); Rosnati et al. (2023), Robust semi-supervised
    segmentation with timestep ensembling diffusion models, arXiv:2311.07421 (TEDM)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.features.denoiser import feature_maps, feature_rows
from volumediff.features.grids import FeatureMap
from volumediff.features.heads import HeadEnsemble
from volumediff.features.points import drawn_voxels, voxel_points
from volumediff.features.taps import tap_channels, tap_names
from volumediff.model import Model
from volumediff.randomness import generator
from volumediff.recipes._base import Recipe

__all__ = ["Probe", "probe_missing", "ridge_recall"]

Rows = Float[Tensor, "n t f"]
BLOCK = 1024  # rows that heads see at once, always: products of other sizes round differently
UNIT_MM = (1.0, 1.0, 1.0)  # codes are read voxel by voxel
RIDGE = 1e-3  # of the grid search, relative to the mean square of a feature, which is 1
TINY = 1e-6


class Probe(nn.Module):
    """Heads on the features of a frozen diffusion model.

    Buffers, which belong to the state: `mean` and `scale` of every feature, 1 or 0 in `used` for
    features that are read or not, and the `weights` w of the classes.

    Arguments:
        model: a diffusion model of whole volumes; its weights never change here
        recipe: says labels and their coding
        levels: of its network, see `tap_names`
        times: at which it is asked, in (0, 1]
        hidden: units of the hidden layers; none for linear probes
        members: heads
        shared: whether a head sees one time, and the same head all of them
        points: voxels of each class that a step sees where volumes are not pooled
        batch: voxels that each head sees per sample where they are
    """

    diffuses = False

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        *,
        levels: Sequence[str],
        times: Sequence[float],
        hidden: Sequence[int] = (128, 32),
        members: int = 10,
        shared: bool = False,
        points: int = 64,
        batch: int = 256,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.recipe = recipe
        self.levels = tap_names(model.network, levels)
        self.times = tuple(times)
        self.shared, self.points, self.batch = shared, points, batch
        self.channels = tap_channels(model.network, self.levels)
        t, f = len(self.times), sum(self.channels)
        self.heads = HeadEnsemble(members, f if shared else t * f, self.classes, hidden)
        self.register_buffer("mean", torch.zeros(t, f))
        self.register_buffer("scale", torch.ones(t, f))
        self.register_buffer("used", torch.ones(t, f))
        self.register_buffer("weights", torch.ones(self.classes))
        self.reads = [list(self.levels) for _ in self.times]
        self.register_load_state_dict_post_hook(lambda module, _: module._reread())

    @property
    def classes(self) -> int:
        """Labels and background."""
        return len(self.recipe.labels) + 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs."""
        return self.model.network

    @property
    def answers(self) -> tuple[float | None, ...]:
        """The time of each answer of a head; None for one that sees all times."""
        return self.times if self.shared else (None,)

    # Training

    def measure(
        self,
        rows: Rows,
        drawn: Int[Tensor, "k"],
        voxels: Int[Tensor, "k"],
        *,
        prior: float,
        background: float,
    ) -> None:
        """Sets what the buffers say from the voxels that training has.

        Arguments:
            rows: their features
            drawn: how many of them are of each class
            voxels: how many voxels of each class the volumes have
            prior: π in [0, 1]
            background: b of the background; that of labels is 1
        """
        flat = rows.flatten(0, 1) if self.shared else rows
        self.mean = flat.mean(0).expand_as(self.mean).clone().to(self.mean)
        self.scale = flat.std(0).clamp(min=TINY).expand_as(self.scale).clone().to(self.scale)
        share, taken = voxels / voxels.sum(), (drawn / drawn.sum()).clamp(min=TINY)
        weights = (share / taken) ** prior
        weights[0] *= background
        self.weights = torch.where(drawn > 0, weights, 0.0).to(self.weights)

    def search(
        self,
        rows: Rows,
        y: Int[Tensor, "n"],
        held: Float[Tensor, "m t f"],
        truth: Int[Tensor, "m"],
    ) -> list[tuple[str, float, float]]:
        """Keeps the level and the time whose linear probe is best on held voxels.

        Returns:
            level, time and mean recall of the classes, best first
        """
        found = []
        for i in range(len(self.times)):
            parts, other = (r[:, i].split(self.channels, dim=1) for r in (rows, held))
            for j in range(len(self.levels)):
                score = ridge_recall(parts[j], y, other[j], truth, classes=self.classes)
                found.append((score, i, j))
        found.sort(key=lambda each: (-each[0], each[1], each[2]))
        _, best, level = found[0]
        self.used.zero_()
        self.used[best].split(self.channels)[level].fill_(1)
        self._reread()
        return [(self.levels[j], self.times[i], score) for score, i, j in found]

    def loss(self, batch: Batch, *, pooled: bool) -> Float[Tensor, "b"]:
        """Cross entropy of each sample, the mean over its voxels and over the heads.

        Arguments:
            batch: coded labels, and as the last image the volume, or features of pooled voxels
            pooled: whether it is the latter
        """
        masks = self.recipe.coding.decode(batch.x, spacing_mm=UNIT_MM)
        rest = 1 - masks.sum(dim=1, keepdim=True)
        classes = torch.cat([rest, masks], dim=1).argmax(dim=1)
        losses = []
        for i, key in enumerate(batch.keys):
            x = batch.images[-1][i : i + 1]
            if pooled:
                rows = x[0].flatten(1).T.view(-1, *self.mean.shape)
                losses.append(self._pooled(rows, classes[i].flatten(), key))
                continue
            index, sound = drawn_voxels(classes[i], self.classes, self.points, key=key)
            d, h, w = x.shape[2:]
            condition = batch.condition.map(lambda c, i=i: c[i : i + 1])
            rows = self.rows(x, condition, voxel_points(index, (d, h, w)))
            y = torch.arange(self.classes, device=x.device)
            y = y.repeat_interleave(len(index) // self.classes)
            losses.append(
                torch.stack([self._entropy(j, rows, y, sound) for j in self._all]).mean()
            )
        return torch.stack(losses)

    @property
    def _all(self) -> range:
        return range(len(self.heads))

    def _pooled(self, rows: Rows, y: Int[Tensor, "n"], key: int) -> Float[Tensor, ""]:
        """On voxels that every head draws for itself; in evaluation on all."""
        found = []
        for j in self._all:
            taken, known = rows, y
            if self.training:
                draw = torch.randint(len(y), (self.batch,), generator=generator(key, "head", j))
                draw = draw.to(y.device)
                taken, known = rows[draw], y[draw]
            found.append(self._entropy(j, taken, known, torch.ones_like(known, dtype=torch.bool)))
        return torch.stack(found).mean()

    def _entropy(
        self, member: int, rows: Rows, y: Int[Tensor, "n"], sound: Bool[Tensor, "n"]
    ) -> Float[Tensor, ""]:
        times = len(self.answers)
        logits = self.heads[member](self._inputs(rows))
        y, sound = y.repeat_interleave(times), sound.repeat_interleave(times)
        w = self.weights[y] * sound
        each = F.cross_entropy(logits, y, reduction="none")
        return (w * each).sum() / w.sum().clamp(min=TINY)

    def _inputs(self, rows: Rows) -> Float[Tensor, "m g"]:
        """What heads see: one row per voxel, or one per voxel and time."""
        scaled = (rows - self.mean) / self.scale * self.used
        return scaled.flatten(0, 1) if self.shared else scaled.flatten(1)

    # Features

    def rows(
        self, x: Float[Tensor, "1 c d h w"], condition: Condition, points: Float[Tensor, "n 3"]
    ) -> Rows:
        """Features of a volume at points, read level by level; those that are not used are 0."""
        made = []
        for i, t in enumerate(self.times):
            levels, parts = self.reads[i], None
            if levels:
                parts = feature_rows(
                    self.model, x, condition, levels=levels, times=(t,), points=points
                )[:, 0]
            made.append(self._beside(i, parts, len(points)))
        return torch.stack(made, dim=1)

    def maps(self, x: Float[Tensor, "1 c d h w"], condition: Condition) -> list[list[FeatureMap]]:
        """The levels that are used, time by time, on their own grids."""
        return [
            feature_maps(self.model, x, condition, levels=levels, t=t) if levels else []
            for levels, t in zip(self.reads, self.times, strict=True)
        ]

    def answer(
        self, maps: Sequence[Sequence[FeatureMap]], points: Float[Tensor, "n 3"]
    ) -> Float[Tensor, "n m a k"]:
        """What every head says about a multiple of 1024 points, in half precision.

        Probabilities of the classes, the background first, one answer per time of a shared head.
        """
        made = []
        for i, levels in enumerate(maps):
            parts = torch.cat([each.at(points) for each in levels], dim=1) if levels else None
            made.append(self._beside(i, parts, len(points)))
        inputs = [self._inputs(block) for block in torch.stack(made, dim=1).split(BLOCK)]
        found = [
            torch.cat([head(block).softmax(dim=1).half() for block in inputs])
            for head in self.heads
        ]
        size = (len(points), len(self.answers), self.classes)
        return torch.stack([p.view(size) for p in found], dim=1)

    @torch.no_grad()
    def probabilities(
        self, x: Float[Tensor, "1 c d h w"], condition: Condition, *, chunk: int = 16 * BLOCK
    ) -> Float[Tensor, "m a k d h w"]:
        """What every head says about every voxel of a volume, see `answer`.

        Levels are held on their own grids, in the precision of the network; features at voxels
        are those of a chunk.

        Arguments:
            x: the volume
            condition: what the model is conditioned on
            chunk: voxels whose features are at hand at once, a multiple of 1024; changes memory
                and speed, never the result
        """
        if chunk < 1 or chunk % BLOCK:
            raise ValueError(f"chunk: expected a multiple of {BLOCK} voxels, got {chunk}.")
        d, h, w = x.shape[2:]
        maps, count = self.maps(x, condition), d * h * w
        size = (len(self.heads), len(self.answers), self.classes)
        found = torch.empty((*size, count), dtype=torch.float16, device=x.device)
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            # The last block is filled up with its last voxel.
            padded = start + -(-(stop - start) // BLOCK) * BLOCK
            index = torch.arange(start, padded, device=x.device).clamp(max=stop - 1)
            said = self.answer(maps, voxel_points(index, (d, h, w)))
            found[..., start:stop] = said[: stop - start].movedim(0, -1)
        return found.view(*size, d, h, w)

    def _reread(self, *unused: object) -> None:
        """Levels of which something is used, by time; not asked of tensors on the way."""
        self.reads = [
            [
                n
                for n, part in zip(self.levels, row.split(self.channels), strict=True)
                if part.any()
            ]
            for row in self.used.cpu()
        ]

    def _beside(self, i: int, parts: Tensor | None, n: int) -> Float[Tensor, "n f"]:
        """Features of all levels, zeros where nothing was read."""
        if parts is not None and len(self.reads[i]) == len(self.levels):
            return parts
        every = torch.zeros((n, self.used.shape[1]), device=self.used.device)
        first = 0
        for name, part in zip(self.levels, every.split(self.channels, dim=1), strict=True):
            if parts is not None and name in self.reads[i]:
                part.copy_(parts[:, first : first + part.shape[1]])
                first += part.shape[1]
        return every


def ridge_recall(
    rows: Float[Tensor, "n f"],
    y: Int[Tensor, "n"],
    held: Float[Tensor, "m f"],
    truth: Int[Tensor, "m"],
    *,
    classes: int,
) -> float:
    r"""Mean recall, over the classes that there are, of the linear probe in closed form,

    .. math:: W = (X^T X + \lambda n I)^{-1} X^T Y, \qquad \hat y = \arg\max_k (x^T W)_k,

    with standardised features, a constant beside them, and indicators Y of the classes, each class
    with the same weight.

    Arguments:
        rows, y: features and classes to fit
        held, truth: features and classes to predict
        classes: number of classes
    """
    mean, scale = rows.double().mean(0), rows.double().std(0).clamp(min=TINY)
    x, other = (F.pad((r.double() - mean) / scale, (0, 1), value=1.0) for r in (rows, held))
    weight = 1 / torch.bincount(y, minlength=classes).clamp(min=1).double()
    weighted = x * weight[y][:, None]
    gram = weighted.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(gram, weighted.T @ F.one_hot(y, classes).double())
    right = (other @ solution).argmax(1) == truth
    each = [right[truth == k].double().mean() for k in range(classes) if bool((truth == k).any())]
    return float(torch.stack(each).mean())


def probe_missing(model: object) -> str | None:
    """Why a model has no heads to be asked; None where it has."""
    if isinstance(model, Probe):
        return None
    return "expected a probe, heads on the features of a diffusion run; train with task=probe."
