"""A first pass by another run: a method, and the autoencoder that it works with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.autoencoders import Reconstructor
from volumediff.component import Loan, Requirement, borrowed, presentation
from volumediff.data.seen import Seen

__all__ = ["AUTOENCODER", "BorrowedAutoencoder", "Lent"]

AUTOENCODER = Loan(
    "autoencoder",
    what="the folder of the run that makes the first pass",
    configurations="autoencoders",
)


@dataclass(frozen=True, eq=False, repr=False)
class BorrowedAutoencoder:
    """The trained autoencoder of another run.

    Arguments:
        model: with its weights, on the device of the run that borrows it
        digest: SHA-256 of the weights: a calibration belongs to them
        seen: what they were trained on
        facts: where they come from, for the records of results
    """

    model: Reconstructor
    digest: str
    seen: Seen = field(default_factory=Seen)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Borrowed({self.digest[:16]})"


@dataclass(frozen=True)
class _Suits(Requirement):
    """That a method suits the model it works with, whatever the run's is."""

    method: Method
    lent: BorrowedAutoencoder | None

    def check(self, model: Learned) -> None:
        """The method is asked; a model that is not there yet is missed elsewhere."""
        if self.lent is None:
            return
        try:
            self.method.check(self.lent.model)
        except ValueError as error:
            raise ValueError(f"first: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Lent(Method):
    """A method that works with a model of its own, whatever it is given.

    Arguments:
        row: the method
        run: folder of the run of its model
        autoencoder: its model; handed in, never configured
    """

    mark: ClassVar[str | None] = "row"
    alone: ClassVar[bool] = True
    row: Method
    run: str | None = presentation(None)
    autoencoder: BorrowedAutoencoder | None = borrowed(AUTOENCODER)

    @classmethod
    def slots(cls, *, whole: bool = False) -> tuple[str, ...]:
        """The method and its run alone."""
        return "row", "run"

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """That the method suits its own model."""
        return (_Suits(self.row, self.autoencoder),)

    @property
    def takes_region(self) -> bool:
        """Whether the method does."""
        return self.row.takes_region

    @property
    def own_map(self) -> bool:
        """Whether the method makes a pseudo-healthy volume."""
        return self.row.own_map

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """What the method finds with its own model."""
        assert self.autoencoder is not None, "checked before"
        return self.row.find(self.autoencoder.model, example, key=key)
