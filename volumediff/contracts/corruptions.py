"""The contracts of corruptions and regions: keyed, inside the foreground, and never nothing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from volumediff.contracts.requirements import built, refused, require, untouched
from volumediff.data.corruptions import Corruption
from volumediff.data.regions import Region
from volumediff.randomness import normal

__all__ = ["check_corruption", "check_region"]

SPACING = (2.0, 2.0, 2.0)
KEYS = range(12)
Parts = tuple[Tensor, ...]
VISIBLE = 0.02  # of intensities in [-1, 1]


def _scene(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """A volume, its foreground, which is not convex, and a donor; none comes near -1 and 1."""
    x, donor = (normal(shape, "contracts", name).tanh() * 0.8 for name in ("x", "donor"))
    foreground = torch.zeros((1, *shape[1:]), dtype=torch.bool)
    edge = [slice(1, -1) if n > 2 else slice(None) for n in shape[1:]]
    foreground[:, edge[0], edge[1], edge[2]] = True
    foreground[:, shape[1] // 2, : shape[2] // 2] = False
    return x, foreground, donor


def check_corruption(cls: type, **arguments: Any) -> None:
    """Changes are inside, visible, keyed, and marked where they are."""
    corruption: Corruption = built(cls, arguments)
    for shape in ((1, 14, 16, 12), (2, 1, 16, 12), (1, 2, 9, 9)):
        x, foreground, donor = _scene(shape)

        def run(
            key: int, parts: tuple[Tensor, ...] = (x, foreground, donor)
        ) -> tuple[Tensor, ...]:
            x, inside, other = parts
            return corruption(x, inside, donor=lambda k: other, spacing_mm=SPACING, key=key)

        _changes(run, x, foreground, donor, distracts=corruption.distracts)
    changed, amount = run(0, (x.double(), foreground, donor.double()))
    require(changed.dtype == amount.dtype == torch.float64, "The dtype of the volume is not kept.")


def _changes(
    run: Callable[..., Parts], x: Tensor, inside: Tensor, y: Tensor, *, distracts: bool
) -> None:
    seen, results = 0, set()
    for key in KEYS:
        changed, amount = untouched({"the volume": x, "the donor": y}, lambda k=key: run(k))
        require(changed.shape == x.shape, f"The changed volume has shape {tuple(changed.shape)}.")
        require(amount.shape == inside.shape, f"The amount has shape {tuple(amount.shape)}.")
        different = (changed != x).any(0, keepdim=True)
        require(not (different & ~inside).any(), "The volume is changed outside the foreground.")
        unmarked = bool((different & (amount == 0)).any())
        require(distracts or not unmarked, "Voxels are changed where the amount is 0.")
        require(not ((amount > 0) & ~inside).any(), "An amount is above 0 outside of it.")
        require(0 <= float(amount.min()) and float(amount.max()) <= 1, "Amounts leave [0, 1].")
        require(changed.abs().max() <= 1, "Intensities leave [-1, 1].")
        again = run(key)
        require(
            torch.equal(again[0], changed) and torch.equal(again[1], amount),
            "The same key gives another change.",
        )
        seen += bool(((changed - x).abs() > VISIBLE).any())
        results.add(changed.numpy().tobytes())
    require(seen >= 10, f"Only {seen} of {len(KEYS)} keys change anything that can be seen.")
    require(len(results) == len(KEYS), "Different keys give the same change.")


def check_region(cls: type, **arguments: Any) -> None:
    """Regions are keyed, never empty, and refuse a volume without foreground."""
    small = {"side_mm": 8.0, "size_mm": (3.0, 8.0), "cell_mm": 6.0}
    small |= {"thickness_mm": 6.0, "gap_mm": 4.0}
    region: Region = built(cls, arguments, small)
    _, inside, _ = _scene((1, 12, 14, 10))

    def drawn(key: int, foreground: Tensor = inside) -> Tensor:
        return region(foreground, spacing_mm=SPACING, key=key)

    made = [untouched({"the foreground": inside}, lambda k=k: drawn(k)) for k in KEYS]
    for key, m in zip(KEYS, made, strict=True):
        require(m.dtype == torch.bool and m.shape == inside.shape, "A region is no mask.")
        require(m.any(), "A region is empty.")
        require((m & inside).any(), "A region holds nothing of the foreground.")
        require(torch.equal(drawn(key), m), "The same key gives another region.")
    require(len({m.numpy().tobytes() for m in made}) > 3, "All keys give the same region.")
    text = "A volume without foreground must be refused."
    refused(lambda: drawn(0, torch.zeros_like(inside)), text, ValueError)
