"""What decides the results of a run beside its tensors, and is bound to them by every checkpoint.

Each of these files carries its own digest, which finds damage. That they belong together is a
second question: a split, a configuration or landmarks of another run are whole, too. A checkpoint
therefore holds what they were when its training began.
"""

from pathlib import Path

from volumediff.errors import DataError, shown
from volumediff.settings.run_config import fixed_settings, saved_config
from volumediff.storage.checkpoint import Bindings, Checkpoint
from volumediff.storage.digests import sha256_of_file

__all__ = ["bound_of", "check_bound"]

FILES = (
    *("splits.json", "sources.json", "seen.json", "landmarks.json"),
    *("statistics/manifest.json", "inputs/manifest.json"),
)
COPIES = "borrowed/*/manifest.json"  # of what comes from other runs


def bound_of(run: Path) -> Bindings:
    """What a run's checkpoints are bound to, as it is now.

    Raises:
        UsageError: the folder is no run
        DataError: its configuration is damaged, or a file cannot be read
    """
    places = [run / name for name in FILES] + sorted(run.glob(COPIES))
    try:
        files = {
            path.relative_to(run).as_posix(): sha256_of_file(path)
            for path in places
            if path.is_file()
        }
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    return Bindings(files=files, settings=fixed_settings(saved_config(run)))


def check_bound(run: Path, found: Checkpoint) -> None:
    """Checks the files of a run against those that one of its checkpoints was trained with.

    Raises:
        DataError: a setting or a file is another one, a file is gone, or was not there; or the
            checkpoint names none
    """
    there, bound = bound_of(run), found.bound
    for name in ("files", "settings"):
        if found.step > 0 and getattr(there, name) and not getattr(bound, name):
            raise DataError(
                f"{found.path / 'state.json'}: bound.{name} is empty, so that nothing says what "
                "the run was trained with; restore the checkpoint from a backup."
            )
    for key, value in bound.settings.items():
        now = there.settings.get(key, value)  # a key that is gone is refused with the schema
        if now != value:
            raise DataError(
                f"{run / 'config.yaml'}: says {key}: {shown(now)}, and the run was trained with "
                f"{shown(value)}; restore the file from a backup."
            )
    for name in sorted({*bound.files, *there.files}):
        if name not in bound.files:
            if found.step == 0:  # imported weights: what they are trained on comes later
                continue
            raise DataError(f"{run / name}: was not there when the run was trained; take it away.")
        if there.files.get(name) != bound.files[name]:
            what = "differs from the one" if name in there.files else "is gone: it is the one"
            raise DataError(
                f"{run / name}: {what} that the run was trained with; restore it from a backup."
            )
