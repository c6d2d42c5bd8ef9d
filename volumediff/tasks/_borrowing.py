"""How a run uses models of another one: verified, checked for agreement, copied or bound.

Small things are copied once into RUN/borrowed/NAME, verified like a checkpoint, and the run stands
alone. What is too large to copy is read from the other run whenever this one is built. Either way
checkpoints hold the SHA-256 of the borrowed weights under `borrowed`, and a run goes on with no
others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from volumediff.config import config_path
from volumediff.errors import DataError, UsageError
from volumediff.settings.run_config import RunConfig, load_run_config, saved_config
from volumediff.storage.digests import sha256_of_file
from volumediff.storage.folder import MANIFEST, publish, verified
from volumediff.storage.records import Record, parse_file
from volumediff.storage.seal import seal_text
from volumediff.storage.tensors import load_plain, stream
from volumediff.tasks._base import Task, best_of
from volumediff.tasks._loading import build_task, load_task

__all__ = [
    "FOLDER",
    "BorrowedRun",
    "Kept",
    "borrowed",
    "keep",
    "keep_anonymous",
    "keep_copy",
    "kept",
    "kept_copies",
    "source_of",
    "take",
]

FOLDER = "borrowed"
ADVICE = "restore the folder from a backup"


@dataclass(frozen=True, eq=False)
class BorrowedRun:
    """Another run, as it is read for this one.

    Arguments:
        task: with the averaged weights of its best checkpoint, or fresh ones
        digest: SHA-256 of these weights; empty where they are fresh
    """

    task: Task
    digest: str


class BorrowedFacts(Record):
    """facts.json: folder, checkpoint and SHA-256 of the weights of what was copied."""

    run: str
    checkpoint: str
    weights_sha256: str


@dataclass(frozen=True, eq=False)
class Kept:
    """What a run keeps of another one.

    Arguments:
        config: of the other run
        facts: where it was copied from
        tensors: what was copied of it
        digest: SHA-256 of the file of these tensors
        folder: where the copy is, verified
    """

    config: RunConfig
    facts: BorrowedFacts
    tensors: Mapping[str, Tensor]
    digest: str
    folder: Path


def source_of(
    of: Path,
    *,
    where: str,
    folder: str = "pipelines",
    channels: tuple[str, ...] | None = None,
) -> RunConfig:
    """The configuration of a run, or a shipped one of its name where it is not trained yet.

    Arguments:
        of: folder of the run
        where: key that names it
        folder: of shipped configurations
        channels: images of the run that borrows; what stands for a run that is not trained yet,
            and names none, gets the same

    Raises:
        UsageError: no such run and no shipped configuration of this name
    """
    try:
        if (of / "config.yaml").is_file():
            return saved_config(of)
        name = str(of) if of.suffix == ".yaml" else of.name
        config = load_run_config(config_path(folder, name))
    except UsageError as error:
        raise UsageError(
            f"{where} = {of}: no such run and no shipped configuration of this name ({error})"
        ) from None
    data = config.data.model_copy(update={"channels": config.data.channels or channels})
    return config.model_copy(update={"data": data})


def borrowed(of: Path, *, where: str, run: Path | None, folder: str = "pipelines") -> BorrowedRun:
    """Another run, with its weights if this one is to use them.

    Arguments:
        of: folder of the other run
        where: key that names it
        run: folder of this run; None, as for the planner, takes fresh weights
        folder: of shipped configurations that stand for runs that are not trained yet

    Raises:
        UsageError: no such run, or not trained yet
        DataError: its checkpoint is damaged
    """
    if run is None:
        return BorrowedRun(build_task(source_of(of, where=where, folder=folder)), "")
    found = best_of(of, where=where)
    return BorrowedRun(load_task(of), found.digest)


def keep(
    run: Path,
    name: str,
    *,
    of: Path,
    tensors: Mapping[str, Tensor],
    where: str,
    beside: Sequence[str] = (),
) -> None:
    """Copies tensors of another run, with its configuration, into RUN/borrowed/NAME.

    Arguments:
        run: folder of this run
        name: of the copy
        of: folder of the other run
        tensors: what is copied
        where: key that names the other run
        beside: files of the other run that are copied, too, where there are any

    Raises:
        UsageError: the other run is not trained yet
        DataError: its checkpoint is damaged, or the disk is full
    """
    found = best_of(of, where=where)
    facts = BorrowedFacts(
        run=str(of.resolve()), checkpoint=found.path.name, weights_sha256=found.digest
    )
    publish(
        run / FOLDER / name,
        {
            "config.yaml": seal_text(saved_config(of).to_yaml()),
            "facts.json": facts.model_dump_json(indent=1).encode(),
            "weights.safetensors": lambda file: stream(file, tensors),
            **{file: (of / file).read_bytes() for file in beside if (of / file).is_file()},
        },
    )


def keep_copy(run: Path, name: str, *, of: Path) -> None:
    """Copies what another run keeps itself under the same name, if it does.

    Raises:
        DataError: it is damaged, or the disk is full
    """
    source, target = of / FOLDER / name, run / FOLDER / name
    if not source.is_dir() or target.is_dir():
        return
    names, folder = ("config.yaml", "facts.json", "weights.safetensors"), verified(source)
    publish(target, {name: (folder / name).read_bytes() for name in names})


def kept_copies(run: Path) -> dict[str, Kept]:
    """Everything that a run keeps of others, by name.

    Raises:
        DataError: it is damaged
    """
    names = sorted(path.name for path in (run / FOLDER).glob("*") if path.is_dir())
    found = {name: kept(run, name) for name in names}
    return {name: copy for name, copy in found.items() if copy is not None}


def keep_anonymous(run: Path, name: str, copy: Kept, *, config: str) -> None:
    """Copies what another run keeps, without places of the machine that it was made on.

    Arguments:
        run: folder of this run
        name: of the copy
        copy: what the other run keeps
        config: its configuration as YAML, without places

    Raises:
        DataError: the disk is full
    """
    files = {p.name: p.read_bytes() for p in copy.folder.iterdir() if p.name != MANIFEST}
    facts = copy.facts.model_copy(update={"run": Path(copy.facts.run).name})
    texts = {"config.yaml": seal_text(config), "facts.json": facts.model_dump_json().encode()}
    publish(run / FOLDER / name, {**files, **texts})


def kept(run: Path | None, name: str) -> Kept | None:
    """What a run keeps under a name; None where it keeps nothing.

    Raises:
        DataError: it is damaged
    """
    if run is None or not (run / FOLDER / name).is_dir():
        return None
    folder = verified(run / FOLDER / name)
    file = folder / "weights.safetensors"
    return Kept(
        saved_config(folder),
        parse_file(folder / "facts.json", BorrowedFacts, advice=ADVICE),
        load_plain(file, advice=ADVICE)[0],
        sha256_of_file(file),
        folder,
    )


def take(module: nn.Module, kept: Kept) -> None:
    """Puts the tensors that are kept into a module; what is not among them stays.

    Raises:
        DataError: they do not fit
    """
    try:
        module.load_state_dict({**module.state_dict(), **kept.tensors})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{kept.facts.run}: what is kept of it does not fit this run ({reason}); {ADVICE}."
        ) from None
