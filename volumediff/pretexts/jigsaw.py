"""Jigsaw: in which of several orders the pieces of a volume were laid out.

The volume is cut into 2 x 2 x 2 pieces with keyed gaps between them, so that their borders do not
give their places away. Each piece goes through the encoder alone, and a perceptron tells the order
from the features of all.

References:
    Noroozi, Favaro (2016), arXiv:1603.09246; Taleb et al. (2020), 3D Self-Supervised Methods for
    Medical Imaging, arXiv:2006.03829, section 3.2; Zhuang et al. (2019), Rubik's Cube
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.pretexts._base import Pretext, VolumeEncoder
from volumediff.pretexts._projection import Projection
from volumediff.randomness import generator, uniform

__all__ = ["PIECES", "Jigsaw", "orders"]

PIECES = 8
CANDIDATES = 500  # among which the next order is chosen


@lru_cache(maxsize=4)
def orders(count: int) -> tuple[tuple[int, ...], ...]:
    """Orders of eight pieces that differ from each other in as many places as can be found.

    The first leaves all in place; then, of keyed candidates, always the one that is farthest from
    all that are chosen already.
    """
    source = generator("jigsaw", "orders")
    drawn = [tuple(torch.randperm(PIECES, generator=source).tolist()) for _ in range(CANDIDATES)]
    candidates = list(dict.fromkeys(drawn))
    chosen = [tuple(range(PIECES))]

    def distance(order: tuple[int, ...]) -> int:
        return min(sum(a != b for a, b in zip(order, c, strict=True)) for c in chosen)

    while len(chosen) < count:
        left = [order for order in candidates if order not in chosen]
        chosen.append(max(left, key=distance))
    return tuple(chosen)


class Jigsaw(Pretext):
    """The order of eight pieces, one of `orders` drawn for every sample.

    Arguments:
        features: channels of the encoder's deepest features
        orders: number of orders, 2 to 400
        gap: largest share of the length of a piece that is cut off along each axis
        hidden: channels of the perceptron
    """

    def __init__(
        self, features: int, *, orders: int = 100, gap: float = 0.2, hidden: int = 256
    ) -> None:
        super().__init__()
        if not 2 <= orders <= 400 or not 0 <= gap < 1:
            raise ValueError(
                f"expected 2 to 400 orders and a gap in [0, 1), got {orders} and {gap:g}"
            )
        self.count, self.gap = orders, gap
        self.head = Projection(PIECES * features, hidden, orders)

    def pieces(self, x: Float[Tensor, "c d h w"], key: int) -> Float[Tensor, "8 c e i j"]:
        """The pieces in their own order, each with a gap at a keyed side."""
        half = [max(1, n // 2) for n in x.shape[1:]]
        size = [max(1, round((1 - self.gap) * n)) for n in half]
        found = []
        for number, corner in enumerate(product((0, 1), repeat=3)):
            place = [slice(None)]
            for axis, (side, n, m) in enumerate(zip(corner, half, size, strict=True)):
                shift = int(uniform(key, "gap", number, axis) * (n - m + 1))
                first = min(side * n + shift, x.shape[axis + 1] - m)
                place.append(slice(first, first + m))
            found.append(x[tuple(place)])
        return torch.stack(found)

    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        """Cross entropy of the order."""
        numbers = [int(uniform(key, "order") * self.count) for key in keys]
        laid = [
            self.pieces(volume, key)[list(orders(self.count)[number])]
            for volume, key, number in zip(x, keys, numbers, strict=True)
        ]
        features = encoder(torch.cat(laid)).view(len(x), -1)
        truth = torch.tensor(numbers, device=x.device)
        return F.cross_entropy(self.head(features), truth, reduction="none")
