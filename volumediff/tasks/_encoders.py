"""The autoencoder of another run, for a latent space or for a prior of its codes.

A run keeps a copy of it, and then stands alone.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volumediff.autoencoders import Autoencoder
from volumediff.config import build, component, name_of
from volumediff.errors import UsageError
from volumediff.settings.run_config import RunConfig
from volumediff.spaces import StateSpace
from volumediff.tasks._base import Task
from volumediff.tasks._borrowing import keep, kept, source_of, take
from volumediff.tasks._loading import build_task, load_task

__all__ = ["BorrowedEncoder", "autoencoder_path", "encoder", "keep_encoder", "space_of"]

NAME = "autoencoder"


@dataclass(frozen=True, eq=False)
class BorrowedEncoder:
    """An autoencoder, and the SHA-256 of its weights; empty where they are fresh."""

    autoencoder: Autoencoder
    digest: str


def autoencoder_path(spec: Any) -> str | None:
    """The autoencoder's run that a space, or a model of its codes, names, if it does."""
    if not isinstance(spec, Mapping):
        return None
    return spec.get("autoencoder") or autoencoder_path(spec.get("inner"))


def keep_encoder(spec: Any, run: Path, *, where: str) -> None:
    """Copies the autoencoder that a component names into a run, once.

    Raises:
        UsageError: its run is not trained yet
        DataError: its checkpoint is damaged
    """
    path = autoencoder_path(spec)
    if path is None or kept(run, NAME) is not None:
        return
    if not (Path(path) / "config.yaml").is_file():
        raise UsageError(
            f"{where} = {path}: no such run; train it first: volumediff train "
            f"configs/autoencoders/{Path(path).name}.yaml output={path}"
        )
    tensors = load_task(Path(path)).module.state_dict()
    keep(run, NAME, of=Path(path), tensors=tensors, where=where)


def encoder(
    path: str, run: Path | None, where: str, *, channels: tuple[str, ...] | None
) -> BorrowedEncoder:
    """The autoencoder that a component asks for.

    Arguments:
        path: folder of its run
        run: folder of this run, which keeps a copy; None takes fresh weights
        where: key of the component
        channels: images of this run, for an autoencoder that is not trained yet

    Raises:
        UsageError: no such run, or it trains something else
        DataError: the run's copy is damaged
    """
    if not path:
        raise UsageError(f"{where}.autoencoder: expected the folder of an autoencoder's run.")
    copy = kept(run, NAME)
    if copy is not None:
        autoencoder = _autoencoder(copy.config)
        take(autoencoder, copy)
        return BorrowedEncoder(autoencoder, copy.digest)
    source = source_of(
        Path(path), where=f"{where}.autoencoder", folder="autoencoders", channels=channels
    )
    return BorrowedEncoder(_autoencoder(source), "")


def _autoencoder(config: RunConfig) -> Autoencoder:
    task: Task = build_task(config)
    found = task.lend(Autoencoder)
    if found is None:
        raise UsageError(
            f"{config.output}: expected the run of an autoencoder with a latent grid, such as kl "
            f"or vq, got {name_of(type(task.module))}."
        )
    return found


def space_of(
    spec: str | Mapping[str, Any] | None,
    run: Path | None,
    *,
    channels: tuple[str, ...] | None,
    where: str = "space",
) -> tuple[StateSpace, BorrowedEncoder | None]:
    """The space of a specification, with the autoencoder of a run in place of its path."""
    parts = {"name": spec} if isinstance(spec, str) else dict(spec or {})
    takes = inspect.signature(component("space", str(parts.get("name")))).parameters
    derived: dict[str, Any] = {}
    found = None
    if "autoencoder" in takes:
        found = encoder(str(parts.pop("autoencoder", "")), run, where, channels=channels)
        derived |= {"autoencoder": found.autoencoder, "digest": found.digest}
    if "inner" in takes:
        inner = parts.pop("inner", None)
        derived["inner"], found = space_of(inner, run, channels=channels, where=f"{where}.inner")
    return build("space", parts, where=where, **derived), found
