"""A checkpoint of another tool becomes a run, as if it had been trained here up to step 0.

The folder appears whole or not at all. Its `best` and `last` checkpoints hold the same weights, so
that every command takes it, and training goes on from them with fresh moments of the optimizer.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from volumediff.config import build, overridden
from volumediff.data.seen import Seen
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint, Origin, checked
from volumediff.importers._files import checkpoint_of, read
from volumediff.importers._published import published_with
from volumediff.samples.preparation_record import NAME as PREPARATION
from volumediff.samples.preparation_record import RunPreparation
from volumediff.samples.seen_record import NAME, sources_of
from volumediff.samples.statistics import Statistics
from volumediff.settings.run_config import fixed_settings, parse
from volumediff.storage import checkpoint
from volumediff.storage.digests import sha256_of_file
from volumediff.storage.folder import TEMPORARY
from volumediff.storage.records import write
from volumediff.tasks import build_task, resolved, task_of
from volumediff.training.run_folder import keep_config, record_session

__all__ = ["import_run"]


def import_run(
    kind: str,
    path: Path,
    run: Path,
    *,
    overrides: Sequence[str] = (),
    weights_only_pickle: bool = False,
) -> Path:
    """Writes the run that a checkpoint stands for; returns its folder.

    Arguments:
        kind: name of the importer, such as wdm
        path: the checkpoint, or the folder that its tool publishes, with one checkpoint in it
        run: the folder, which must not be there yet
        overrides: `key=value` overrides for the configuration of the run, and for arguments of the
            importer, such as importer.axes=RAS
        weights_only_pickle: see `read`

    Raises:
        UsageError: unknown kind, no such file, folder in use, an override that does not fit, or
            one that is needed
        DataError: the file is no checkpoint of this kind, or the disk is full; nothing is left
    """
    own = [word for word in overrides if word.startswith("importer.")]
    importer = build("importer", overridden({"importer": kind}, own)["importer"])
    if run.exists():
        raise UsageError(f"{run}: is there already; choose another folder with -o.")
    file = checkpoint_of(path)
    source = ForeignCheckpoint(
        read(file, weights_only_pickle=weights_only_pickle, without=importer.records),
        where=str(file),
        published=published_with(path, said=[word.partition("=")[0] for word in overrides]),
    )
    words = [word for word in overrides if word not in own]
    origin = importer.origin(source)
    scaling = importer.scaling(source)
    tree = overridden(importer.config(source), words)
    config = resolved(parse({**tree, "output": str(run)}, where=kind))
    hidden = run.parent / f"{TEMPORARY}{run.name}-{uuid.uuid4().hex}"
    try:
        task_of(config).keep(config, hidden)
        task = build_task(config, run=hidden)
        tensors = checked(importer, source, task.shapes())
        keep_config(hidden, config)
        names = task.recipe.scalars
        pairs = scaling or [(0.0, 1.0)] * len(names)
        Statistics(dict(zip(names, pairs, strict=True))).save(hidden)
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
        _keep_preparation(origin, hidden)
        facts = {"kind": kind, "sha256": sha256_of_file(file), "origin": asdict(origin)}
        record_session(hidden, {"imported": facts})
        os.rename(hidden, run)
    except OSError as error:
        raise DataError(f"{run}: cannot be written ({error.strerror}).") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return run


def _keep_preparation(origin: Origin, run: Path) -> None:
    """What was done to the volumes of the other tool, for what is done to new ones."""
    if origin.template is not None or origin.stripped:
        found = RunPreparation(
            template=origin.template, stripped=origin.stripped, n4=False, source=origin.name
        )
        write(run / PREPARATION, found)
