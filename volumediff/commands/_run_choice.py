"""The options that say which trained run a command works with, and how it is loaded."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from volumediff.api.loading import load
from volumediff.api.run import Run
from volumediff.commands._options import (
    DataRoot,
    Device,
    Domain,
    Memory,
    ModelOption,
    Read,
    RunOption,
    Which,
    WhichOption,
    defaults,
)
from volumediff.memory.heap import retain_heap

__all__ = ["RunChoice", "with_run"]

LOAD = defaults(load)
# Arguments of `load` that are options of every command with a run.
OPTIONS = {
    "which": (WhichOption, LOAD["which"]),
    "device": (Device, LOAD["device"]),
    "memory": (Memory, None),
    "domain": (Domain, LOAD["domain"]),
    "read": (Read, None),
    "data": (DataRoot, LOAD["data"]),
}


class RunChoice:
    """The run that the options of a command name.

    Arguments:
        place: folder, model file or name
        given: arguments of `load` by name, those left out have their defaults
    """

    def __init__(self, place: Path | str, given: Mapping[str, Any]) -> None:
        self.place = place
        self._given = {
            name: value.value if isinstance(value, Which) else value
            for name, value in given.items()
            if value is not None
        }

    def load(self) -> Run:
        """Loads it.

        Raises:
            UsageError: it is no run, or an option does not fit it
            DataError: it is damaged
        """
        retain_heap()
        return load(self.place, **self._given)


def with_run(
    *, shipped: str | None = None, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of a run in place of its parameter `run: RunChoice`.

    Arguments:
        shipped: model that is taken if `--run` is left out; None makes it required, and a folder
        without: names in `OPTIONS` that the command cannot take
    """
    options = {name: pair for name, pair in OPTIONS.items() if name not in without}
    run = (ModelOption, shipped) if shipped else (RunOption, inspect.Parameter.empty)

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**given: Any) -> None:
            loading = {name: given.pop(name) for name in options}
            command(run=RunChoice(given.pop("run"), loading), **given)

        parameters = []
        for own in inspect.signature(command).parameters.values():
            if own.name == "run":
                parameters += [_option("run", *run)]
            else:
                parameters.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        parameters += [_option(name, *pair) for name, pair in options.items()]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorated


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
