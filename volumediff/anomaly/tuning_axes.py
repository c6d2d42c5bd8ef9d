r"""Axes of a method: what may be tuned, over which values, and the method with other values.

Noise levels are one axis per pass, in any component (route, ensemble, editing): its
coordinate is the log-SNR λ of the noisiest level, and all levels move together,

.. math:: λ_i \leftarrow λ_i + δ,

since steps in log-SNR are the same change of corruption in every space and under every schedule.
Every other declared field is an axis of its own and is scaled. A search takes the axes one after
the other (levels, strengths, parameters of a baseline, widths), each first over a coarse grid
around the method's own value, then once more half a step to both sides of the best.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from volumediff.anomaly._level import Level
from volumediff.anomaly.member import Member
from volumediff.anomaly.methods._base import Method
from volumediff.component import Component
from volumediff.schedules._base import Schedule
from volumediff.tunable import Tunable, tunables

__all__ = ["Axis", "NoiseAxis", "ScaleAxis", "axes_of", "written"]

Path = tuple[str | int, ...]
Value = float | tuple[float, ...]

# From linear t = 0.05 to 0.60, the levels of the published rows, is 7 in log-SNR. A step of 1.5,
# halved once, is finer than the 2 between neighbouring papers' choices for the same method.
STEP = 1.5
OFFSETS = (0.0, STEP, -STEP, 2 * STEP, -2 * STEP)
# Two octaves to both sides; published guidance weights go from 1.1 to 30, widths from 1 to 8 mm.
FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)
# A filter of width 0 is none at all; wider ones cost the cube of their width.
WIDTHS = (1.0, 0.5, 2.0, 0.0)
SCALED = (Tunable.STRENGTH, Tunable.PARAMETER, Tunable.WIDTH)  # in the order of the search


@dataclass(frozen=True)
class TunableField:
    """A declared field of a method, by its path in the method's tree."""

    path: Path
    what: Tunable
    value: Value


@dataclass(frozen=True)
class Axis(ABC):
    """One number of a method that a search may change.

    Arguments:
        name: where it stands in the method
        what: its kind
        own: the method's own value
    """

    name: str
    what: Tunable
    own: float

    @abstractmethod
    def coarse(self) -> tuple[float, ...]:
        """The first grid: the method's own value, then the others, nearest first."""

    @abstractmethod
    def refined(self, best: float) -> tuple[float, ...]:
        """The second grid: half a step to both sides of the best value of the first."""

    @abstractmethod
    def changes(self, value: float) -> dict[Path, Value]:
        """Path -> new value of every field that moves with the axis.

        Raises:
            ValueError: the schedule never gets that noisy
        """


@dataclass(frozen=True)
class NoiseAxis(Axis):
    """The noise levels of one pass, moved together.

    Arguments:
        places: the levels, as times or log-SNRs
        schedule: the checkpoint's
    """

    places: tuple[TunableField, ...]
    schedule: Schedule

    def coarse(self) -> tuple[float, ...]:
        """Two steps of 1.5 in log-SNR to both sides."""
        return tuple(round(self.own + offset, 4) if offset else self.own for offset in OFFSETS)

    def refined(self, best: float) -> tuple[float, ...]:
        """0.75 in log-SNR to both sides."""
        return round(best + STEP / 2, 4), round(best - STEP / 2, 4)

    def changes(self, value: float) -> dict[Path, Value]:
        """All levels, moved by the same log-SNR."""
        offset = value - self.own
        return {p.path: _moved(p, offset, self.schedule) for p in self.places} if offset else {}


def _moved(place: TunableField, offset: float, schedule: Schedule) -> Value:
    values = place.value if isinstance(place.value, tuple) else (place.value,)
    if place.what is Tunable.TIME:
        levels = [_log_snr(Level(level=t), schedule) + offset for t in values]
        moved = tuple(round(Level(log_snr=s).time(schedule), 6) for s in levels)
    else:
        moved = tuple(round(s + offset, 4) for s in values)
        for s in moved:
            Level(log_snr=s).time(schedule)  # says if the schedule never gets there
    return moved if isinstance(place.value, tuple) else moved[0]


