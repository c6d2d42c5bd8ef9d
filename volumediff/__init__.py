"""volumediff: memory-efficient 3D diffusion for medical volumes.

    run = volumediff.load("runs/brain")
    result = run.localize(image)    # a path, or an image of nibabel, TorchIO, SimpleITK, MONAI
    result.map, result.mask, result.findings

Four native pipelines (patch, wavelet, latent, pseudo-3D) share one anomaly-localization and one
segmentation head. A pipeline is a choice of space (what is diffused), network and training crop;
nothing else in the code knows which of the four it is running. Importing the package does nothing:
what is named here loads when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volumediff.api.drawing import draw
    from volumediff.api.files import (
        localize_files,
        sample_files,
        segment_files,
        translate_files,
    )
    from volumediff.api.functions import (
        check,
        evaluate,
        plan,
        prepare,
        propose,
        restore,
        train,
    )
    from volumediff.api.hub import pull, push
    from volumediff.api.run import Run, load
    from volumediff.data.volume import Volume
    from volumediff.errors import DataError, UsageError

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "Run",
    "UsageError",
    "Volume",
    "check",
    "draw",
    "evaluate",
    "load",
    "localize_files",
    "plan",
    "prepare",
    "propose",
    "pull",
    "push",
    "restore",
    "sample_files",
    "segment_files",
    "train",
    "translate_files",
]

_HOMES = {
    "volumediff.api.drawing": ("draw",),
    "volumediff.api.files": (
        "localize_files",
        "sample_files",
        "segment_files",
        "translate_files",
    ),
    "volumediff.api.functions": (
        "check",
        "evaluate",
        "plan",
        "prepare",
        "propose",
        "restore",
        "train",
    ),
    "volumediff.api.hub": ("pull", "push"),
    "volumediff.api.run": ("Run", "load"),
    "volumediff.data.volume": ("Volume",),
    "volumediff.errors": ("DataError", "UsageError"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'volumediff' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
