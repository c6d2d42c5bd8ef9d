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
    from volumediff.api.alignment import prepare, restore
    from volumediff.api.data_sets import check, propose
    from volumediff.api.drawing import draw
    from volumediff.api.evaluation import evaluate
    from volumediff.api.files import (
        localize_files,
        sample_files,
        segment_files,
        translate_files,
    )
    from volumediff.api.hub import pull, push
    from volumediff.api.loading import load
    from volumediff.api.model_files import export
    from volumediff.api.run import Run
    from volumediff.api.training import plan, train
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
    "export",
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
    "volumediff.api.alignment": ("prepare", "restore"),
    "volumediff.api.data_sets": ("check", "propose"),
    "volumediff.api.drawing": ("draw",),
    "volumediff.api.evaluation": ("evaluate",),
    "volumediff.api.files": (
        "localize_files",
        "sample_files",
        "segment_files",
        "translate_files",
    ),
    "volumediff.api.hub": ("pull", "push"),
    "volumediff.api.loading": ("load",),
    "volumediff.api.model_files": ("export",),
    "volumediff.api.run": ("Run",),
    "volumediff.api.training": ("plan", "train"),
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
