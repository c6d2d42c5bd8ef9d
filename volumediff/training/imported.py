"""A checkpoint of another tool becomes a run, as if it had been trained here up to step 0.

The folder appears whole or not at all. Its `best` and `last` checkpoints hold the same weights, so
that every command takes it, and training goes on from them with fresh moments of the optimizer.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from volumediff.config import build, overridden
from volumediff.data.seen import Seen
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.importers._files import read
from volumediff.samples.seen_record import NAME, sources_of
from volumediff.samples.statistics import Statistics
from volumediff.settings.run_config import fixed_settings, parse
from volumediff.storage import checkpoint
from volumediff.storage.digests import sha256_of_file
from volumediff.storage.folder import TEMPORARY
from volumediff.tasks import build_task, resolved, task_of
from volumediff.training.run_folder import keep_config, record_session

__all__ = ["import_run"]


def import_run(
    kind: str,
    file: Path,
    run: Path,
    *,
    overrides: Sequence[str] = (),
    weights_only_pickle: bool = False,
) -> Path:
    """Writes the run that a checkpoint stands for; returns its folder.

    Arguments:
        kind: name of the importer, such as wdm
        file: the checkpoint
        run: the folder, which must not be there yet
        overrides: `key=value` overrides for the configuration of the run, and for arguments of the
            importer, such as importer.axes=RAS
        weights_only_pickle: see `read`

    Raises:
        UsageError: unknown kind, no such file, folder in use, or an override that does not fit
        DataError: the file is no checkpoint of this kind, or the disk is full; nothing is left
    """
    own = [word for word in overrides if word.startswith("importer.")]
    importer = build("importer", overridden({"importer": kind}, own)["importer"])
    if run.exists():
        raise UsageError(f"{run}: is there already; choose another folder with -o.")
    source = ForeignCheckpoint(
        read(file, weights_only_pickle=weights_only_pickle), where=str(file)
    )
    words = [word for word in overrides if word not in own]
    tree = overridden(importer.config(source), words)
    config = resolved(parse({**tree, "output": str(run)}, where=kind))
    hidden = run.parent / f"{TEMPORARY}{run.name}-{uuid.uuid4().hex}"
    try:
        task_of(config).keep(config, hidden)
        task = build_task(config, run=hidden)
        tensors = checked(importer, source, task.shapes())
        keep_config(hidden, config)
        # The checkpoint's own tool has no statistics of ours: scalars are read as they are.
        scalars = dict.fromkeys(task.recipe.scalars, (0.0, 1.0))
        Statistics(scalars).save(hidden)
        elsewhere = Seen(unknown=(f"the training of {run}, whose weights were imported ({kind})",))
        (elsewhere | sources_of(config)).save(hidden / NAME)
        for name, parts in (("best", {}), ("last", {"optimizer": {}})):
            checkpoint.save(
                hidden,
                name,
                step=0,
                tensors={"weights": tensors, "ema": tensors, **parts},
                state={
                    "best": {},
                    "borrowed": task.borrowed,
                    "validated": 0,
                    "bound": {"files": {}, "settings": fixed_settings(config)},
                },
                keep=1,
            )
        record_session(hidden, {"imported": {"kind": kind, "sha256": sha256_of_file(file)}})
        os.rename(hidden, run)
    except OSError as error:
        raise DataError(f"{run}: cannot be written ({error.strerror}).") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return run
