"""`volumediff train`: train a configuration, or go on."""

from volumediff.api.functions import run_config
from volumediff.api.functions import train as work
from volumediff.commands._account import Strict, account_for
from volumediff.commands._options import Config, ConfigWords, Read, say

__all__ = ["train"]


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
    data = run_config(config, words).data
    if data.root is not None:
        account_for([data.root], layout=data.layout, channels=data.channels, strict=strict)
    try:
        folder = work(config, overrides=words)
    except SystemExit as stopped:  # a signal, after all processes have saved
        leave(stopped.code if isinstance(stopped.code, int) else 1)
        raise
    say(f"{folder}: trained.")
    leave()
