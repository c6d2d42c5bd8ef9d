"""What a bundle of MONAI says about a model: arguments of its networks, schedule, preprocessing.

A bundle's files are trees of constructor calls, `_target_` and arguments. An argument that a call
leaves out has MONAI's default. The weights decide which call is meant: a bundle may have several
networks of a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from volumediff.errors import DataError, UsageError, shown
from volumediff.importers._axes import mirrors
from volumediff.importers._base import ForeignCheckpoint, Origin, Ranges
from volumediff.importers._published import Settings, agreed

__all__ = [
    "axes",
    "calls",
    "context_names",
    "context_ranges",
    "discrete_kernel",
    "origin",
    "preprocessing",
    "scaled_range",
    "steps",
]

METADATA = "metadata.json"
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {"linear_beta": "linear", "scaled_linear_beta": "scaled_linear"}
# Of MAISI and of the tutorials, for a checkpoint without a bundle.
PUBLISHED = {"name": "scaled_linear", "beta_first": 0.0015, "beta_last": 0.0195}


@dataclass(frozen=True)
class Prose:
    """What a bundle says to people alone, in its documentation or its code.

    Arguments:
        axes: of its arrays
        preprocessing: keys of `data.preprocessing`
        context: lowest and highest value of the numbers of a context
    """

    axes: str = "RAS"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    context: tuple[float, float] | None = None


# The brains of the UK Biobank are at 1 mm, in the common
# space of a rigid registration, with intensities between 0 and 1; its sampler saves arrays whose
# first axis runs to the left.
UK_BIOBANK = Prose(
    "LAS",
    {
        "spacing_mm": 1.0,
        "shape": [160, 224, 160],
        "intensity": {"name": "percentile", "low": 0.0, "high": 100.0},
    },
    context=(0.0, 1.0),
)
# By the name or the task in the metadata.
PROSE = {
    "Brain image synthesis": UK_BIOBANK,
    "Brain MRI Latent Diffusion Synthesis": UK_BIOBANK,
}
# Volumes of BraTS: skull-stripped, on the grid of the SRI24 atlas.
BRATS = "Task01_BrainTumour"
BRAIN_ML = 1400.0


def calls(
    source: ForeignCheckpoint, *targets: str, widths: Sequence[int], channels: int
) -> list[Settings]:
    """The calls of a class that stand for this checkpoint; none where no file has the class.

    Arguments:
        targets: names of the class
        widths: channels per level, by the tensors
        channels: of the input, by the tensors

    Raises:
        DataError: the files have networks of the class, and all are others
    """
    parts = source.published.parts(*targets)
    found = []
    for part in parts:
        key = "channels" if "channels" in part.values else "num_channels"
        own = part.value(key, word="network.widths=[...]")
        inputs = part.value("in_channels", word="data.channels=[...]")
        if own == list(widths) and inputs == channels:
            found.append(part)
    if parts and not found:
        raise DataError(
            f"{source.where}: has widths {list(widths)} and {channels} input channels, and "
            f"{parts[0].place} and all other settings beside it describe other networks; put the "
            "checkpoint into a folder of its own."
        )
    return found


def origin(source: ForeignCheckpoint) -> Origin:
    """The bundle by its metadata; without one, weights of somebody who uses MONAI."""
    name = _name(source)
    folder = "MONAI" if name is None else "model-zoo"
    brats = _data_set(source) == BRATS
    return Origin(
        name or "MONAI",
        f"https://github.com/Project-MONAI/{folder}",
        source.published.licence,
        template="sri24" if brats else None,
        stripped=brats,
    )


def axes(source: ForeignCheckpoint) -> str:
    """Directions of the arrays that volumes were turned to.

    Raises:
        DataError: axes in another order than ours
    """
    turned = _transforms(source, "Orientation")
    default = _prose(source).axes
    found = agreed(turned, "axcodes", word="importer.axes=RAS", default=default)
    try:
        mirrors(str(found))
    except ValueError as error:
        raise DataError(
            f"{source.where}: its volumes are turned to other axes ({error}); give "
            "importer.axes=RAS to take them in their order."
        ) from None
    return str(found)


def context_names(source: ForeignCheckpoint, number: int) -> list[str]:
    """Names of the numbers of a context: what the metadata call the columns of a table."""
    for part in source.published.holding("channel_def"):
        names = part.values["channel_def"]
        if part.values.get("type") == "tabular" and isinstance(names, Mapping):
            found = ["_".join(str(name).lower().split()) for name in names.values()]
            if len(found) == number:
                return found
    return [f"context_{i}" for i in range(number)]


def context_ranges(source: ForeignCheckpoint, number: int) -> Ranges:
    """Lowest and highest value of these numbers; none where nothing says them."""
    found = _prose(source).context
    for part in source.published.holding("value_range"):
        ends = part.values["value_range"]
        if part.values.get("type") == "tabular" and _is_range(ends):
            found = float(ends[0]), float(ends[1])
    return {} if found is None else dict.fromkeys(context_names(source, number), found)


def discrete_kernel(source: ForeignCheckpoint) -> dict[str, Any]:
    """The Gaussian kernel of the bundle's scheduler of discrete steps.

    Raises:
        UsageError: a schedule or a prediction that has no name here
    """
    parts = source.published.parts(*SCHEDULERS)
    if not parts:
        return {"name": "gaussian", "schedule": PUBLISHED, "prediction": "eps"}
    word = "kernel.schedule={name: scaled_linear, beta_first: B0, beta_last: B1}"

    def value(key: str, default: Any) -> Any:
        return agreed(parts, key, word=word, default=default)

    schedule = {
        "name": _named(parts, "schedule", "linear_beta", SCHEDULES, word),
        "levels": value("num_train_timesteps", 1000),
        "beta_first": value("beta_start", 1e-4),
        "beta_last": value("beta_end", 2e-2),
    }
    prediction = _named(parts, "prediction_type", "epsilon", PREDICTIONS, "kernel.prediction=eps")
    return {"name": "gaussian", "schedule": schedule, "prediction": prediction}


def steps(source: ForeignCheckpoint) -> int:
    """Number T of discrete steps."""
    parts = source.published.parts(*SCHEDULERS)
    return agreed(parts, "num_train_timesteps", word="network.steps=T", default=1000)


def scaled_range(source: ForeignCheckpoint) -> list[float]:
    """What intensities are scaled to, [0, 1] where no transform says it."""
    names = ("ScaleIntensityRangePercentiles", "ScaleIntensityRange")
    parts = [part for name in names for part in _transforms(source, name)]
    ends = ("b_min", 0.0), ("b_max", 1.0)
    word = "autoencoder.interval=[LOW,HIGH]"
    return [float(agreed(parts, key, word=word, default=end)) for key, end in ends]


def preprocessing(source: ForeignCheckpoint) -> dict[str, Any]:
    """Keys of `data.preprocessing`, as far as the bundle's transforms say them.

    Raises:
        UsageError: a transform's argument is code, or transforms differ
    """
    found: dict[str, Any] = {}
    found |= _prose(source).preprocessing
    word = "data.preprocessing.spacing_mm=[D,H,W]"
    spacing = agreed(_transforms(source, "Spacing"), "pixdim", word=word)
    if spacing is not None:
        found["spacing_mm"] = spacing
    word = "data.preprocessing.shape=[D,H,W]"
    shape = agreed(_transforms(source, "CenterSpatialCrop"), "roi_size", word=word)
    if shape is not None:
        found["shape"] = shape
    word = "data.preprocessing.intensity={name: percentile, low: 0, high: 99.5}"
    parts = _transforms(source, "ScaleIntensityRangePercentiles")
    if parts:
        low = agreed(parts, "lower", word=word, default=0.0)
        high = agreed(parts, "upper", word=word, default=100.0)
        found["intensity"] = {
            "name": "percentile",
            "low": float(low),
            "high": _of_foreground(float(high), shape, spacing),
        }
    word = "data.preprocessing.intensity={name: window, center: HU, width: HU}"
    parts = _transforms(source, "ScaleIntensityRange")
    if parts and "intensity" not in found:
        low, high = (agreed(parts, key, word=word) for key in ("a_min", "a_max"))
        if low is not None and high is not None:
            found["intensity"] = {
                "name": "window",
                "center": (low + high) / 2,
                "width": float(high - low),
            }
    return found


def _of_foreground(high: float, shape: Any, spacing: Any) -> float:
    """A percentile of a cropped volume as one of the brain in it, which is all that is not 0."""
    if shape is None or spacing is None:
        return high
    share = min(1.0, 1000 * BRAIN_ML / (prod(shape) * prod(spacing)))
    return round(100 - (100 - high) / share, 2)


def _is_range(ends: object) -> bool:
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and all(isinstance(end, int | float) for end in ends)
        and ends[0] < ends[1]
    )


def _transforms(source: ForeignCheckpoint, name: str) -> list[Settings]:
    """Calls of a transform, for arrays or for dictionaries."""
    return source.published.parts(name, f"{name}d", f"{name}D", f"{name}Dict")


def _name(source: ForeignCheckpoint) -> str | None:
    """What the metadata call the model; None without metadata."""
    names = [n for n in source.published.files if n.rpartition("/")[2] == METADATA]
    metadata = source.published.files[names[0]] if names else {}
    name = metadata.get("name") or metadata.get("task")
    return None if name is None else str(name)


def _prose(source: ForeignCheckpoint) -> Prose:
    return PROSE.get(_name(source) or "", Prose())


def _data_set(source: ForeignCheckpoint) -> str | None:
    parts = source.published.parts("DecathlonDataset")
    return str(parts[0].values.get("task")) if parts else None


def _named(
    parts: Sequence[Settings], key: str, default: str, names: dict[str, str], word: str
) -> str:
    found = agreed(parts, key, word=word, default=default)
    if found not in names:
        raise UsageError(
            f"{parts[0].place}: {key} {shown(found)} has no name here; expected one of "
            f"{', '.join(names)}; give {word}."
        )
    return names[found]
