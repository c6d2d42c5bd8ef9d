"""The contracts of the parts of segmentation methods: predictors, ensembles, fusions, posts."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.contracts.requirements import built, equal, require
from volumediff.contracts.scenes import INSIDE, SHAPE, SPACING
from volumediff.contracts.segmenters import VALUE, model_of_halves, network_of_halves
from volumediff.randomness import normal
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.label_ensembles import LabelEnsemble
from volumediff.segmentation.label_fusions import LabelFusion, every_class
from volumediff.segmentation.label_posts import LabelPost
from volumediff.segmentation.predictors._base import Image, Predictor

__all__ = ["check_label_ensemble", "check_label_fusion", "check_label_post", "check_predictor"]


def check_predictor(cls: type, *, model: nn.Module | None = None, **arguments: Any) -> None:
    """Certain labels are found, and a member's answer depends on that member alone.

    The usual models sample label maps, or give them in one pass. A predictor for another kind of
    model is checked with `model=` of that kind, which must label the voxels above zero.
    """
    predictor: Predictor = built(cls, arguments)
    model = _suitable(predictor) if model is None else model
    predictor.check(model)
    values = predictor.labels(model)
    require(VALUE in values and 0 not in values, f"The labels of the model are {values}.")
    x = torch.full((1, 1, *SHAPE), -1.0)
    x[..., SHAPE[2] // 2 :] = 1.0
    image = Image(x, INSIDE, SPACING, Condition())
    draws = [Draw(0, 11), Draw(1, 12), Draw(2, 13)]
    prepared = predictor.prepare(model, image)
    torch.manual_seed(0)
    y = predictor.memberships(model, prepared, draws)
    require(
        y.shape == (3, len(values), *SHAPE) and y.isfinite().all(),
        f"The memberships have shape {tuple(y.shape)}, or are not finite.",
    )
    require(
        float(y.min()) >= 0 and float(y.sum(dim=1).max()) <= 1 + 1e-5,
        "Memberships are negative, or sum to more than one.",
    )
    found = y[:, values.index(VALUE)] > 0.5
    truth = (x[0] > 0).expand_as(found)
    wrong = (found != truth) & INSIDE[0]
    require(not bool(wrong.any()), "Labels that are certain are missed.")
    torch.manual_seed(1)
    alone = predictor.memberships(model, prepared, [replace(draws[2], number=7)])
    equal(alone[0], y[2], "An answer depends on the other members.", atol=1e-6)


def _suitable(predictor: Predictor) -> nn.Module:
    """The first of the usual models that a predictor takes; the very first where it takes none."""
    usual = (model_of_halves(), network_of_halves())
    for model in usual:
        try:
            predictor.check(model)
        except ValueError:
            continue
        return model
    return usual[0]


def check_label_ensemble(cls: type, **arguments: Any) -> None:
    """Every change is a member of its own, the same for the same draw."""
    factor: LabelEnsemble = built(cls, arguments)
    draw = Draw(3, 17)
    changes = list(factor.changes(draw))
    require(len(changes) >= 1, "There is no change.")
    bare = [replace(change, number=0) for change in changes]
    require(len(set(bare)) == len(bare), "Two changes are the same.")
    require(list(factor.changes(draw)) == changes, "The same draw has other changes.")
    require(all(change.weight > 0 for change in changes), "A weight is not positive.")
    for change in changes:
        axes = change.flips
        require(set(axes) <= {0, 1, 2} and len(set(axes)) == len(axes), f"Flips are {axes}.")
    other = list(factor.changes(Draw(0, 18)))
    require(len(other) == len(changes), "The number of changes depends on the key.")


def _members(certain: bool) -> Tensor:
    """Five members of two labels on a small grid; the first column is undisputed."""
    y = normal((5, 3, 4, 4, 4), "contracts", "label fusion").mul(3 * (not certain)).softmax(dim=1)
    truth = torch.arange(64).view(4, 4, 4) % 3
    sharp = torch.stack([truth == i for i in range(3)]).float().expand(5, -1, -1, -1, -1)
    y = sharp if certain else 0.4 * y + 0.6 * sharp
    return y[:, 1:].contiguous()


def check_label_fusion(cls: type, **arguments: Any) -> None:
    """Probabilities; members that agree are believed, and their order does not matter."""
    fusion: LabelFusion = built(cls, arguments)

    def fused(y: Tensor) -> Tensor:
        fusing = fusion.start()
        for each in y:
            if fusion.steps:
                fusing.estimate(each, 0, 2)
                fusing.estimate(each, 1, 2)
            fusing.update(each, 1.0)
        return fusing.result()

    y = _members(certain=False)
    kept = y.clone()
    p = fused(y)
    require(torch.equal(kept, y), "The fusion changes the members.")
    require(p.shape == y.shape[1:] and p.isfinite().all(), f"Probabilities: {tuple(p.shape)}.")
    require(
        float(p.min()) >= 0 and float(p.sum(dim=0).max()) <= 1 + 1e-5,
        "Probabilities are negative, or sum to more than one.",
    )
    equal(fused(y.flip(0)), p, "The order of the members matters.", atol=1e-5)
    certain = _members(certain=True)
    equal(fused(certain), certain[0], "Members that agree are not believed.", atol=1e-4)
    empty = torch.zeros_like(y)
    equal(fused(empty), empty[0], "Members that find nothing give something.", atol=1e-4)
    best = every_class(p).argmax(dim=0)
    truth = every_class(certain[0]).argmax(dim=0)
    require(float((best == truth).float().mean()) > 0.9, "What most members say is not found.")


def check_label_post(cls: type, **arguments: Any) -> None:
    """Labels in, labels out: no new values, and doing it twice changes nothing."""
    post: LabelPost = built(cls, arguments)
    labels = torch.zeros((1, 1, 10, 10, 10), dtype=torch.uint8)
    labels[..., 1:6, 1:6, 1:6] = 3
    labels[..., 3, 3, 3] = 0  # a hole
    labels[..., 8, 8, 8] = 3  # a speck
    labels[..., 7:9, 1:4, 1:4] = 7
    p = torch.cat([(labels == 3).float() * 0.9, (labels == 7).float() * 0.4], dim=1)

    if post.needs_fit:
        unfitted = post
        post = unfitted.fit([(p, labels)], (3, 7))
        require(not post.needs_fit, "It is not fitted after its fit.")
        again = unfitted.with_fitted(post.fitted)
        require(again == post, "What it has fitted does not make the same step again.")

    def posted(labels: Tensor) -> Tensor:
        return post(labels, values=(3, 7), probabilities=p, spacing_mm=SPACING)

    kept = labels.clone()
    found = posted(labels)
    require(torch.equal(kept, labels), "The label map that came in is changed.")
    require(found.shape == labels.shape and found.dtype == torch.uint8, "It is no label map.")
    require(set(found.unique().tolist()) <= {0, 3, 7}, "A value is none of the labels.")
    require(torch.equal(posted(found), found), "Doing it again changes something.")
    nothing = torch.zeros_like(labels)
    p = torch.zeros_like(p)
    require(torch.equal(posted(nothing), nothing), "Something is made of nothing.")
