"""Several conditioners in one network, one after the other."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import Conditioner, Host, Place, Prepared
from volumediff.config import build

__all__ = ["ChainConditioner"]


class ChainConditioner(Conditioner):
    """What is carried is a tuple with one entry per part.

    Arguments:
        parts: conditioners, in the order in which they act where they act at the same place
    """

    def __init__(self, *, host: Host, parts: tuple[str | dict[str, Any], ...]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one conditioner, got none.")
        self.parts = nn.ModuleList(
            build("conditioner", part, where=f"parts[{i}]", host=host)
            for i, part in enumerate(parts)
        )
        self.input_channels = sum(part.input_channels for part in self.parts)
        self.places = frozenset().union(*(part.places for part in self.parts))
        heads = sum(part.anchors for part in self.parts)
        if heads > 1:
            raise ValueError(
                f"parts: expected at most one that predicts the clean state, got {heads}; use "
                "head: false for the others."
            )
        self.anchors = heads == 1

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        return tuple(part.prepare(image) for part in self.parts)

    def inputs(self, prepared: Prepared) -> tuple[Float[Tensor, "b _ d h w"], ...]:
        given = zip(self.parts, prepared, strict=True)
        return tuple(volume for part, own in given for volume in part.inputs(own))

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        after = []
        for part, own in zip(self.parts, carried, strict=True):
            if place in part.places:
                h, own = part(h, place, own, e)
            after.append(own)
        return h, tuple(after)

    def anchor(self, prepared: Prepared) -> Float[Tensor, "b k d h w"] | None:
        found = (p.anchor(own) for p, own in zip(self.parts, prepared, strict=True))
        return next((x0 for x0 in found if x0 is not None), None)
