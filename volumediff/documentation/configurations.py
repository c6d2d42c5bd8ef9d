"""YAML blocks of pages, read as the program reads configurations."""

from collections.abc import Mapping
from typing import Any

from volumediff.errors import UsageError

__all__ = ["validate"]

# What a block leaves out is that of a shipped configuration.
REST = "patch_64"


def validate(tree: Any) -> None:
    """Reads a block as a run's configuration, or as a method.

    A run's configuration may be a part of one: what it leaves out is taken from a shipped one.

    Raises:
        UsageError: no mapping, or a wrong key or value; one line
    """
    from volumediff.anomaly.method_files import build_method
    from volumediff.config import build
    from volumediff.segmentation.method_files import COMPOSED, HALVES

    if not isinstance(tree, Mapping):
        raise UsageError(f"expected the keys of a configuration, got {tree!r}.")
    if set(tree) & _keys_of_runs():
        _validate_run(tree)
    elif "segmenter" in tree or "predictor" in tree:
        own = {key: value for key, value in tree.items() if key not in HALVES}
        build("segmenter", {"name": COMPOSED} | own)
    else:
        build_method(tree)


def _keys_of_runs() -> set[str]:
    """The first keys of every task's configuration."""
    from volumediff.config import available, component

    schemas = [component("task", name).schema for name in available("task")]
    return {key for schema in schemas for key in schema.model_fields} - {"method"}


def _validate_run(tree: Mapping[str, Any]) -> None:
    import torch

    from volumediff.config import config_path, load, overlaid
    from volumediff.settings.run_config import DEFAULT, parse
    from volumediff.tasks import build_task

    if tree.get("task", DEFAULT) == DEFAULT:
        tree = overlaid(load(config_path("pipelines", REST)), tree)
    with torch.device("meta"):
        build_task(parse(tree))
