"""The search over the axes of a method: one axis after the other, coarse and then refined.

Greedy: what a later axis changes is not tried again at other values of an earlier one. Settings
whose maps are the same up to post-processing are measured together. The measurements of a setting
do not depend on the search (`trials`), so that known ones are taken as they are.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from volumediff.anomaly.method_files import build_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.tuning_axes import Axis, written
from volumediff.calibration.lesions import Pair
from volumediff.errors import UsageError
from volumediff.inference.cost import Cost, counted
from volumediff.tunable import Tunable
from volumediff.tuning.trials import Trial, choose, measure, same_finding
from volumediff.tuning.tuned import AxisSearch, Setting, name_of

__all__ = ["Bench", "Budget", "Grids", "Search"]

# Kinds of axes that are searched -> values; an empty tuple stands for the axis's own two grids.
Grids = Mapping[Tunable, tuple[float, ...]]


@dataclass(frozen=True)
class Budget:
    """What a search may cost, all volumes together; measurements that are known cost nothing.

    No settings are begun that would exceed it if they cost what the last ones did; the first
    always are.

    Arguments:
        seconds: of the clock
        calls: of the network
    """

    seconds: float = math.inf
    calls: float = math.inf

    def exceeded(self, *, seconds: float, calls: float) -> str | None:
        """What would be exceeded; None if nothing would."""
        if seconds > self.seconds:
            return f"the budget of {self.seconds:g} seconds"
        if calls > self.calls:
            return f"the budget of {self.calls:g} network calls"
        return None


@dataclass(frozen=True, eq=False)
class Bench:
    """A method with the volumes that its settings are measured on.

    Arguments:
        tree: of the method
        axes: all of the method
        model: the denoiser; None for baselines
        pairs: makes the volumes with and without lesions, the first time they are needed
        references: the same for the healthy volumes of a normalization
        seed: of the methods' noise
        make: from the tree of a method to the method, with what it takes of the run
    """

    tree: Mapping[str, Any]
    axes: Sequence[Axis]
    model: Learned
    pairs: Callable[[], Sequence[Pair]]
    references: Callable[[], Sequence[Example]] = tuple
    seed: int = 0
    make: Callable[[Mapping[str, Any]], Method] = build_method

    @property
    def own(self) -> Setting:
        """The method's own setting."""
        return tuple((axis.name, axis.own) for axis in self.axes)

    def row(self, setting: Setting) -> dict[str, Any]:
        """The tree of a setting.

        Raises:
            ValueError: the schedule never gets that noisy
        """
        values = dict(setting)
        changes: dict[Any, Any] = {}
        for axis in self.axes:
            changes |= axis.changes(values[axis.name])
        return written(self.tree, changes)

    def method(self, setting: Setting) -> Method:
        """The method of a setting.

        Raises:
            ValueError, UsageError: the blocks or the model do not allow it
        """
        method = self.make(self.row(setting))
        method.check(self.model)
        return method

    def measure(self, methods: Sequence[Method]) -> list[Trial]:
        """Measurements of methods that make the same map."""
        waits = any(m.normalize.fitted or m.first_threshold is not None for m in methods)
        references = self.references() if waits else ()
        return measure(methods, self.model, self.pairs(), references=references, seed=self.seed)


@dataclass
class Search:
    """A search, as far as it has come.

    Arguments:
        bench: method and volumes
        grids: which axes are searched, and where
        known: measurements of settings that need not be measured; new ones join them
        keep: called when some have joined
        budget: at which the search stops
        report: receives progress lines
        tried: measurements of every setting that was visited, in that order
        refused: why a setting has none
        stages: settings along each axis
        stopped: why the search ended early
    """

    bench: Bench
    grids: Grids
    known: dict[Setting, Trial] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None
    budget: Budget = field(default_factory=Budget)
    report: Callable[[str], None] = lambda line: None
    tried: dict[Setting, Trial] = field(default_factory=dict)
    refused: dict[Setting, str] = field(default_factory=dict)
    stages: list[AxisSearch] = field(default_factory=list)
    stopped: str | None = None
    _spent: list[tuple[float, float]] = field(default_factory=list, init=False)

    def run(self) -> None:
        """Goes through the axes.

        Raises:
            ValueError: no setting suits the model, or no volume has a lesion
        """
        base = self.bench.own
        for axis in self.bench.axes:
            if axis.what not in self.grids or self.stopped is not None:
                continue
            given = self.grids[axis.what]
            visited = self._visit(axis, base, given or axis.coarse())
            base = self.best()
            if not given and self.stopped is None:
                visited += self._visit(axis, base, axis.refined(dict(base)[axis.name]))
                base = self.best()
            along = sorted(set(visited), key=lambda s, name=axis.name: dict(s)[name])
            self.stages.append(AxisSearch(axis, tuple(along)))

    def best(self) -> Setting:
        """The setting that is chosen among those that were visited.

        Raises:
            ValueError: there is none, with the reason
        """
        if not self.tried:
            raise ValueError(next(iter(self.refused.values()), "no setting was tried."))
        return choose(self.tried)

    def _visit(self, axis: Axis, base: Setting, values: Sequence[float]) -> list[Setting]:
        """Measures settings along an axis; returns those that have measurements."""
        methods: dict[Setting, Method] = {}
        for value in values:
            setting = tuple((n, value if n == axis.name else v) for n, v in base)
            try:
                methods[setting] = self.bench.method(setting)
            except (ValueError, UsageError) as error:
                self.refused[setting] = str(error)
                self.report(f"  {name_of(setting)}: left out: {error}")
        done: list[Setting] = []
        for group in _groups(methods):
            fresh = {s: methods[s] for s in group if s not in self.known}
            over = self._over() if fresh else None
            if over is not None:
                self.stopped = f"{over} ended it at {len(done)} of {len(methods)} {axis.name}"
                break
            if fresh:
                self._measure(fresh)
            for s in group:
                self.tried.setdefault(s, self.known[s])
                done.append(s)
        return done

    def _over(self) -> str | None:
        """What of the budget the next settings would exceed."""
        if not self._spent:
            return None
        seconds, calls = (sum(cost) for cost in zip(*self._spent, strict=True))
        next_seconds, next_calls = self._spent[-1]
        return self.budget.exceeded(seconds=seconds + next_seconds, calls=calls + next_calls)

    def _measure(self, methods: Mapping[Setting, Method]) -> None:
        start, model = time.monotonic(), self.bench.model
        with nullcontext(Cost()) if model is None else counted(model) as cost:
            trials = self.bench.measure(list(methods.values()))
        self._spent.append((time.monotonic() - start, float(cost.network_calls)))
        self.known.update(zip(methods, trials, strict=True))
        self.keep()
        for setting, trial in zip(methods, trials, strict=True):
            self.report(f"  {name_of(setting)}: voxel AP {trial.mean('ap'):.4f}")


def _groups(methods: Mapping[Setting, Method]) -> list[list[Setting]]:
    """Settings that share their maps, together; each in its order."""
    groups: list[list[Setting]] = []
    for setting, method in methods.items():
        for group in groups:
            if same_finding(methods[group[0]], method):
                group.append(setting)
                break
        else:
            groups.append([setting])
    return groups