def _log_snr(level: Level, schedule: Schedule) -> float:
    if level.log_snr is not None:
        return level.log_snr
    return float(schedule.log_snr(torch.tensor([level.level], dtype=torch.float64)))


@dataclass(frozen=True)
class ScaleAxis(Axis):
    """A positive number, scaled.

    Arguments:
        path: its field
    """

    path: Path

    def coarse(self) -> tuple[float, ...]:
        """One and two octaves to both sides; for widths one octave, and none at all."""
        factors = WIDTHS if self.what is Tunable.WIDTH else FACTORS
        return tuple(self._times(factor) for factor in factors)

    def refined(self, best: float) -> tuple[float, ...]:
        """Half an octave to both sides; for 0, a quarter of the method's own value."""
        if best == 0:
            return (self._times(0.25),)
        return _short(best * math.sqrt(2)), _short(best / math.sqrt(2))

    def changes(self, value: float) -> dict[Path, Value]:
        """The field."""
        return {self.path: value} if value != self.own else {}

    def _times(self, factor: float) -> float:
        unit = self.own or 1.0  # of something that is switched off, in its own unit
        return self.own if factor == 1 else _short(unit * factor)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def axes_of(method: Method, schedule: Schedule | None) -> list[Axis]:
    """The axes of a method, in the order in which they are searched.

    Arguments:
        method: the method
        schedule: the checkpoint's; baselines have none
    """
    found = list(_places(method, ()))
    noise = {Tunable.TIME, Tunable.LOG_SNR}
    axes: list[Axis] = []
    for number, one in enumerate(method.passes if schedule is not None else ()):
        own = [p for p in found if p.what in noise and _passes(p.path) == number]
        axis = _noise_axis(one, ("first",) * number, own, schedule)
        axes += [] if axis is None else [axis]
    axes.reverse()  # what a first pass finds is where the second begins
    for what in SCALED:
        for p in found:
            # of a first pass the bare map is taken: what would be done to it is never done
            unused = what is Tunable.WIDTH and _passes(p.path) > 0
            if p.what is what and not isinstance(p.value, tuple) and not unused:
                axes.append(ScaleAxis(_dotted(p.path), what, float(p.value), p.path))
    return axes


def _noise_axis(
    method: Method, prefix: Path, places: Sequence[TunableField], schedule: Schedule
) -> NoiseAxis | None:
    """None for methods without levels, and for those that start at the end of the schedule."""
    levels = method.noise_levels()
    if not levels or not places or any(level.level == 1 for level in levels):
        return None
    own = round(min(_log_snr(level, schedule) for level in levels), 4)
    name = _dotted((*prefix, "log_snr"))
    return NoiseAxis(name, Tunable.LOG_SNR, own, tuple(places), schedule)


def _passes(path: Path) -> int:
    """How many passes before the last one a path is in."""
    return next((i for i, part in enumerate(path) if part != "first"), 0)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _places(block: Any, path: Path) -> Iterator[TunableField]:
    """Declared fields of a component and of those in it; unused ones (None, ()) are left out."""
    declared = tunables(block)
    for field in fields(block):
        value = getattr(block, field.name)
        here = (*path, *_key(block, field.name))
        if field.name in declared:
            if value is not None and value != ():
                yield TunableField(here, declared[field.name], value)
        elif isinstance(value, Component) and value.alone:
            continue  # named and not written out: the tree has no place for values
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _places(value, here)
        elif isinstance(value, tuple):
            for i, each in enumerate(value):
                # members of a fusion are methods, which are tuned on their own
                if is_dataclass(each) and not isinstance(each, type | Member):
                    yield from _places(each, (*here, i))


def _key(block: Any, name: str) -> Path:
    """Key of a component's field in the tree; that of a one-component method is in its section."""
    return block.key(name) if isinstance(block, Method) else (name,)


def written(tree: Mapping[str, Any], changes: Mapping[Path, Value]) -> dict[str, Any]:
    """A copy of a method's tree with other values; bare names become sections."""
    result = copy.deepcopy(dict(tree))
    for path, value in changes.items():
        node: Any = result
        for part in path[:-1]:
            if isinstance(node[part], str):
                node[part] = {"name": node[part]}
            node = node[part]
        node[path[-1]] = list(value) if isinstance(value, tuple) else value
    return result
