r"""SimCLR: of several views, those of the same place attract and all others repel each other,

.. math:: \ell = \frac{1}{2m} \sum_i -\log \frac{e^{z_i \cdot z_{j(i)} / \tau}}
          {\sum_{k \ne i} e^{z_i \cdot z_k / \tau}}

over 2 m views, of m places of one volume. The paper contrasts the images of a batch; in 3D a
batch is one or two volumes, and the loss of a sample would depend on its companions. Other places
of the same volume are harder to tell apart, too.

References:
    Chen et al. (2020), SimCLR, arXiv:2002.05709, Equation 1; Chaitanya et al. (2020),
    arXiv:2006.10511, section 3.2, for contrast within a volume
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.pretexts._base import Pretext, VolumeEncoder
from volumediff.pretexts._projection import Projection, unit
from volumediff.pretexts._views import Views

__all__ = ["SimCLR", "contrast"]


def contrast(z: Float[Tensor, "b n k"], *, temperature: float) -> Float[Tensor, "b"]:
    """The loss of every row of unit vectors, of which 2 i and 2 i + 1 belong together.

    Arguments:
        z: 2 m unit vectors per sample
        temperature: τ
    """
    logits = z @ z.transpose(1, 2) / temperature
    n = z.shape[1]
    own = torch.eye(n, dtype=torch.bool, device=z.device)
    logits = logits.masked_fill(own, -torch.inf)
    partner = torch.arange(n, device=z.device) ^ 1
    each = F.cross_entropy(logits.flatten(0, 1), partner.repeat(len(z)), reduction="none")
    return each.view(len(z), n).mean(1)


class SimCLR(Pretext):
    """Contrast of the places of a volume.

    Arguments:
        features: channels of the encoder's deepest features
        places: m, places per volume
        temperature: τ
        width: channels of the vectors that are compared
        share: length of a crop along each axis, as a share of the volume's
    """

    def __init__(
        self,
        features: int,
        *,
        places: int = 4,
        temperature: float = 0.1,
        width: int = 128,
        share: float = 0.5,
    ) -> None:
        super().__init__()
        if places < 2 or not temperature > 0:
            raise ValueError(
                f"expected at least 2 places and a temperature above 0, got {places} and "
                f"{temperature:g}"
            )
        self.places, self.temperature = places, temperature
        self.views = Views(share=share)
        self.head = Projection(features, max(features, width), width)

    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        views = []
        for volume, key in zip(x, keys, strict=True):
            for place in range(self.places):
                start = self.views.start(volume, key, place)
                views += [self.views.view(volume, start, key, place, i) for i in range(2)]
        z = unit(self.head(encoder(torch.stack(views))))
        return contrast(z.view(len(x), 2 * self.places, -1), temperature=self.temperature)
