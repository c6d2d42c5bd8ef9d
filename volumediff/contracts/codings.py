"""The contract of codings: masks come back as they were, and what is between them stays sane."""

from typing import Any

import torch

from volumediff.codings._base import Coding
from volumediff.contracts.requirements import built, equal, require
from volumediff.randomness import normal

__all__ = ["check_coding"]

SPACING = (1.0, 1.5, 2.0)


def check_coding(cls: type, **arguments: Any) -> None:
    """One label and three, present and absent, clean and disturbed."""
    coding: Coding = built(cls, arguments)
    label = torch.zeros((9, 8, 7), dtype=torch.uint8)
    label[2:6, 1:5, 1:4], label[5:8, 5:7, 2:6] = 1, 2
    for count in (1, 3):
        masks = torch.stack([label == i for i in range(1, count + 1)])  # the third is nowhere
        x = coding.encode(masks, spacing_mm=SPACING)
        require(
            x.shape == (coding.channels(count), *label.shape) and x.dtype == torch.float32,
            f"The code of {count} masks has shape {tuple(x.shape)} and dtype {x.dtype}.",
        )
        require(float(x.abs().max()) <= 1, "A code is outside of [-1, 1].")
        again = coding.decode(x[None], spacing_mm=SPACING)
        equal(again, masks[None].float(), "Masks do not come back from their code.", atol=1e-6)
        unions = [masks[[i - 1 for i in union]].any(dim=0) for union in coding.unions(count)]
        same = torch.equal(coding.shares(x[None])[0] > 0.5, torch.stack(unions))
        require(same, "The shares of clean codes are not the masks.")
        classes = coding.classes(count)
        if classes is not None:
            require(set(x.unique().tolist()) == {-1.0, 1.0}, "A discrete code is not -1 or 1.")
            one = not coding.grouped or bool(((x > 0).sum(0) == 1).all())
            require(one, "A voxel has no class of its own, or several.")
        noisy = torch.stack([x, x + normal(tuple(x.shape), "contracts", "coding", count)])
        y = coding.decode(noisy, spacing_mm=SPACING)
        require(y.shape == (2, count, *label.shape), f"Memberships have shape {tuple(y.shape)}.")
        require(y.isfinite().all(), "A membership is not finite.")
        require(
            float(y.min()) >= 0 and float(y.sum(dim=1).max()) <= 1 + 1e-6,
            "Memberships are negative, or sum to more than one.",
        )
        equal(y[:1], again, "The membership of a volume depends on its batch.")
