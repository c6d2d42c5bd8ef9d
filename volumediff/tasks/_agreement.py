"""Whether a run and another one that it uses agree in what they must have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volumediff.errors import UsageError
from volumediff.settings.run_config import RunConfig, fixed_settings

__all__ = ["agree", "check_channels", "check_parts", "differences"]

INPUT = ("data.channels", "data.preprocessing")


def agree(pairs: Mapping[str, tuple[Any, Any]], *, where: str, of: Path, hint: str = "") -> None:
    """Raises UsageError for the first key whose value here is not that of the borrowed run.

    Arguments:
        pairs: key -> value here, value there
        where: key that names the run
        of: its folder
        hint: what to do, after a semicolon
    """
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            text = f"{name}: expected that of {where} = {of}, {theirs}, got {ours}"
            raise UsageError(f"{text}; {hint}." if hint else f"{text}.")


def check_channels(config: RunConfig, other: RunConfig, *, of: Path) -> None:
    """Raises UsageError where the volumes of a run have not as many channels as those of the run
    that it begins with."""
    counts = {"number of data.channels": (config.data.channel_count, other.data.channel_count)}
    agree(counts, where="start_from", of=of, hint="name as many images as there")


def check_parts(config: RunConfig, other: RunConfig, *, of: Path) -> None:
    """Raises UsageError for the first part, such as space, kernel, network or recipe, that an
    adapted run does not have in common with the run that it adapts."""
    names = _parts(config)
    pairs = {name: (getattr(config, name), getattr(other, name)) for name in names}
    agree(pairs, where="start_from", of=of, hint="an adapter changes weights and nothing else")


def differences(config: RunConfig, other: RunConfig) -> list[str]:
    """What a run sees or trains otherwise than the run that it begins with, one key a line."""
    ours, theirs = fixed_settings(config), fixed_settings(other)
    wanted = INPUT if type(config) is not type(other) else (*INPUT, *_parts(config))
    names = [n for n in {**theirs, **ours} if n.startswith(wanted)]
    return [
        f"{n} is {ours.get(n, 'nothing')} here and {theirs.get(n, 'nothing')} there"
        for n in names
        if ours.get(n) != theirs.get(n)
    ]


def _parts(config: RunConfig) -> list[str]:
    """The keys that the task declares beside those of all runs."""
    return [n for n in type(config).model_fields if n not in RunConfig.model_fields]
