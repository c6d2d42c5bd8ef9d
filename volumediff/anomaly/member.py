"""A member of a fusion: a method, with the run's model or with one of another run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.normalization import Residual
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Component, Loan, Provider, Request, Requirement, borrowed
from volumediff.component import presentation as free
from volumediff.data.seen import Seen

__all__ = ["COMBINED", "LENDER", "LentRun", "Member"]

COMBINED = "combination"  # among the statistics of a fusion, beside the names of its members
RESERVED = (COMBINED,)

# not required: a member without a run works with that of the fusion
LENDER = Loan("run", what="the folder of the run that the member works with", required=False)

Back = Callable[[Float[Tensor, "1 1 d2 h2 w2"]], Float[Tensor, "1 1 d h w"]]


@runtime_checkable
class LentRun(Protocol):
    """Another run, as a member takes it.

    Attributes:
        model: what it trained
        digest: SHA-256 of weights and preprocessing: a calibration belongs to them
        seen: what the weights were trained on
        facts: where they come from, for the records of results
    """

    model: Any
    digest: str
    seen: Seen
    facts: Mapping[str, Any]

    def prepared(self, example: Example) -> tuple[Example, Back]:
        """The volume on the grid and in the intensities of this run, and the way back."""


@dataclass(frozen=True)
class _SuitsItsRun(Requirement):
    """That a method suits the model of its own run."""

    member: "Member"

    def check(self, model: Learned) -> None:
        """The method is asked; a run that is not there yet is missed elsewhere."""
        lent = self.member.lent
        if lent is None:
            return
        try:
            self.member.row.check(lent.model, borrowed=False)
        except ValueError as error:
            raise ValueError(f"members.{self.member.label}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Member(Component):
    """A method of a fusion.

    Arguments:
        label: its name, of which there is one in a fusion
        row: the method
        run: folder of the run that it works with; None for that of the fusion
        lent: that run; handed in, never configured
    """

    label: str
    row: Method
    run: str | None = free(None)
    lent: LentRun | None = borrowed(LENDER)

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z][a-z0-9]*", self.label) is None or self.label in RESERVED:
            raise ValueError(
                f"members: expected names of small letters and digits that are not "
                f"{', '.join(RESERVED)}, got {self.label!r}."
            )

    def requirements(self) -> tuple[Requirement, ...]:
        """Those of the method, of the model that it works with."""
        return self.row.requirements() if self.run is None else (_SuitsItsRun(self),)

    def bind(self, provide: Provider, place: str = "") -> "Member":
        """The member, with its run and with what its method borrows for that."""
        if self.run is None:
            return super().bind(provide, place)
        lent = provide(Request(self, "lent", LENDER, place)) or self.lent
        inner = f"{place}.row" if place else "row"
        row = self.row
        if lent is not None:
            row = row.bind(lambda request: provide(replace(request, lender=lent)), inner)
        same = lent is self.lent and row is self.row
        return self if same else replace(self, row=row, lent=lent)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """What the method finds, on the grid of the fusion and prepared for its normalization.

        Returns:
            the method's own result, with the one residual as `members`
        """
        if self.run is None:
            found = self.row.find(model, example, key=key)
            return replace(found, members=(self.row.prepared(found, example),))
        if self.lent is None:
            raise ValueError(
                f"members.{self.label}: expected the run {self.run}, got none; load it and hand "
                "it in with Method.bind."
            )
        there, back = self.lent.prepared(example)
        found = self.row.find(self.lent.model, there, key=key)
        residual = self.row.prepared(found, there)
        here = Residual(
            back(residual.map) * example.foreground,
            example.x,
            example.foreground,
            example.spacing_mm,
            residual.errors,
        )
        # its healthy volume lies on the grid of its own run
        combined = back(found.map) * example.foreground
        return replace(found, map=combined, healthy=None, members=(here,))

    def counted(self, model: Learned) -> nn.Module | None:
        """The network whose evaluations are the member's cost; None without one."""
        works_with = model if self.lent is None else self.lent.model
        return getattr(works_with, "counted", None)
