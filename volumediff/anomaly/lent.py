"""What rows take of other runs, and a first pass by one: a row, and what it works with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from volumediff.anomaly.calibration import Example
from volumediff.anomaly.finding import Finding
from volumediff.anomaly.method import Learned, Method
from volumediff.autoencoders import Reconstructor
from volumediff.comparison import VoxelPosterior
from volumediff.data.seen import Seen

__all__ = ["Borrowed", "Lender", "Lent"]


@dataclass(frozen=True, eq=False, repr=False)
class Borrowed:
    """The trained autoencoder of another run.

    Arguments:
        model: with its weights, on the device of the run that borrows it
        digest: SHA-256 of the weights: a calibration belongs to them
        seen: what they were trained on
    """

    model: Reconstructor
    digest: str
    seen: Seen = field(default_factory=Seen)

    def __repr__(self) -> str:
        return f"Borrowed({self.digest[:16]})"


@dataclass(frozen=True)
class Lender:
    """From the folder of another run to what it has learnt.

    Arguments:
        autoencoder: of the first pass, `first.run`
        comparer: of the map `posterior`, `map.run`
    """

    autoencoder: Callable[[str], Borrowed]
    comparer: Callable[[str], VoxelPosterior]


@dataclass(frozen=True, kw_only=True)
class Lent(Method):
    """A row that works with a model of its own, whatever it is given.

    Arguments:
        row: the row
        run: its model; None for a row that nobody gave a run yet
    """

    row: Method
    run: Borrowed | None = None

    @property
    def lent(self) -> dict[str, Seen]:
        """The run's weights."""
        return {} if self.run is None else {self.run.digest: self.run.seen}

    def check(self, model: Learned) -> None:
        """The row must suit its own model."""
        if self.run is None:
            raise ValueError(
                "first.run: expected the folder of the run that makes the first pass, got none; "
                "use first.run=RUN, see configs/autoencoders."
            )
        try:
            self.row.check(self.run.model)
        except ValueError as error:
            raise ValueError(f"first: {error}") from None

    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """What the row finds with its own model."""
        assert self.run is not None, "checked before"
        return self.row.find(self.run.model, example, key=key)
