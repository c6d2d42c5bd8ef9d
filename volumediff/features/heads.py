r"""Heads: small perceptrons that read the class of a voxel from its features,

.. math:: h \leftarrow \operatorname{BN}(\operatorname{ReLU}(W h + b)), \qquad
          p = \operatorname{softmax}(V h + c),

layer by layer; without hidden layers a linear probe. An ensemble has weights of its own each.

References:
    Baranchuk et al. (2022), Label-Efficient Semantic Segmentation with Diffusion Models,
    arXiv:2112.03126: ten perceptrons of 128 and 32 units
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Head", "HeadEnsemble"]


class Head(nn.Module):
    """One perceptron; its batch normalisation sees the rows that it is given at once.

    Arguments:
        inputs: features
        classes: with the background
        hidden: units of the hidden layers; none for a linear probe
    """

    def __init__(self, inputs: int, classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([inputs, *hidden]):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after)]
        self.layers = nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], classes))

    def forward(self, rows: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """Logits of the classes, the background first."""
        return self.layers(rows)


class HeadEnsemble(nn.ModuleList):
    """Perceptrons of one kind, each with weights of its own.

    Arguments:
        members: number of perceptrons
        inputs, classes, hidden: see `Head`
    """

    def __init__(self, members: int, inputs: int, classes: int, hidden: Sequence[int]) -> None:
        if min(members, inputs, *hidden, 1) < 1 or classes < 2:
            raise ValueError(
                "expected at least one of members, features and hidden units, and two classes, "
                f"got {members}, {inputs}, {list(hidden)} and {classes}."
            )
        super().__init__(Head(inputs, classes, hidden) for _ in range(members))
