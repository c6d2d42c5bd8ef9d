r"""Cross entropy of the labels with weights of the classes,

.. math:: -\frac{1}{n} \sum_{\text{voxels}} w_{c} \log p_c, \qquad c \text{ the true class}.

Discrete kernels give log p as it is. Of a clean state in real numbers p is the membership that it
stands for, and every channel is asked for both answers: least at the mean of all masks, as the
squared error is. There -log p goes on as its tangent below a margin, and is flat above 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, mean_over_voxels, needs_labels
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["CrossEntropy", "binary_cross_entropy"]

MARGIN = 0.02  # below it, of the loss of one voxel the slope no longer grows


@dataclass(frozen=True)
class CrossEntropy(LossTerm):
    """Cross entropy of the predicted clean masks.

    Arguments:
        classes: weights of background and labels, in this order; empty for equal ones. Weights
            other than these give another minimum than the true posterior: they trade calibration
            for rare labels
    """

    # Of the kernels that the loss `anchor` takes; classes have probabilities of their own.
    clean: ClassVar[bool] = True
    leaves_out: ClassVar[bool] = True
    classes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not w >= 0 for w in self.classes) or (self.classes and not any(self.classes)):
            raise ValueError(
                f"classes: expected weights of at least 0, one of them above, got {self.classes}."
            )

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        labels = recipe.label_count
        if self.classes and labels is not None and len(self.classes) != labels + 1:
            return (
                f"classes: expected {labels + 1} weights, of the background and of {labels} "
                f"labels, got {len(self.classes)}."
            )
        return needs_labels(recipe)

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        if context.kernel.classes is not None:
            return self._of_classes(context)
        p, m = context.shares, context.truth
        errors = binary_cross_entropy(p, m)
        if self.classes:
            errors = errors * self._weights(m)
        return context.mean(errors)

    def _of_classes(self, context: LossContext) -> Float[Tensor, "b"]:
        kernel = context.kernel
        log_p = kernel.log_probabilities(context.output.float(), context.z_t)
        truth = kernel.indicators(context.z_0).to(log_p)
        errors = -(truth * log_p).sum(2)  # b n d2 h2 w2
        if self.classes:
            w = log_p.new_tensor(self.classes)
            if not context.recipe.grouped:
                per = torch.stack([w[1:], w[:1].expand(len(w) - 1)])  # of 1 and 0, by variable
                weight = torch.einsum("bnkdhw,kn->bndhw", truth, per)
            else:
                weight = torch.einsum("bnkdhw,k->bndhw", truth, w)
            errors = errors * weight
        return mean_over_voxels(errors)

    def _weights(self, m: Float[Tensor, "b l d h w"]) -> Float[Tensor, "b l d h w"]:
        """That of the label inside of it, that of the background outside."""
        w = m.new_tensor(self.classes)
        return torch.lerp(w[:1].view(1, 1, 1, 1, 1), w[1:].view(1, -1, 1, 1, 1), m)


def binary_cross_entropy(
    p: Float[Tensor, "b l d h w"], m: Float[Tensor, "b l d h w"]
) -> Float[Tensor, "b l d h w"]:
    """-m log p - (1 - m) log(1 - p) of memberships that may leave [0, 1]."""
    return m * _surprise(p) + (1 - m) * _surprise(1 - p)


def _surprise(p: Tensor) -> Tensor:
    """-log p for p in [margin, 1], its tangent below, and 0 above."""
    inside = p.clamp(MARGIN, 1)
    return (MARGIN - p).clamp(min=0) / MARGIN - inside.log()
