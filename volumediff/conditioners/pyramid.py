r"""An encoder of the image whose features are added on every level, :math:`h_l + f_l(x)`."""

from jaxtyping import Float
from torch import Tensor

from volumediff.conditioners._base import Conditioner, Host, Place, Prepared
from volumediff.conditioners._image_encoder import ImageEncoder

__all__ = ["PyramidConditioner"]


class PyramidConditioner(Conditioner):
    """An image encoder like the network's own, added after every level of it.

    References:
        Xing et al. (2023), Diff-UNet, arXiv:2303.10326, which concatenates the image as well; see
        `chain`
    """

    def __init__(self, *, host: Host) -> None:
        super().__init__()
        body = host.layers
        self.encoder = ImageEncoder(body, host.image_channels)
        self.places = frozenset(range(len(body.widths)))

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        return self.encoder(image)

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        return h + carried[0], carried[1:]
