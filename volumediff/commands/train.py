"""`volumediff train`."""

from volumediff.commands._options import Config, Words, say

__all__ = ["train"]


def train(
    config: Config,
    overrides: Words = None,
) -> None:
    """Train a run, or go on with it: the same command resumes.

    volumediff train wavelet_128 data.root=DATA output=runs/brain
    """
    from volumediff.distributed.processes import leave
    from volumediff.settings.run_config import load_run_config
    from volumediff.training.loop import train as run

    try:
        folder = run(load_run_config(config, overrides or []))
    except SystemExit as stopped:  # a signal, after all processes have saved
        leave(stopped.code if isinstance(stopped.code, int) else 1)
        raise
    say(f"{folder}: trained.")
    leave()
