"""Contract of tasks: what a run trains, from its configuration to its trained module.

A task owns its keys (`schema`), builds its module with fresh weights, says which runs it borrows
from, and gives the loss of each sample for a player (a group of parameters that takes turns; one
for most tasks). The training loop, the planner, checkpoints and inference know nothing else of it.
Needed are `schema`, `build`, `modules` and `loss`; all the rest has a default.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.data.foreground_crops import ForegroundCrops
from volumediff.errors import UsageError
from volumediff.recipes._base import Recipe
from volumediff.recipes.healthy import Healthy
from volumediff.samples.dataset import Crop, Samples
from volumediff.samples.loss_noise import LossNoise
from volumediff.settings.run_config import RunConfig
from volumediff.shapes import Shape
from volumediff.storage import checkpoint
from volumediff.storage.cache import Cache
from volumediff.storage.checkpoint import Checkpoint
from volumediff.tasks._backbones import Backbone
from volumediff.tasks._refusals import Refusals
from volumediff.tasks._weights import TaskWeights

__all__ = ["Criterion", "Stage", "Task", "best_of"]

Stage = Callable[[str], AbstractContextManager[None]]
"""Names what happens inside the context, for the planner."""
Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class Criterion:
    """The metric that selects checkpoints in place of the validation loss.

    Arguments:
        name: in metrics.jsonl
        cases: how many there are
        of: number of a case -> metric, higher is better; the mean over the cases selects
    """

    name: str
    cases: int
    of: Callable[[int], float]


def best_of(of: Path, *, where: str) -> Checkpoint:
    """The best checkpoint of a run that is to be borrowed.

    Arguments:
        of: its folder
        where: key that names it

    Raises:
        UsageError: there is none yet
        DataError: it is damaged
    """
    found = checkpoint.find(of, "best")
    if found is None:
        raise UsageError(f"{where} = {of}: has no checkpoint yet; train it first.")
    return found


class Task(TaskWeights, ABC):
    """What a run trains.

    Arguments:
        config: of the run
        module: everything that the loss needs; its parameters that ask for gradients are trained
        main: the player whose loss validates and selects
        recipe: makes samples of volumes
        digest: SHA-256 of the weights that are borrowed and not trained; a run goes on with these
            alone
        frozen: the parts of the module that hold them; checkpoints leave these out

    Attributes:
        training_only: networks that the loss needs and nobody uses later, such as a teacher; there
            once `begin_training` was called, no part of the module and never trained
        schema: the configuration with the keys of this task
        noun: what is trained, for messages: "a classifier"
        fits_intensities: whether intensity landmarks are fitted on the run's own volumes; those
            of a borrowed run are copied otherwise
        adaptable: whether an adapter may be trained in place of its weights: not where the task
            keeps a second copy of these
        training_copies: names of the copies in RUN/borrowed that training alone needs
        blockwise: whether processes that hold shares of the weights may bring them together one
            residual block after the other; not where a loss asks for gradients on its way
    """

    schema: ClassVar[type[RunConfig]]
    noun: ClassVar[str] = "something of its own"
    fits_intensities: ClassVar[bool] = True
    adaptable: ClassVar[bool] = False
    training_copies: ClassVar[tuple[str, ...]] = ()
    blockwise: ClassVar[bool] = False

    def __init__(
        self,
        config: RunConfig,
        module: nn.Module,
        *,
        main: str,
        recipe: Recipe = Healthy(),  # noqa: B008 - frozen
        digest: str = "",
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(module, digest=digest, frozen=frozen)
        self.config, self.main, self.recipe = config, main, recipe
        self.training_only = nn.ModuleDict()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    # Configuration and building

    @classmethod
    def resolve(cls, config: RunConfig) -> RunConfig:
        """The configuration with everything filled in that follows from borrowed runs.

        Raises:
            UsageError: there is no such run, or it trains something else
        """
        return config

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        """Copies what a run needs of others into its folder, once; before it is built.

        Raises:
            UsageError: a borrowed run is not trained yet, or does not agree with this one
            DataError: its checkpoint is damaged
        """
        for where, of in config.borrows().items():
            best_of(of, where=where)

    @classmethod
    @abstractmethod
    def build(cls, config: RunConfig, run: Path | None) -> "Task":
        """The task with fresh weights, drawn from torch's generator, which is seeded already.

        Needs no data and works on the meta device.

        Arguments:
            config: resolved
            run: the run's folder, with what `keep` put there; without it, untrained stand-ins of
                borrowed weights will do

        Raises:
            UsageError: parts do not fit; one line that names the key
        """

    # Training

    def begin_training(self, run: Path | None, *, fresh: bool) -> None:
        """Takes what training alone needs, after `build`; inference never calls it.

        Arguments:
            run: the run's folder, with what `keep` put there; None, as for the planner, takes
                fresh weights
            fresh: whether there is no checkpoint yet, which would bring the weights of the module

        Raises:
            DataError: what the run keeps is damaged
        """

    def training_state(self) -> dict[str, Tensor]:
        """Tensors that training goes on with and nobody uses later, for the checkpoint `last`."""
        return {}

    def resume_training(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Goes on after so many updates, with the tensors of `training_state`."""

    @abstractmethod
    def modules(self) -> Mapping[str, nn.Module]:
        """Trained parts by player."""

    @abstractmethod
    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        """Loss of each sample; gradients of its mean reach this player's parameters alone."""

    @property
    def located(self) -> bool:
        """Whether samples carry the coordinates of their crop."""
        return False

    @property
    def distances(self) -> bool:
        """Whether samples carry the distance from the surface of the labels."""
        return False

    @property
    def loss_noise(self) -> LossNoise | None:
        """What samples bring of the noise that the loss would draw; None for nothing."""
        return None

    def crop(self, shape: Shape) -> Crop:
        """How crops of so many voxels are taken.

        Raises:
            ValueError: the shape does not fit the strides of the module
        """
        return Crop(shape, (1, 1, 1))

    def fit(
        self, samples: Samples, *, fresh: bool, cache: Cache, accelerator: Accelerator
    ) -> Samples:
        """Fits what has to be there before step 0; returns the samples to train on.

        Arguments:
            samples: whole volumes
            fresh: whether the run has no checkpoint yet, which would bring what was fitted
            cache: for what is computed once
            accelerator: all processes take part
        """
        return samples

    @property
    def target(self) -> nn.Module:
        """What begins with the weights of another run, see `start_from`."""
        return self.modules()[self.main]

    @property
    def backbone(self) -> Backbone | None:
        """What runs of other tasks may begin with; None where there is nothing."""
        return None

    def begin_with(self, other: "Task", *, where: str) -> str | None:
        """Takes what it can use of the weights of any run, and says what, see `start_from`.

        None leaves it at runs of the same task, whose `target` must be the same throughout.

        Arguments:
            other: the trained task
            where: the key and the folder, for messages

        Raises:
            UsageError: nothing of it is of use
        """
        return None

    @property
    def foreground(self) -> ForegroundCrops | None:
        """Which training crops are centred on a label; None takes them from anywhere."""
        return None

    def stepped(self, step: int, accelerator: Accelerator) -> None:
        """Whatever follows an update of the weights, such as that of an averaged copy.

        Arguments:
            step: updates done
            accelerator: all processes take part
        """

    # Validation

    @classmethod
    def whole_volumes(cls, config: RunConfig) -> bool:
        """Whether validation passes volumes through the module that are larger than crops."""
        return False

    def criterion(self, samples: Samples) -> Criterion | None:
        """The metric that selects checkpoints; None takes the validation loss, lowest first."""
        return None

    def indicators(self, samples: Samples) -> Sequence[Criterion]:
        """Metrics that validation records beside the loss, and that select nothing."""
        return ()

    def alarms(self, row: Mapping[str, float]) -> Sequence[str]:
        """Lines for a user whose training goes wrong.

        Arguments:
            row: metrics of a validation
        """
        return ()

    def preview(self, samples: Samples, index: int) -> Sequence[tuple[str, Tensor]]:
        """Titles and volumes (c, d, h, w) that show what is learnt; empty where there are none."""
        return ()

    # Before the first step and after the last one

    @property
    def remarks(self) -> Sequence[str]:
        """Lines that a user should read before training begins."""
        return ()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the record of the run and of its results says beside weights and settings."""
        return {}

    def finish(self, samples: Samples, run: Path) -> Sequence[str]:
        """Measures what is to be known of the trained run, once its last step is done.

        Arguments:
            samples: of training and validation
            run: its folder, with the best checkpoint

        Returns:
            lines that say what was found
        """
        return ()

    # Planning

    def grid(self, shape: Shape) -> Shape:
        """Grid of the states that a network sees, for volumes of so many voxels."""
        return shape

    def planes(self, shape: Shape) -> int:
        """Planes along d of the largest thing that memory policies cut into slabs."""
        return shape[0]

    @property
    def entry(self) -> nn.Module | None:
        """The module whose call ends the planner's stage `encode`; None where there is none."""
        return None

    def batch(self, shape: Shape, count: int, *, device: torch.device | str = "cpu") -> Batch:
        """A batch in the form of those that training brings, of random numbers.

        Arguments:
            shape: voxels; those of the crop also bring the coordinates that the network takes
            count: samples
        """
        recipe, c = self.recipe, self.config.data.channel_count

        def noise(*size: int) -> Tensor:
            return torch.rand(size, device=device) * 2 - 1

        label, scalars, place = None, None, None
        if recipe.classes:
            label = torch.zeros(count, dtype=torch.int64, device=device)
        if recipe.scalar_count:
            scalars = noise(count, recipe.scalar_count)
        if self.located and shape == self.config.crop:
            place = noise(count, 3, *self.grid(shape))
        return Batch(
            noise(count, recipe.channels(c), *shape),
            tuple(range(count)),
            Condition(label=label, scalars=scalars, coordinates=place),
            tuple(noise(count, n, *shape) for n in recipe.image_channels(c)),
            mask=noise(count, 1, *shape) if recipe.shows_mask else None,
            region=noise(count, 1, *shape) if recipe.local else None,
            end=noise(count, c, *shape) if "cold" in recipe.paths else None,
            distance_mm=noise(count, recipe.label_count or 0, *shape) if self.distances else None,
        )

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """One pass of inference over whole volumes, in named stages."""
        with stage("forward"):
            self.loss(self.main, batch)

    # Use

    def freeze(self) -> None:
        """Makes the weights constant, for inference."""
        self.module.requires_grad_(False)

    @property
    def result(self) -> nn.Module:
        """What is used once it is trained: the module, or the part of it that is no helper."""
        return self.module

    def lend(self, kind: type[Kind]) -> Kind | None:
        """The result where it is of a kind that somebody asks for, such as `Model`."""
        # The one place where kinds of models are told apart: a borrower says what it can use, and
        # the result of any task that is of this class will do.
        return self.result if isinstance(self.result, kind) else None

    @property
    def refusals(self) -> Refusals:
        """What a trained run is not for, with the reasons."""
        reason = f"trains {self.noun}, which makes no such thing."
        return Refusals(reason, reason, reason)
