"""The reference of the configurations that ship, from their files."""

import torch

from volumediff import config
from volumediff.config.listing import summary
from volumediff.documentation.reference.markdown import code, page, table
from volumediff.errors import UsageError
from volumediff.settings.run_config import FOLDERS, RunConfig, load_run_config

__all__ = ["shipped_configurations"]

LEAD = """Configurations that `volumediff train NAME` takes; `key=value` words override single
keys. All are complete and commented files in `configs/`. `volumediff plan NAME` prints the memory
that one needs, and `volumediff plan NAME --vram 8 -o small.yaml` writes the fastest that fits into
8 GB; planned figures of the pipelines are on the page
[memory](../explanation/memory.md). Sizes are those of the training volumes."""
AS_FILES = "as in the files"
TITLES = {
    "pipelines": "Pipelines",
    "models": "Models that ship trained",
    "autoencoders": "Autoencoders",
    "classifiers": "Classifiers",
    "residual_segmenters": "Residual segmentation networks",
    "probes": "Probes",
    "students": "Students",
}


def shipped_configurations() -> str:
    """The page."""
    parts = []
    for folder in FOLDERS:
        runs = {name: _read(folder, name) for name in config.shipped(folder)}
        whole = {name: run for name, run in runs.items() if run is not None}
        parts.append(f"## {TITLES[folder]}")
        rows = ((code(n), *_facts(run), _about(folder, n)) for n, run in whole.items())
        parts.append(table(("name", "task", "size", "voxels", "trained parameters", "what"), rows))
        others = [name for name in runs if name not in whole]
        parts.append(table(("name", "what"), ((code(n), _about(folder, n)) for n in others)))
    return page("Shipped configurations", LEAD, *parts)


def _read(folder: str, name: str) -> RunConfig | None:
    """A configuration; None for one that is whole only with the overrides in its comment."""
    try:
        return load_run_config(config.config_path(folder, name))
    except UsageError:
        return None


def _facts(run: RunConfig) -> tuple[str, str, str, str]:
    grid = run.data.preprocessing
    spacing = grid.spacing()
    shape = " × ".join(map(str, grid.shape)) if grid.shape else AS_FILES
    voxels = " × ".join(f"{s:g}" for s in spacing) + " mm" if spacing else AS_FILES
    return code(run.task), shape, voxels, _parameters(run)


def _parameters(run: RunConfig) -> str:
    """Millions of trained parameters; nothing where they depend on another run."""
    from volumediff.tasks import build_task

    try:
        with torch.device("meta"):
            module = build_task(run).module
    except (UsageError, ValueError):
        return ""
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.1f} M"


def _about(folder: str, name: str) -> str:
    return summary(config.head(config.config_path(folder, name)))
