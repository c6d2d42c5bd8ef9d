"""The contract of segmentation methods: known labels are found, and nothing else decides.

The usual model knows p(m | x) in closed form, label by label. A method for another kind of model
is checked with `model=` of that kind, which must label the voxels above zero.
"""

from typing import Any

import torch
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.contracts.requirements import built, require, untouched
from volumediff.contracts.scenes import INSIDE, SHAPE, SPACING
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.supervised_segmentation import SupervisedSegmentation

__all__ = ["VALUE", "check_segmenter", "model_of_halves", "network_of_halves"]

SCHEDULE = Cosine(zero_terminal_snr=True)
VALUE = 4  # a label that is no index


class SignOfImage(Network):
    r"""Independent voxels m = \pm 1 with P(m = 1) = (1 + x) / 2, as a denoiser.

    .. math:: E[m | z_t] = \tanh\left(\alpha z_t / \sigma^2 + \operatorname{artanh} x\right)
    """

    def __init__(self) -> None:
        super().__init__(1, 1, image_channels=1)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels are apart."""
        return 1, 1, 1

    def body(self, x: Tensor, e: Tensor) -> Tensor:
        """Not asked: `forward` is overridden by the closed form."""
        raise NotImplementedError

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The conditional mean of the clean label map."""
        assert condition is not None
        assert condition.image is not None
        alpha, sigma = (per_sample(level, z_t) for level in SCHEDULE(t))
        odds = torch.atanh(condition.image.clamp(-1 + 1e-6, 1 - 1e-6))
        return torch.tanh(alpha * z_t / sigma**2 + odds)


class SignInOnePass(Network):
    """Logits of background and label, apart by the voxel's value."""

    def __init__(self) -> None:
        super().__init__(1, 2)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels are apart."""
        return 1, 1, 1

    def body(self, x: Tensor, e: Tensor) -> Tensor:
        """-x and x, scaled to leave no doubt."""
        return torch.cat([-10 * x, 10 * x], dim=1)


def network_of_halves() -> SupervisedSegmentation:
    """A network that gives the label `VALUE` in one pass where the volume is above zero."""
    recipe = LabelDiffusion(labels=(VALUE,))
    return SupervisedSegmentation(Voxel(), SignInOnePass(), recipe).eval()


def model_of_halves() -> Model:
    """A model of label maps in closed form: the label `VALUE` where the volume is above zero."""
    kernel, recipe = Gaussian(SCHEDULE, prediction="x0"), LabelDiffusion(labels=(VALUE,))
    return Model(Voxel(), kernel, SignOfImage(), recipe=recipe).eval()


def check_segmenter(cls: type, *, model: nn.Module | None = None, **arguments: Any) -> None:
    """Labels of a volume of two halves, by a model that is sure of them."""
    segmenter = built(cls, arguments, {"samples": 3, "sampler": {"name": "ddim", "steps": 8}})
    if model is None:
        model = model_of_halves()
    segmenter.check(model)
    x = torch.full((1, 1, *SHAPE), -1.0)
    x[..., SHAPE[2] // 2 :] = 1.0

    @torch.no_grad()
    def segmented(x: Tensor, key: int) -> Any:
        return segmenter.segment(model, x, foreground=INSIDE, spacing_mm=SPACING, key=key)

    torch.manual_seed(0)
    found = untouched({"the volume": x}, lambda: segmented(x, 1))
    p, count = found.probabilities, len(found.values)
    require(
        tuple(p.shape) == (1, count, *SHAPE), f"The probabilities have shape {tuple(p.shape)}."
    )
    require(p.isfinite().all(), "The probabilities are not finite.")
    require(float(p.min()) >= 0 and float(p.max()) <= 1, "A probability is outside of [0, 1].")
    require(0 not in found.values, "The background is listed as a label.")
    known = {0, *found.values}
    require(
        set(found.labels.unique().tolist()) <= known, "A voxel has a label that is not listed."
    )
    marked = found.labels > 0
    require(torch.equal(marked & INSIDE, (x > 0) & INSIDE), "Labels that are certain are missed.")
    torch.manual_seed(1)
    again = segmented(x, 1)
    require(torch.equal(again.probabilities, p), "The same volume and key give other labels.")
    flipped = segmented(-x, 1).labels > 0
    require(torch.equal(flipped & INSIDE, ~marked & INSIDE), "The image does not decide.")
    if found.variance is not None:
        v = found.variance
        require(v.shape == p.shape and v.isfinite().all(), "The variance is not one per label.")
        require(float(v.min()) >= 0, "The variance is negative.")
