"""The noise of training samples, drawn where they are loaded.

It depends on a sample's key alone, so that a worker draws what the loss would, beside the device
and not before it.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff import tiling
from volumediff.model import LOSS, Model
from volumediff.noise import Noise
from volumediff.shapes import Shape

__all__ = ["LossNoise"]


@dataclass(frozen=True)
class LossNoise:
    """Fields for the loss of a model; see `volumediff.model.state_noise`.

    Arguments:
        field: the kind of noise
        stride: of the state space, to whose multiples a volume is padded
    """

    field: Noise
    stride: Shape

    @classmethod
    def of(cls, model: Model) -> "LossNoise | None":
        """That of a model; None where the field is made on the device."""
        field = model.noise_field
        return cls(field, model.space.stride) if field.drawn_on_cpu else None

    def draw(self, x: Float[Tensor, "c d h w"], key: int) -> Float[Tensor, "c d2 h2 w2"]:
        """The field of a sample."""
        c, d, h, w = x.shape
        return self.field((c, *tiling.padded_shape((d, h, w), self.stride)), key, LOSS)
