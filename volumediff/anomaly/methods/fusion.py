r"""Fusion: several methods in one, each as the probability of its map's values by chance.

    x ─ member 1 ─▶ finished map ─ tail ─▶ -log p₁ ┐
    x ─ member 2 ─▶ finished map ─ tail ─▶ -log p₂ ┼─ combination ─▶ map ─ post, threshold, score
    x ─ …                                          ┘

A member is any method, with its own normalization and post-processing, on the run's model or on
that of another run. Tail probabilities have no unit, so that methods of any kind can be added up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from volumediff.anomaly.combinations import Combination, Fisher
from volumediff.anomaly.member import COMBINED, Member
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Lesions, Method
from volumediff.anomaly.normalization import Raw, Residual
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.anomaly.tails import HealthyTail, OwnRanks, Tail
from volumediff.config import name_of
from volumediff.metrics.detection import Histogram, histogram, total
from volumediff.randomness import key as key_of

__all__ = ["Fusion"]

DEMANDS = ("none", "unsupervised", "self", "weak", "full")

Statistics = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fusion(Method):
    """Several methods in one map, by the tail probabilities of their own.

    Arguments:
        members: the methods, at least two
        tail: what the values of a member's finished map are compared with
        combination: of the members' surprises
    """

    mark: ClassVar[str | None] = "members"
    members: tuple[Member, ...]
    tail: Tail = field(default_factory=HealthyTail)
    combination: Combination = field(default_factory=Fisher)

    def __post_init__(self) -> None:
        labels = [member.label for member in self.members]
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(
                f"members: expected at least two methods, each with a name of its own, got "
                f"{', '.join(labels) or 'none'}."
            )
        if not isinstance(self.normalize, Raw):
            raise ValueError(
                f"normalize: expected raw, since the tail takes its place, got "
                f"{name_of(type(self.normalize))}; normalize the members instead."
            )
        for member in self.members:
            self._check_member(member)
        demands = DEMANDS.index(self.supervision)
        most = max(self.members, key=lambda m: DEMANDS.index(m.row.supervision))
        if DEMANDS.index(most.row.supervision) > demands:
            raise ValueError(
                f"supervision: expected {most.row.supervision}, as the member {most.label} "
                f"needs, got {self.supervision}; write supervision: {most.row.supervision}."
            )

    def _check_member(self, member: Member) -> None:
        place = f"members.{member.label}"
        if isinstance(member.row, Fusion):
            raise ValueError(f"{place}: expected no fusion in a fusion; name its members here.")
        if member.row.takes_region:
            raise ValueError(
                f"{place}: expected a method that needs no region, got one that redraws what is "
                "given; use another method."
            )
        if member.row.first_threshold is not None:
            raise ValueError(
                f"{place}: expected a first pass with a threshold of its own, got one that waits "
                "for healthy volumes; set editing.threshold."
            )

    @property
    def own_map(self) -> bool:
        """Whether a member on the run's own model makes a pseudo-healthy volume."""
        return any(m.row.own_map for m in self.members if m.run is None)

    @property
    def needs_healthy(self) -> bool:
        """Whether tail, combination or a member needs statistics of healthy volumes."""
        members = any(m.row.needs_healthy for m in self.members)
        return self.tail.fitted or self.combination.learned or members

    @property
    def needs_lesions(self) -> bool:
        """Whether the combination is learned."""
        return self.combination.learned

    def calls_elsewhere(self, network_calls: Mapping[str, int]) -> int:
        """Those of the members with a run of their own."""
        return sum(network_calls.get(m.label, 0) for m in self.members if m.run is not None)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """All members on the volume.

        Returns:
            the residuals of the members, the pseudo-healthy volume of the first of them that makes
            one on the grid of the volume, and as map, for methods that take a first pass of it,
            Fisher's sum of the ranks of their maps within the volume: nothing is calibrated yet
        """
        residuals, rows, trace, calls = [], [], {}, {}
        healthy = None
        for member in self.members:
            with _calls(member.counted(model)) as counter:
                found = member.find(model, example, key=key_of(key, "member", member.label))
            calls[member.label] = counter[0]
            residuals += found.members
            ranks = OwnRanks().surprise(found.map[example.foreground], {})
            rows.append(ranks)
            trace[f"{member.label}/map"] = found.map
            if member.run is None:
                healthy = found.healthy if healthy is None else healthy
                trace |= {f"{member.label}/{name}": t for name, t in found.trace.items()}
        return RawLocalization(
            map=_placed(Fisher()(torch.stack(rows), {}), example.foreground),
            healthy=healthy,
            trace=trace,
            members=tuple(residuals),
            network_calls=calls,
        )

    def prepared(self, found: RawLocalization, example: Example) -> Residual:
        """The residuals of the members."""
        return Residual(
            found.map, example.x, example.foreground, example.spacing_mm, members=found.members
        )

    @torch.no_grad()
    def finish(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The combined map after post-processing, in nats."""
        f = self._surprises(residual, statistics)
        combined = self.combination(f, _part(statistics, COMBINED))
        return self.processed(_placed(combined, residual.foreground), residual)

    @torch.no_grad()
    def contributions(
        self, residual: Residual, statistics: Statistics
    ) -> dict[str, Float[Tensor, "1 1 d h w"]]:
        """What each member adds to the map, in the combination's own measure, from 0 on."""
        f = self._surprises(residual, statistics)
        added = self.combination.contributions(f, _part(statistics, COMBINED))
        labels = (member.label for member in self.members)
        return {
            label: _placed(row, residual.foreground)
            for label, row in zip(labels, added, strict=True)
        }

    def _surprises(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "k n"]:
        rows = []
        for member, own in zip(self.members, residual.members, strict=True):
            mine = _part(statistics, member.label)
            a = member.row.finish(own, _part(mine, "method"))
            rows.append(self._surprise(a, own, _part(mine, "tail")))
        return torch.stack(rows)

    def _surprise(self, a: Tensor, own: Residual, statistics: Statistics) -> Float[Tensor, "n"]:
        return self.tail(
            a, foreground=own.foreground, spacing_mm=own.spacing_mm, statistics=statistics
        )

    @torch.no_grad()
    def statistics_of(
        self, residuals: Sequence[Residual], lesions: Lesions = ()
    ) -> dict[str, Tensor]:
        """Those of every member, its tail on healthy volumes, and the learned combination.

        The tail of a member is that of maps that were finished with the statistics of the other
        volumes, as those of new volumes will be.
        """
        found: dict[str, Tensor] = {}
        for number, member in enumerate(self.members):
            own = _OfMember(residuals, number)
            method = member.row.statistics_of(own) if member.row.needs_healthy else {}
            tail = self.tail.fit(total(self._histograms(member, own))) if self.tail.fitted else {}
            found |= _named(f"{member.label}.method", method)
            found |= _named(f"{member.label}.tail", tail)
        if self.combination.learned:
            samples = ((self._surprises(r, found), truth[r.foreground]) for r, truth in lesions)
            found |= _named(COMBINED, self.combination.fit(samples))
        return found

    @torch.no_grad()
    def held_out(
        self, residuals: Sequence[Residual], statistics: Statistics
    ) -> Iterator[Float[Tensor, "1 1 d h w"]]:
        """The map of every healthy volume, with members and tails that have not seen it."""
        finished: list[Iterator[Tensor]] = []
        tails: list[Iterator[Statistics]] = []
        for number, member in enumerate(self.members):
            own = _OfMember(residuals, number)
            finished.append(member.row.held_out(own, {}))
            tails.append(self._tails(member, own) if self.tail.fitted else repeat({}))
        learnt = _part(statistics, COMBINED)
        for residual in residuals:
            rows = [
                self._surprise(next(a), own, next(t))
                for a, t, own in zip(finished, tails, residual.members, strict=True)
            ]
            a = _placed(self.combination(torch.stack(rows), learnt), residual.foreground)
            yield self.processed(a, residual)

    def _tails(self, member: Member, own: Sequence[Residual]) -> Iterator[Statistics]:
        """The tail of a member without each of the volumes."""
        each = list(self._histograms(member, own))
        for i in range(len(each)):
            yield self.tail.fit(total(h for j, h in enumerate(each) if j != i))

    def _histograms(self, member: Member, own: Sequence[Residual]) -> Iterator[Histogram]:
        for r, a in zip(own, member.row.held_out(own, {}), strict=True):
            yield histogram(a, foreground=r.foreground)

    def _uncalibrated(self) -> str:
        return (
            "fusion: expected a calibration on healthy volumes, got none; fit one, or use tail: "
            "own_ranks with members that need none."
        )


@dataclass(frozen=True, eq=False)
class _OfMember(Sequence[Residual]):
    """The residuals of one member, looked up one at a time."""

    residuals: Sequence[Residual]
    number: int

    def __len__(self) -> int:
        return len(self.residuals)

    def __getitem__(self, index: Any) -> Any:
        return self.residuals[index].members[self.number]


def _placed(values: Float[Tensor, "n"], foreground: Bool[Tensor, "1 1 d h w"]) -> Tensor:
    """The values of the foreground as a map, zero outside."""
    a = torch.zeros(foreground.shape, dtype=torch.float32, device=foreground.device)
    a[foreground] = values.float()
    return a


def _named(prefix: str, statistics: Statistics) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in statistics.items()}


def _part(statistics: Statistics, prefix: str) -> dict[str, Tensor]:
    """The statistics below a name."""
    start = f"{prefix}."
    return {n.removeprefix(start): v for n, v in statistics.items() if n.startswith(start)}


@contextmanager
def _calls(network: nn.Module | None) -> Iterator[list[int]]:
    """Counts the evaluations of a network on one state; a batch of two is two."""
    counter = [0]

    def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        counter[0] += len(arguments[0])

    handle = None if network is None else network.register_forward_pre_hook(count)
    try:
        yield counter
    finally:
        if handle is not None:
            handle.remove()
