r"""Effect of one setting of a method on healthy tissue and on lesions of validation volumes.

With m the foreground, l the lesion, x the volume without it and x̂ the pseudo-healthy volume,

    healthy error    mean over m of the map of x           (and of |x̂ - x|, where there is x̂)
    lesion map       mean over l of the map of the volume with the lesion
    lesion left      mean over l of |x̂ - x|, x̂ of the volume with the lesion: what stays of it

Both kinds are raw maps, before normalization and post-processing. A higher noise level removes
more of the lesion and harms more healthy tissue: the noise paradox. AP, Dice and threshold are of
the finished map, normalized with healthy volumes that are not the one in question.

The noise of volume i is keyed by (seed, i) as in calibration: every setting sees the same, so
that differences between settings are theirs, and its measurements do not depend on which other
settings are tried.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.normalization import Raw, Residual
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.calibration.collect_maps import informed
from volumediff.calibration.lesions import Pair
from volumediff.config import name_of
from volumediff.inference.cost import Cost, counted
from volumediff.metrics.detection import (
    Histogram,
    average_precision,
    best_dice,
    histogram,
    total,
)
from volumediff.randomness import key as key_of

__all__ = ["Trial", "choose", "measure", "placed", "same_finding"]

NAN = float("nan")
Key = TypeVar("Key")


@dataclass(frozen=True)
class Trial:
    """Measurements of one setting; tuples have one number per volume, nan where there is none.

    Arguments:
        ap: voxel average precision of the finished map
        healthy_error: mean raw map of healthy tissue
        lesion_map: mean raw map in the lesion
        healthy_change: mean |x̂ - x| of healthy tissue
        lesion_left: mean |x̂ - x| in the lesion, x without it
        lesion_put: mean |x' - x| in the lesion, x' with it: what there was to remove
        threshold: of the best Dice over all volumes together, as `calibrate` fits it
        dice: that Dice; the truth chose it
        network_calls: for one volume, on average
        seconds: for one volume, on average
    """

    ap: tuple[float, ...]
    healthy_error: tuple[float, ...]
    lesion_map: tuple[float, ...]
    healthy_change: tuple[float, ...]
    lesion_left: tuple[float, ...]
    lesion_put: tuple[float, ...]
    threshold: float
    dice: float
    network_calls: float
    seconds: float

    def mean(self, name: str) -> float:
        """Mean of a measurement over the volumes that have one; nan if none has."""
        values = np.array(getattr(self, name))
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else NAN

    def error(self, name: str) -> float:
        """Standard error of that mean; nan below two volumes."""
        values = np.array(getattr(self, name))
        return _standard_error(values[~np.isnan(values)])

    def to_json(self) -> dict[str, Any]:
        """Plain values, with null for nan."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Trial":
        """What `to_json` gave."""
        values = {name: _parsed(value) for name, value in content.items()}
        return Trial(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return None if math.isnan(value) else value


def _parsed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_parsed(v) for v in value)
    return NAN if value is None else float(value)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else NAN


def choose(trials: Mapping[Key, Trial]) -> Key:
    """The setting with the highest mean AP, or a cheaper one within its standard error.

    A setting ties with the best if it lies behind by at most one standard error of the difference,
    volume by volume, as all settings saw the same volumes and noise. Of those that tie the one
    with the fewest network calls is taken, then the one with the highest AP, then the first.
    The rule of one standard error is that of Breiman et al. (1984), CART, section 3.4.3.

    Raises:
        ValueError: no volume of any setting has a lesion
    """
    means = {key: trial.mean("ap") for key, trial in trials.items()}
    known = [key for key, mean in means.items() if not math.isnan(mean)]
    if not known:
        raise ValueError("expected validation volumes with lesions, got none.")
    best = max(known, key=means.__getitem__)

    def ties(key: Key) -> bool:
        behind = np.array(trials[best].ap) - np.array(trials[key].ap)
        behind = behind[~np.isnan(behind)]
        error = _standard_error(behind)
        return key == best or float(behind.mean()) <= (0.0 if math.isnan(error) else error)

    return min(filter(ties, known), key=lambda key: (trials[key].network_calls, -means[key]))


def same_finding(a: Method, b: Method) -> bool:
    """Whether two methods differ only in what is done to a map that they both make."""
    free = {"post": (), "normalize": Raw(), "threshold": a.threshold, "score": a.score}
    return replace(a, **free) == replace(b, **free)


@torch.no_grad()
def measure(
    methods: Sequence[Method],
    model: Learned,
    pairs: Sequence[Pair],
    *,
    references: Sequence[Example] = (),
    seed: int,
) -> list[Trial]:
    """Measurements of settings that make the same map: the network runs once for all of them.

    Arguments:
        methods: that differ in normalization and post-processing alone
        model: the denoiser; baselines take None
        pairs: volumes with and without a lesion, on any device
        references: healthy volumes whose maps the normalization is fitted on; where there are
            none, the healthy volumes of the other pairs
        seed: of the methods' noise

    Raises:
        ValueError: too few healthy volumes for a normalization or a first-pass threshold
    """
    there = (e if model is None else placed(e, model.device) for e in references)
    finder = methods[0].with_first_threshold(informed(methods[0], model, there, seed=seed))
    fitted = any(m.normalize.fitted for m in methods)
    alone = fitted and not references

    def look(example: Example, word: str, i: int, clean: Tensor | None = None) -> _Look:
        example = example if model is None else placed(example, model.device)
        with _timed(model) as cost:
            found = finder.find(model, example, key=key_of(seed, word, i))
        return _looked(found, example, clean, cost)

    rest = [
        _on_cpu(look(e, "calibration", i).residual)
        for i, e in enumerate(references if fitted else ())
    ]
    common = [_statistics(m, rest) if rest else {} for m in methods]
    healthy = [_without(look, pair, i, keep=alone) for i, pair in enumerate(pairs)]
    tallies: list[list[_Finished]] = [[] for _ in methods]
    for i, pair in enumerate(pairs):
        seen = look(pair.sick, "validation", i, None if pair.healthy is None else pair.healthy.x)
        others = [h.residual for j, h in enumerate(healthy) if h is not None and j != i]
        for method, statistics, tally in zip(methods, common, tallies, strict=True):
            own = _statistics(method, others) if alone else statistics
            tally.append(_finished(method, seen, own, healthy[i] or seen))
    return [_trial(tally) for tally in tallies]


