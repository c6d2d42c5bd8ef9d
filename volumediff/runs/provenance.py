"""Provenance of results: run, weights and versions."""

from importlib.metadata import version
from typing import Any

import volumediff
from volumediff.runs.trained import Trained
from volumediff.settings.import_record import import_records_of

__all__ = ["provenance", "versions"]

LIBRARIES = ("torch", "numpy", "nibabel")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"volumediff": volumediff.__version__} | {name: version(name) for name in LIBRARIES}


def provenance(trained: Trained) -> dict[str, Any]:
    """Provenance of results: run, weights and versions."""
    return {
        "run": str(trained.run.resolve()),
        "checkpoint": trained.checkpoint,
        "weights_sha256": trained.digest,
        "imported": [found.model_dump() for found in import_records_of(trained.run)],
        "device": str(trained.device),
        "versions": versions(),
    }
