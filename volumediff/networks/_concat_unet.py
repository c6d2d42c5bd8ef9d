"""What networks share whose body is a `ConcatHourglass`."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from volumediff.networks._base import Anatomy, Network
from volumediff.networks._concat_hourglass import ConcatHourglass
from volumediff.networks._levels import Tap, level_taps

__all__ = ["ConcatUNet", "per_level"]


class ConcatUNet(Network):
    """A network that is a stem, a `ConcatHourglass` and a head, under the name `hourglass`."""

    hourglass: ConcatHourglass

    @property
    def stride(self) -> tuple[int, int, int]:
        return self.hourglass.stride

    @property
    def taps(self) -> Mapping[str, Tap]:
        body = self.hourglass
        return level_taps(body.encoder, body.middle, body.decoder)

    @property
    def anatomy(self) -> Anatomy:
        body = self.hourglass
        descent = (self.embedding, *body.descent)
        head = body.act, body.head
        return Anatomy(body.stem, descent, head, body.widths[-1], body.factor)

    def deepen(self, count: int) -> None:
        self.hourglass.deepen(count)

    def deepest(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        return self.hourglass.descend(x, e)[0]

    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d h w"]:
        return self.hourglass(x, e)


def per_level(name: str, value: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """A number for each level.

    Raises:
        ValueError: neither one number nor one for each level
    """
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise ValueError(
            f"{name} {values}: expected one number, or one for each of {levels} levels"
        )
    return values
