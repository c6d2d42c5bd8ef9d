"""Importers: what a checkpoint of another tool means here.

A checkpoint is a flat mapping from names to tensors. An importer says which run it stands for, and
gives the tensors of that run. Nothing is dropped and nothing is made up: every tensor of the
checkpoint is taken exactly once, and every tensor of the run is given with its shape.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers._published import Published

__all__ = ["ForeignCheckpoint", "Importer", "Origin", "Ranges", "Scaling", "Shapes", "checked"]

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of the tensors of a run."""

Scaling = Sequence[tuple[float, float]]
"""(a, b) of each attribute, of which a network reads (value - a) / b."""

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value of attributes among the volumes that a network was trained with."""


@dataclass(frozen=True)
class Origin:
    """Whose weights these are, and what was done to their volumes before any preprocessing.

    Arguments:
        name: of the published model, or of the tool that trained it
        address: where it is published
        licence: SPDX identifier or name; None where none was found
        template: name of the template in whose space the volumes lie, such as mni152; None where
            they lie as the scanner has them
        stripped: whether they show the brain alone
    """

    name: str
    address: str
    licence: str | None
    template: str | None = None
    stripped: bool = False


class ForeignCheckpoint:
    """The tensors of a foreign checkpoint, each to be taken once.

    Arguments:
        tensors: name -> tensor
        where: the file, for messages
        published: settings and licence that are published with it
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        where: str = "checkpoint",
        published: Published | None = None,
    ) -> None:
        self.where = where
        self.published = Published() if published is None else published
        self._all = dict(tensors)
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    @property
    def left(self) -> list[str]:
        """Names that nobody has taken yet."""
        return list(self._left)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which stays.

        Raises:
            DataError: the checkpoint has no such tensor
        """
        if name not in self._all:
            raise DataError(
                f"{self.where}: has no tensor {name}; is it a checkpoint of this kind?"
            )
        return tuple(self._all[name].shape)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor, which is then taken.

        Raises:
            DataError: no such tensor, taken before, or of another shape than the given one
        """
        found = self.shape(name)
        if shape is not None and found != tuple(shape):
            raise DataError(f"{self.where}: {name} has shape {found}, expected {tuple(shape)}.")
        if name not in self._left:
            raise DataError(f"{self.where}: {name} would be used twice.")
        return self._left.pop(name)

    def set_aside(self, *beginnings: str) -> None:
        """Takes the tensors whose names begin so, which the run has no use for.

        An importer says in its documentation which these are and why.
        """
        for name in [n for n in self._left if n.startswith(beginnings)]:
            del self._left[name]


class Importer(ABC):
    """What checkpoints of one kind mean.

    Attributes:
        records: what the tool's files hold beside weights, such as the state of an optimizer; not
            read
    """

    records: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def origin(self, source: ForeignCheckpoint) -> Origin:
        """Whose weights these are."""

    @abstractmethod
    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        """The configuration of the run, as in a YAML file, with the preprocessing that the tool
        prescribes; looks at names, shapes and published settings alone.

        The command's KEY=VALUE overrides are applied to it: for what neither tells.

        Raises:
            DataError: no checkpoint of this kind
            UsageError: a word is needed
        """

    def scaling(self, source: ForeignCheckpoint) -> Scaling:
        """How the network reads the attributes that it is conditioned on, in the order of
        `recipe.scalars`; none where it reads all of them as they are.

        Raises:
            UsageError: a word is needed
        """
        return ()

    def training_ranges(self, source: ForeignCheckpoint) -> Ranges:
        """What its training saw of the attributes that the network is conditioned on, as far as
        the tool says it."""
        return {}

    @abstractmethod
    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        """The state of the run: `network.*`, `space.shift` and `space.scale` of a diffusion model,
        or that of an autoencoder; takes all of the source.

        Arguments:
            source: the checkpoint
            shapes: what the run of the configuration has
        """


def checked(importer: Importer, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
    """The state of the run, complete.

    Raises:
        DataError: a tensor of the checkpoint is missing, surplus or of another shape; one line
    """
    given = importer.tensors(source, shapes)
    if source.left:
        more = f" and {len(source.left) - 1} more" if len(source.left) > 1 else ""
        raise DataError(
            f"{source.where}: {source.left[0]}{more} would be left over; the checkpoint is of "
            "another kind or architecture."
        )
    for name, shape in shapes.items():
        if name not in given:
            raise DataError(f"{source.where}: holds nothing for {name} of the run.")
        if tuple(given[name].shape) != tuple(shape):
            raise DataError(
                f"{source.where}: gives {name} the shape {tuple(given[name].shape)}, and the run "
                f"has {tuple(shape)}; the checkpoint is of another architecture."
            )
    unknown = [name for name in given if name not in shapes]
    if unknown:
        raise DataError(f"{source.where}: the run has no place for {unknown[0]}.")
    return given
