"""Shipped configurations, small enough to run: policies, tasks and parts as shipped, few channels.

Everything that says how large something is becomes small; nothing else is changed, so that what is
added to a configuration is run by the tests that use it.
"""

from typing import Any

from volumediff.config import config_path, load, shipped
from volumediff.settings.run_config import RunConfig, parse

__all__ = ["SHAPE", "shrunken", "trained_configs"]

SHAPE = (16, 16, 16)
# What is replaced wherever it stands, by its key.
SMALL: dict[str, Any] = {
    "blocks": 1,
    "groups": 2,
    "hidden": [4],
    "members": 2,
    "steps": 4,
    "from_steps": 8,
    "round_steps": 1,
    "states": 2,
    "teacher_steps": 4,
    "warmup": 1,
    "points": 20,
    "batch": 8,
    "workers": 0,
    "batch_size": 2,
}
FOLDERS = ("pipelines", "autoencoders", "classifiers", "residual_segmenters", "probes", "students")


def trained_configs() -> list[str]:
    """Every shipped configuration of a run, as FOLDER/NAME."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in shipped(folder)]


def shrunken(name: str, **sections: Any) -> RunConfig:
    """A shipped configuration made small.

    Arguments:
        name: FOLDER/NAME
        sections: further sections, in place of those of the file
    """
    tree = _small(load(config_path(*name.split("/"))))
    tree["data"]["preprocessing"] |= {"shape": list(SHAPE), "spacing_mm": 3.0}
    if tree.get("crop"):
        tree["crop"] = [8 if n <= SHAPE[0] or n < 200 else 16 for n in tree["crop"]]
    return parse(tree | sections)


def _small(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    small = {k: SMALL[k] if k in SMALL and v is not None else _small(v) for k, v in value.items()}
    if "widths" in small:
        # Levels as shipped; multiples of 8, which kernels of attention are chosen by.
        small["widths"] = [8] * len(small["widths"])
    return small