@dataclass
class _Cost:
    calls: int = 0
    seconds: float = 0.0


@contextmanager
def _timed(model: Learned) -> Iterator[_Cost]:
    """Network calls and seconds of the block."""
    cost, start = _Cost(), time.perf_counter()
    with nullcontext(Cost()) if model is None else counted(model) as counts:
        yield cost
    if model is not None and model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    cost.calls, cost.seconds = counts.network_calls, time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class _Look:
    """What a method saw in a volume: its raw map, and the means of healthy tissue and lesion."""

    residual: Residual | None
    truth: Tensor | None
    cost: _Cost
    error: float
    change: float
    lesion: tuple[float, float, float]


def _looked(found: RawLocalization, example: Example, clean: Tensor | None, cost: _Cost) -> _Look:
    e = example
    lesion = torch.zeros_like(e.foreground) if e.truth is None else e.truth & e.foreground
    tissue = e.foreground & ~lesion
    x = None if clean is None else clean.to(e.x)

    def distance(a: Tensor | None, b: Tensor | None, where: Tensor) -> float:
        if a is None or b is None:
            return NAN
        return _mean((a - b).abs().mean(dim=1, keepdim=True), where)

    return _Look(
        Residual(found.map, e.x, e.foreground, e.spacing_mm, found.errors),
        e.truth,
        cost,
        _mean(found.map, tissue),
        distance(found.healthy, e.x, tissue),
        (_mean(found.map, lesion), distance(found.healthy, x, lesion), distance(e.x, x, lesion)),
    )


def _mean(a: Tensor, where: Tensor) -> float:
    return float(a[where].double().mean()) if bool(where.any()) else NAN


def _without(look: Callable[..., _Look], pair: Pair, i: int, *, keep: bool) -> _Look | None:
    """The volume without its lesion; its map is kept only where another one needs it."""
    if pair.healthy is None:
        return None
    seen = look(pair.healthy, "validation", i)
    return replace(seen, residual=_on_cpu(seen.residual)) if keep else replace(seen, residual=None)


def _statistics(method: Method, residuals: Sequence[Residual]) -> Mapping[str, Tensor]:
    if not method.normalize.fitted:
        return {}
    if len(residuals) < 2:  # as many as are needed for a deviation
        raise ValueError(
            f"normalize {name_of(type(method.normalize))}: expected two healthy volumes "
            f"beside the one in question, got {len(residuals)}; use more volumes, or a run with a "
            "calibration split."
        )
    return method.normalize.fit([method.normalize.prepare(r) for r in residuals])


@dataclass(frozen=True, eq=False)
class _Finished:
    """One volume under one setting."""

    counts: Histogram
    healthy: tuple[float, float]
    lesion: tuple[float, float, float]
    calls: int
    seconds: float


def _finished(
    method: Method, sick: _Look, statistics: Mapping[str, Tensor], healthy: _Look
) -> _Finished:
    with _timed(None) as cost:
        a = method.finish(method.normalize.prepare(sick.residual), statistics)
    return _Finished(
        histogram(a, sick.truth, foreground=sick.residual.foreground),
        (healthy.error, healthy.change),
        sick.lesion,
        sick.cost.calls,
        sick.cost.seconds + cost.seconds,
    )


def _trial(volumes: Sequence[_Finished]) -> Trial:
    best = best_dice(total(v.counts for v in volumes))
    healthy_error, healthy_change = zip(*(v.healthy for v in volumes), strict=True)
    lesion_map, lesion_left, lesion_put = zip(*(v.lesion for v in volumes), strict=True)
    return Trial(
        ap=tuple(average_precision(v.counts) for v in volumes),
        healthy_error=healthy_error,
        lesion_map=lesion_map,
        healthy_change=healthy_change,
        lesion_left=lesion_left,
        lesion_put=lesion_put,
        threshold=best.threshold,
        dice=best.dice,
        network_calls=float(np.mean([v.calls for v in volumes])),
        seconds=float(np.mean([v.seconds for v in volumes])),
    )


def _on_cpu(residual: Residual) -> Residual:
    tensors = {name: getattr(residual, name).cpu() for name in ("map", "x", "foreground")}
    return replace(residual, **tensors, errors=None)


def placed(example: Example, device: torch.device | str) -> Example:
    """The example on a device."""
    return replace(
        example,
        x=example.x.to(device),
        foreground=example.foreground.to(device),
        condition=example.condition.map(lambda v: v.to(device)),
        truth=None if example.truth is None else example.truth.to(device),
    )
