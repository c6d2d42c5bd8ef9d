"""`volumediff train`: train a configuration, or go on."""

from pathlib import Path

from volumediff.api.training import run_config
from volumediff.api.training import train as work
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import Config, ConfigWords, Read
from volumediff.commands._written import WrittenFiles

__all__ = ["train"]


@accounts
def train(
    config: Config,
    overrides: ConfigWords = None,
    read: Read = None,
    strict: Strict = False,
) -> None:
    """Train a run, or go on with it: the same command resumes.

    volumediff train wavelet_128 data.root=DATA output=runs/brain
    volumediff train wavelet_128 method=label_diffusion recipe.labels=[1,2] data.root=DATA
    """
    from volumediff.distributed.processes import leave

    words = [*(overrides or []), *(f"data.read.{word}" for word in read or [])]
    wanted = run_config(config, words)
    data, written = wanted.data, WrittenFiles(wanted.output)
    if data.root is not None:
        account_for([data.root], layout=data.layout, channels=data.channels, strict=strict)
    try:
        folder = work(config, overrides=words)
    except SystemExit as stopped:  # a signal, after all processes have saved
        leave(stopped.code if isinstance(stopped.code, int) else 1)
        raise
    written.finish(then=_then(folder))
    leave()


def _then(run: Path) -> str:
    """The command that uses the run; empty for runs that only other runs build on."""
    from volumediff.config import component, shipped
    from volumediff.settings.run_config import saved_config

    config = saved_config(run)
    recipe = config.dump().get("recipe")
    if recipe is None:
        return ""
    name = recipe["name"] if isinstance(recipe, dict) else recipe
    command = "segment" if component("recipe", name).segments else "localize"
    if config.method in shipped("translation"):
        command = "translate"
    return f"volumediff {command} DATA --run {run} -o out/"
