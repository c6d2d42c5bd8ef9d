"""A trained run from its folder, a model file, or the name of a model that ships."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from volumediff.api.arguments import Place
from volumediff.api.overrides import words_of
from volumediff.api.run import Run

__all__ = ["load"]


def load(
    run: Place,
    *,
    which: Literal["best", "last"] = "best",
    device: str = "auto",
    memory: Sequence[str] | Mapping[str, Any] = (),
    read: Sequence[str] | Mapping[str, Any] = (),
    data: Place | None = None,
    domain: int = 1,
) -> Run:
    """Loads a trained run.

    Arguments:
        run: its folder, a model file, or the name of a model that ships, such as `t1w`
        which: the checkpoint selected on validation, or the newest
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        memory: memory policy in place of the training's, such as `{"slab": 32}`
        read: decisions on ambiguous files in place of the training's, such as
            `{"no_forms": "ras"}`; see `volumediff.data.read_policy`
        data: folder of the run's data, if they were moved
        domain: processes of a launch that share each volume along its first axis. The first of
            them goes on; the others help it, and end the program when it ends

    Raises:
        UsageError: no run, no checkpoint, no such device, a run of an auxiliary model, or a launch
            of no multiple of `domain` processes
        DataError: the run is damaged
    """
    from volumediff.runs.model_file import resolve
    from volumediff.runs.trained import load_trained

    memory, read = (words_of(v) if isinstance(v, Mapping) else list(v) for v in (memory, read))
    trained = load_trained(
        resolve(run), which=which, device=device, memory=memory, read=read, domain=domain
    )
    return Run(trained if data is None else trained.moved(data))
