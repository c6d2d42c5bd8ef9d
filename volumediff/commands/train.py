"""`volumediff train`: train a configuration, or go on."""

from volumediff.api.functions import train as work
from volumediff.commands._options import Config, ConfigWords, Read, say

__all__ = ["train"]


def train(config: Config, overrides: ConfigWords = None, read: Read = None) -> None:
    """Train a run, or go on with it: the same command resumes.

    volumediff train wavelet_128 data.root=DATA output=runs/brain
    volumediff train wavelet_128 method=label_diffusion recipe.labels=[1,2] data.root=DATA
    """
    from volumediff.distributed.processes import leave

    try:
        words = [*(overrides or []), *(f"data.read.{word}" for word in read or [])]
        folder = work(config, overrides=words)
    except SystemExit as stopped:  # a signal, after all processes have saved
        leave(stopped.code if isinstance(stopped.code, int) else 1)
        raise
    say(f"{folder}: trained.")
    leave()
