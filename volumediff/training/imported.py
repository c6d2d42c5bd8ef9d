"""A checkpoint of another tool becomes a run, as if it had been trained here up to step 0.

The folder appears whole or not at all. Its `best` and `last` checkpoints hold the same weights, so
that every command takes it, and training goes on from them with fresh moments of the optimizer.
"""

import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from volumediff.config import build, overridden, suggestion
from volumediff.data.seen import Seen
from volumediff.errors import DataError, UsageError
from volumediff.hub.place import HubPlace
from volumediff.importers._base import ForeignCheckpoint, Origin, checked
from volumediff.importers._files import checkpoint_of, read
from volumediff.importers._hub import fetched_checkpoint
from volumediff.importers._published import published_with
from volumediff.samples.preparation_record import NAME as PREPARATION
from volumediff.samples.preparation_record import RunPreparation
from volumediff.samples.seen_record import NAME, sources_of
from volumediff.samples.statistics import Statistics
from volumediff.settings.import_record import ImportRecord, keep_import_record
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
    path: Path | str,
    run: Path,
    *,
    overrides: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    weights_only_pickle: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes the run that a checkpoint stands for; returns its folder.

    Arguments:
        kind: name of the importer, such as wdm
        path: the checkpoint, the folder that its tool publishes, with one checkpoint in it, or a
            place on the Hugging Face Hub, hf:OWNER/NAME[@REVISION][/FILE]
        run: the folder, which must not be there yet
        overrides: `key=value` overrides for the configuration of the run, and for arguments of the
            importer, such as importer.axes=RAS
        ranges: condition -> its lowest and highest value in the training of the other tool, over
            those that the importer knows
        weights_only_pickle: see `read`
        report: receives progress lines

    Raises:
        UsageError: unknown kind, no such file or repository, folder in use, an override that does
            not fit, or one that is needed
        DataError: the file is no checkpoint of this kind, or the disk is full; nothing is left
    """
    own = [word for word in overrides if word.startswith("importer.")]
    importer = build("importer", overridden({"importer": kind}, own)["importer"])
    if run.exists():
        raise UsageError(f"{run}: is there already; choose another folder with -o.")
    given, repository = str(path), None
    if HubPlace.names_one(given):
        path, repository = fetched_checkpoint(
            HubPlace.parse(given), weights_only_pickle=weights_only_pickle, report=report
        )
    file = checkpoint_of(Path(path))
    source = ForeignCheckpoint(
        read(file, weights_only_pickle=weights_only_pickle, without=importer.records),
        where=str(file) if repository is None else given,
        published=published_with(Path(path), said=[word.partition("=")[0] for word in overrides]),
    )
    words = [word for word in overrides if word not in own]
    origin = importer.origin(source)
    scaling, known = importer.scaling(source), importer.training_ranges(source)
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
        found = {**known, **_sound(ranges, names)}
        Statistics(dict(zip(names, pairs, strict=True)), ranges=found).save(hidden)
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
        found = ImportRecord(
            kind=kind,
            name=origin.name,
            address=origin.address,
            licence=(repository and repository.licence) or origin.licence,
            source=file.name if repository is None else given,
            commit=None if repository is None else repository.commit,
            sha256=sha256_of_file(file),
        )
        keep_import_record(hidden, found)
        record_session(hidden, {"imported": found.model_dump()})
        os.rename(hidden, run)
    except OSError as error:
        raise DataError(f"{run}: cannot be written ({error.strerror}).") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return run


def _sound(
    ranges: Mapping[str, tuple[float, float]], names: Sequence[str]
) -> Mapping[str, tuple[float, float]]:
    """The ranges as they are given.

    Raises:
        UsageError: the run has no such condition, or the ends do not rise
    """
    for name, (low, high) in ranges.items():
        if name not in names:
            what = ", ".join(names) or "no number"
            raise UsageError(
                f"range {name}: the run is conditioned on {what}.{suggestion(name, list(names))}"
            )
        if not -math.inf < low < high < math.inf:
            raise UsageError(f"range {name}: expected a rising range, got {low:g} to {high:g}.")
    return ranges


def _keep_preparation(origin: Origin, run: Path) -> None:
    """What was done to the volumes of the other tool, for what is done to new ones."""
    if origin.template is not None or origin.stripped:
        found = RunPreparation(
            template=origin.template, stripped=origin.stripped, n4=False, source=origin.name
        )
        write(run / PREPARATION, found)
