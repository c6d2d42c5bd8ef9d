"""A configuration in Python: its overrides, its memory, its training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volumediff.api.arguments import Place
from volumediff.api.overrides import words_of
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.planning.planner import Plan
    from volumediff.settings.run_config import RunConfig

__all__ = ["plan", "run_config", "train"]


def run_config(
    config: Place | Mapping[str, Any],
    words: Sequence[str] = (),
    sections: Mapping[str, Any] | None = None,
) -> "RunConfig":
    """A configuration with overrides.

    Arguments:
        config: name of a shipped one, YAML file, or its content as nested dictionaries
        words: `key=value` overrides
        sections: the same as keyword arguments

    Raises:
        UsageError: one line with the key, what it takes and what came
    """
    from volumediff.settings.run_config import load_run_config, parse, with_words

    every = [*words, *words_of(sections or {})]
    if isinstance(config, Mapping):
        return parse(with_words(config, every))
    return load_run_config(config, every)


def train(
    config: Place | Mapping[str, Any],
    *,
    data: Place | Mapping[str, Any] | None = None,
    output: Place | None = None,
    overrides: Sequence[str] = (),
    **sections: Any,
) -> Path:
    """Trains a run, or goes on with it: the same call resumes.

    Arguments:
        config: name of a shipped configuration, YAML file, or nested dictionaries
        data: folder of the volumes, or the section `data`
        output: folder of the run
        overrides: `key=value` overrides
        sections: other keys of the configuration, such as `optim={"steps": 1000}`

    Returns:
        the folder of the run, for `load`

    Raises:
        UsageError: a wrong key or value, or a folder with another run
        DataError: volumes that cannot be used
    """
    from volumediff.training.loop import train as work

    return work(run_config(config, overrides, {**_place(data, output), **sections}))


def _place(data: Place | Mapping[str, Any] | None, output: Place | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if data is not None:
        found["data"] = data if isinstance(data, Mapping) else {"root": str(data)}
    if output is not None:
        found["output"] = str(output)
    return found


def plan(
    config: Place | Mapping[str, Any],
    *,
    vram_gb: float | None = None,
    shape: tuple[int, int, int] | None = None,
    mode: Literal["train", "infer"] = "train",
    overrides: Sequence[str] = (),
    **sections: Any,
) -> "Plan":
    """Predicts memory without data or GPU, and chooses the fastest memory policy that fits a card.

    Arguments:
        config: as for `train`
        vram_gb: memory of the card; None lists memory policies and chooses none
        shape: voxels of the volumes; None takes those of the configuration
        mode: a training step, or inference
        overrides, sections: as for `train`

    Raises:
        UsageError: a wrong key or value, or a configuration without a shape
    """
    import math

    from volumediff.planning.planner import at_shape
    from volumediff.planning.planner import plan as look

    if vram_gb is not None and not 0 < vram_gb < math.inf:
        raise UsageError(f"vram {vram_gb:g}: expected the card's memory in GB, above 0.")
    wanted = at_shape(run_config(config, overrides, sections), shape)
    return look(wanted, mode=mode, vram_gb=vram_gb)
