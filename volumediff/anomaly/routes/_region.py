"""A region that a route has chosen itself, as a selector for the editing that redraws it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.selectors import Selector

__all__ = ["Made"]


@dataclass(frozen=True, eq=False)
class Made(Selector):
    """A region that a route has made; no configuration can name it.

    Arguments:
        region: 1 inside
    """

    region: Float[Tensor, "1 1 d h w"]

    def __call__(self, context: MethodContext) -> Float[Tensor, "1 1 d h w"]:
        """The region."""
        return self.region
