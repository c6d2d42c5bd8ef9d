"""What a shell completes: names that ship, and files and folders that are there.

Nothing heavy is imported: every press of the tab key starts the program.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["configs", "methods", "models", "names", "runs"]

# As in `settings.run_config`, which would import torch.
RUN_FOLDERS = (
    *("pipelines", "models", "autoencoders", "classifiers", "residual_segmenters", "probes"),
    "students",
)
METHOD_FOLDERS = ("anomaly", "segmentation", "translation")


def configs(incomplete: str) -> list[str]:
    """Configurations of runs, and YAML files."""
    from volumediff.config.files import shipped

    return _matching((n for kind in RUN_FOLDERS for n in shipped(kind)), incomplete) + [
        path for path in _paths(incomplete) if path.endswith(("/", ".yaml", ".yml"))
    ]


def methods(incomplete: str) -> list[str]:
    """Methods of localization, segmentation and translation, and YAML files."""
    from volumediff.config.files import shipped

    return _matching((n for kind in METHOD_FOLDERS for n in shipped(kind)), incomplete) + [
        path for path in _paths(incomplete) if path.endswith(("/", ".yaml", ".yml"))
    ]


def runs(incomplete: str) -> list[str]:
    """Folders of runs, here or in `runs`, and folders on the way to one."""
    near = (path for root in (Path(), Path("runs")) for path in root.glob("*/config.yaml"))
    return _matching((str(path.parent) for path in near), incomplete) + [
        path for path in _paths(incomplete) if path.endswith("/")
    ]


def models(incomplete: str) -> list[str]:
    """The same, and models that ship, and model files."""
    from volumediff.config.shipped_models import shipped_models

    files = [path for path in _paths(incomplete) if path.endswith(".safetensors")]
    return _matching(shipped_models(), incomplete) + runs(incomplete) + files


def names(incomplete: str) -> list[str]:
    """Everything that `info` describes by name."""
    from volumediff.config import families

    return _matching(families(), incomplete) + configs(incomplete) + methods(incomplete)


def _matching(choices: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in choices if name.startswith(incomplete)})


def _paths(incomplete: str) -> Iterator[str]:
    folder, slash, start = incomplete.rpartition("/")
    place = Path(folder or slash or ".")
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.name.startswith(start) and not path.name.startswith("."):
            yield f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"
