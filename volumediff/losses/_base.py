r"""Contract of loss terms: one training sample as the model saw it in, one number out,

.. math:: \ell = w_0\, \ell_{\text{kernel}} + \sum_i w_i\, \ell_i.

A term says in `problem` why it makes no sense beside a kernel and a recipe. Terms with networks of
their own declare them in `side`: they are built with the model, trained with its network and
stored with it.
"""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.kernels._base import Kernel, Prediction
from volumediff.networks._base import Network
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["LossContext", "LossTerm", "mean_over_voxels", "needs_labels"]

Volume = Float[Tensor, "b c d h w"]
State = Float[Tensor, "b k d2 h2 w2"]
Level = Float[Tensor, "b"]
FEW = 1e-6  # least share of voxels that a mean is taken of


@dataclass(frozen=True, eq=False)
class LossContext:
    """A batch after the network has answered.

    Arguments:
        space: of the states
        frame: space in which the network computes
        kernel: of the batch
        network: that gave the output
        recipe: that made the targets
        x: what is diffused, in voxels
        images: image conditions in voxels
        distance_mm: distance of every voxel from the surface of each label, where asked for
        condition: of the network
        output: of the network, the part that the kernel reads
        z_0, z_t, t, noise: clean state, noisy state, its time and its noise
        prediction: the output as the kernel reads it
        side: the term's own network, see `LossTerm.side`
        hidden: 1 where the loss does not look; None for nowhere
    """

    space: StateSpace
    frame: StateSpace
    kernel: Kernel
    network: Network
    recipe: Recipe
    x: Volume
    images: tuple[Float[Tensor, "b _ d h w"], ...]
    distance_mm: Float[Tensor, "b _ d h w"] | None
    condition: Condition
    output: Float[Tensor, "b o d2 h2 w2"]
    z_0: State
    z_t: State
    t: Level
    noise: State
    prediction: Prediction
    side: nn.Module | None = None
    hidden: Float[Tensor, "b 1 d h w"] | None = None

    @cached_property
    def predicted(self) -> Volume:
        """The predicted clean state in voxels, on the grid of x."""
        d, h, w = self.x.shape[2:]
        return self.space.decode(self.prediction.x0)[..., :d, :h, :w].float()

    @cached_property
    def shares(self) -> Float[Tensor, "b l d h w"]:
        """Memberships of the labels in the prediction, differentiable and not cut to [0, 1].

        They are 0 where the loss does not look.
        """
        return self._seen(self.recipe.shares(self.predicted))

    @cached_property
    def truth(self) -> Float[Tensor, "b l d h w"]:
        """Memberships of the labels in x; 0 where the loss does not look."""
        return self._seen(self.recipe.shares(self.x.float()))

    def mean(self, errors: Float[Tensor, "b l d h w"]) -> Level:
        """Mean over the voxels at which the loss looks, of errors that are 0 elsewhere."""
        found = mean_over_voxels(errors)
        if self.hidden is None:
            return found
        return found / (1 - self.hidden.flatten(1).mean(1).to(found)).clamp(min=FEW)

    def _seen(self, shares: Float[Tensor, "b l d h w"]) -> Float[Tensor, "b l d h w"]:
        return shares if self.hidden is None else shares * (1 - self.hidden.to(shares))


@dataclass(frozen=True)
class LossTerm(ABC):
    """A term of the loss, per sample.

    Class attributes:
        bounds: whether it trains the variance of a kernel that learns it
        prepared: whether it reads what the network makes of images alone
        clean: whether it reads the predicted clean state, and nothing else of the network
        contains_kernel: whether the kernel's own loss is in it, so that it stands in place of that
        leaves_out: whether it leaves out the voxels that are `hidden`

    Arguments:
        weight: of the term
    """

    bounds: ClassVar[bool] = False
    prepared: ClassVar[bool] = False
    clean: ClassVar[bool] = False
    contains_kernel: ClassVar[bool] = False
    leaves_out: ClassVar[bool] = False
    _: KW_ONLY
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"expected a weight of at least 0, got {self.weight}.")

    @property
    def distances(self) -> bool:
        """Whether samples must bring `distance_mm`."""
        return False

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        """Why the term means nothing beside these parts, one line; None where it does."""
        return None

    def side(self, channels: int, image_channels: int) -> nn.Module | None:
        """A network of the term's own, with fresh weights.

        Arguments:
            channels: of what is diffused, in voxels
            image_channels: of all image conditions, in voxels
        """
        return None

    @abstractmethod
    def __call__(self, context: LossContext) -> Level:
        """One loss per sample, before the weight, at least in float32."""


def needs_labels(recipe: Recipe) -> str | None:
    """Why a recipe has no masks that a term could be about."""
    if recipe.segments or recipe.marks is not None:
        return None
    return "expected a recipe whose targets are masks, label_diffusion or synthetic_anomalies."


def mean_over_voxels(errors: Float[Tensor, "b _ _ _ _"]) -> Level:
    """One mean per sample."""
    return errors.flatten(1).mean(1)
