"""The contract of voxel metrics: functions of a histogram of map values, lesion and healthy.

They are no components, since no configuration names them; a metric is `package.module:function`.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable

import torch

import volumediff.metrics
from volumediff.contracts.requirements import require
from volumediff.errors import UsageError
from volumediff.metrics.detection import Histogram, histogram
from volumediff.randomness import normal

__all__ = ["Metric", "check_metric", "metric_named", "shipped_metrics"]

Metric = Callable[[Histogram], float]
CLOSE = 2e-3  # bins of a histogram are 1e-4 wide, and 600 voxels are few


def shipped_metrics() -> dict[str, Metric]:
    """`module:function` -> every function of this package from one histogram to one number."""
    found = {}
    for info in pkgutil.iter_modules(volumediff.metrics.__path__, "volumediff.metrics."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if not inspect.isfunction(value) or name.startswith("_"):
                continue
            takes = list(inspect.signature(value).parameters.values())
            own = value.__module__ == info.name and value.__annotations__.get("return") is float
            if own and len(takes) == 1 and takes[0].annotation is Histogram:
                found[f"{info.name}:{name}"] = value
    return found


def metric_named(name: str) -> Metric:
    """The function of `package.module:function`.

    Raises:
        UsageError: there is none
    """
    place, _, wanted = name.partition(":")
    try:
        return getattr(importlib.import_module(place), wanted)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"metric {name!r}: expected package.module:function ({error})."
        ) from error


def check_metric(metric: Metric) -> None:
    """A share in [0, 1] that depends on the order of map values, and not on volumes or units."""
    truth = torch.arange(600).view(1, 1, 10, 10, 6) % 7 == 0
    a = normal((1, 1, 10, 10, 6), "contracts", "map").abs() + 0.8 * truth
    h = histogram(a, truth)
    value = metric(h)
    require(isinstance(value, float) and math.isfinite(value), f"The metric is {value!r}.")
    require(0 <= value <= 1, f"The metric is {value:.3g}, outside of [0, 1].")
    for text, other in (
        ("the unit of the map", histogram(5 * a + 2, truth)),
        ("a rising change of the map", histogram(a.exp(), truth)),
        ("the number of equal volumes", h + h),
        (
            "how voxels are split into volumes",
            histogram(a[..., :2], truth[..., :2]) + histogram(a[..., 2:], truth[..., 2:]),
        ),
        ("the order of the voxels", histogram(a.flip(2), truth.flip(2))),
    ):
        again = metric(other)
        require(
            abs(again - value) < CLOSE,
            f"The metric depends on {text}: {value:.4g} and {again:.4g}.",
        )
    nothing = metric(histogram(a[:0], truth[:0]))
    require(math.isnan(nothing), f"Without voxels the metric is {nothing}, not nan.")
