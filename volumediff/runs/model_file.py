"""A run in one file: what working with it takes, sealed, with a card that says what it is.

    NAME.safetensors   weights (bfloat16 where a rounding is harmless), the run's other files as
                       bytes, and a record: card, step and SHA-256 of the whole

The file is unpacked once, whole, into a cache folder named by its content; what lies there is a
run like any other. Names of subjects stay behind: of whoever was seen, hashes go along. Copies of
what a run has from others, such as the autoencoder of its latents, go along as they are.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import volumediff
from volumediff.config.shipped_models import MODEL_SUFFIX, SHIPPED, shipped_models
from volumediff.data.seen import Seen
from volumediff.errors import DataError, UsageError
from volumediff.hub.place import HubPlace
from volumediff.runs.added_healthy import NAME as HEALTHY
from volumediff.runs.added_healthy import added_digest
from volumediff.runs.trained import CARD, Trained
from volumediff.samples.seen_record import ADDED, seen_by
from volumediff.samples.seen_record import NAME as SEEN
from volumediff.settings.bound_files import bound_of
from volumediff.settings.import_record import ImportRecord, import_records_of
from volumediff.settings.run_config import RunConfig, parse, saved_config
from volumediff.settings.sections import POPULATION
from volumediff.storage import checkpoint
from volumediff.storage.atomic import free_space
from volumediff.storage.digests import sha256_of_file
from volumediff.storage.folder import TEMPORARY
from volumediff.storage.records import Record, read, write, write_text
from volumediff.storage.seal import seal_json
from volumediff.storage.tensors import load, save
from volumediff.tasks import load_task
from volumediff.tasks._borrowing import FOLDER, keep_anonymous, kept_copies

__all__ = [
    "CARD",
    "CardText",
    "ModelCard",
    "card_of",
    "card_of_file",
    "copy_run",
    "pack",
    "resolve",
    "unpack",
]

# Of the training alone, or with names of subjects.
LEFT_OUT = {
    *("checkpoints", "previews", "samples", "tuning", "errors"),
    *("metrics.jsonl", "progress.png", "run.lock", "splits.json", "sources.json"),
    *("manifest.json", "config.yaml", CARD),
}
NAMED = (SEEN, ADDED, HEALTHY)  # hold names or places of subjects
ADVICE = "install the package again, or export the run again"


class CardText(Record):
    """What people write about a model: `volumediff export --card FILE.yaml`.

    Arguments:
        about: what it finds, in which images
        data: what it was trained on, with sources
        licence: of data and weights
        limits: what it is not good for
        metrics: measured figures by name, each with its data
    """

    about: str
    data: tuple[str, ...]
    licence: str
    limits: tuple[str, ...]
    metrics: dict[str, str] = Field(default_factory=dict)


class ModelCard(CardText):
    """The card in a model file; `volumediff info NAME` shows it.

    Arguments:
        name: of the model
        verb: what it does, as a command: `localize` or `segment`
        method: it is meant for; what it fits on volumes is in the file
        overrides: of the method
        step: of the training
        channels: that a volume must have
        spacing_mm, shape: of the volumes that the model sees
        seen: part -> number of subjects whose hashes are in the file
        volumediff: version that exported it
        imported: where weights come from that were not trained here
    """

    name: str
    verb: Literal["localize", "segment"] = "localize"
    method: str
    overrides: tuple[str, ...]
    step: int
    channels: int
    spacing_mm: tuple[float, ...] | None
    shape: tuple[int, ...] | None
    seen: dict[str, int]
    volumediff: str
    imported: tuple[ImportRecord, ...] = ()


class StoredModel(Record):
    """The record of a model file: its card, and what the checkpoint said beside its tensors."""

    format: Literal[1] = 1
    card: ModelCard
    config: str
    step: int
    borrowed: str


def copy_run(trained: Trained, target: Path) -> None:
    """A run's folder with its best weights as a model file will hold them, to be calibrated.

    Weights are rounded to bfloat16: parameters with several dimensions; the others are few, and
    buffers such as wavelet filters are exact.

    Raises:
        UsageError: the run needs the folder of another one, which one file cannot hold
    """
    copies = kept_copies(trained.run)
    kept = {Path(copy.facts.run).name for copy in copies.values()}
    absent = [name for name, of in trained.config.borrows().items() if of.name not in kept]
    if absent:
        raise UsageError(
            f"{trained.name}: needs the folders of other runs ({', '.join(absent)}); expected a "
            "run that stands alone, such as one in voxel or latent space."
        )
    found = checkpoint.find(trained.run, "best")
    if found is None:
        raise UsageError(f"{trained.name}: has no 'best' checkpoint yet; train it further.")
    target.mkdir(parents=True)
    for path in _carried(trained.run):
        inside = path.relative_to(trained.run)
        if inside.parts[0] == FOLDER or (
            # of the weights before they were rounded, apart from the volumes for a calibration
            inside.parts[0] == "calibration" and inside.as_posix() not in NAMED
        ):
            continue
        place = target / inside
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for name, copy in copies.items():
        if name in trained.task.training_copies:
            continue
        config = _anonymous(copy.config, Path(copy.facts.run).name)
        keep_anonymous(target, name, copy, config=config)
    if (trained.run / "splits.json").is_file():
        shutil.copyfile(trained.run / "splits.json", target / "splits.json")
    # An adapter is written into the weights that it corrects.
    alone = {"output": target, "adapter": None}
    if trained.config.adapter is not None:
        alone["start_from"] = None
    config = trained.config.model_copy(update=alone)
    write_text(target / "config.yaml", config.to_yaml())
    parameters = {name for name, p in trained.task.module.named_parameters() if p.ndim > 1}
    tensors = {
        name: value.bfloat16().float() if name in parameters and _is_float(value) else value
        for name, value in load_task(trained.run, found=found).state().items()
    }
    _checkpoint(target, tensors, step=found.step, borrowed=trained.task.digest)


def pack(
    folder: Path,
    file: Path,
    *,
    name: str,
    card: CardText,
    verb: Literal["localize", "segment"],
    method: str,
    words: list[str],
) -> ModelCard:
    """Writes the model file of a folder that `copy_run` made, and in which the method is fitted.

    Arguments:
        folder: of the run
        file: the model file
        name: of the model
        card: what people say about it
        verb: what it does
        method, words: method that it is meant for, with overrides

    Raises:
        DataError: the folder is damaged, or the file cannot be written
    """
    config = saved_config(folder)
    found = checkpoint.find(folder, "best")
    assert found is not None, "copy_run has written it"
    seen = _renamed(seen_by(folder), name)
    parts = [part for r in seen.rosters for part in r.parts["patient"].values()]
    spacing = config.data.preprocessing.spacing()
    known = ModelCard(
        **card.model_dump(),
        name=name,
        verb=verb,
        method=method,
        overrides=tuple(words),
        step=found.step,
        channels=config.data.channel_count,
        spacing_mm=spacing,
        shape=config.data.preprocessing.shape,
        seen={part: parts.count(part) for part in sorted(set(parts))},
        volumediff=volumediff.__version__,
        imported=import_records_of(folder),
    )
    tensors: dict[str, Tensor] = {}
    for key, value in found.tensors("ema").items():
        small = _is_float(value) and bool((value.bfloat16().to(value.dtype) == value).all())
        tensors[f"weights/{key}"] = value.bfloat16() if small else value
    added = added_digest(folder)
    for path in _carried(folder):
        inside = path.relative_to(folder).as_posix()
        if inside not in NAMED:
            if added:  # the volumes stay behind, and with them what names them
                inside = inside.replace(f"-{added}.", ".")
            raw = np.frombuffer(path.read_bytes(), np.uint8).copy()
            tensors[f"files/{inside}"] = torch.from_numpy(raw)
    tensors[f"files/{SEEN}"] = torch.frombuffer(bytearray(_saved(seen)), dtype=torch.uint8)
    record = StoredModel(
        card=known,
        config=_anonymous(config, name),
        step=found.step,
        borrowed=found.state["borrowed"],
    )
    save(file, tensors, record)
    return known


def resolve(run: Path | str) -> Path:
    """The folder of a run: itself, or that of a model file, or of a model that ships, unpacked.

    Raises:
        UsageError: a name that is neither a folder, a file nor a shipped model
        DataError: the file is damaged, or the cache cannot be written
    """
    place = Path(run)
    if place.is_dir():
        return place
    if place.is_file():
        if place.suffix == MODEL_SUFFIX:
            return _unpacked(place)
        raise UsageError(f"{place}: expected the folder of a run, or a model file {MODEL_SUFFIX}.")
    if HubPlace.names_one(str(run)):
        raise UsageError(f"{run}: is on the hub; fetch it first: volumediff pull {run} -o RUN.")
    if str(run) in shipped_models():
        return _unpacked(SHIPPED / f"{run}{MODEL_SUFFIX}")
    if len(place.parts) == 1:
        models = ", ".join(shipped_models()) or "none"
        raise UsageError(
            f"{run}: no folder, no model file, and no model that ships with this installation "
            f"({models}); give one of these."
        )
    return place


def card_of(run: Path) -> ModelCard | None:
    """The card of an unpacked model; None for a run that was trained here."""
    path = run / CARD
    return read(path, ModelCard, advice=ADVICE) if path.is_file() else None


def card_of_file(file: Path) -> ModelCard:
    """The card of a model file; verifies the file.

    Raises:
        DataError: it is no model file, or damaged
    """
    return load(file, StoredModel, advice=ADVICE)[1].card


def unpack(file: Path, target: Path) -> None:
    """Makes the run's folder of a model file; it appears whole.

    Raises:
        DataError: the file is no model file or damaged, or the folder cannot be written
    """
    tensors, record = load(file, StoredModel, advice=ADVICE)
    hidden = target.parent / f"{TEMPORARY}{target.name}-{uuid.uuid4().hex}"
    try:
        hidden.mkdir(parents=True)
        weights = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "weights":
                weights[name] = value.float() if value.dtype == torch.bfloat16 else value
                continue
            place = hidden / name
            if kind != "files" or not place.resolve().is_relative_to(hidden.resolve()):
                raise DataError(f"{file}: holds '{key}', which no model file has; {ADVICE}.")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(value.numpy().tobytes())
        write_text(hidden / "config.yaml", record.config)
        _checkpoint(hidden, weights, step=record.step, borrowed=record.borrowed)
        write(hidden / CARD, record.card)
        os.rename(hidden, target)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); {free_space(target)}."
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _unpacked(file: Path) -> Path:
    """The run's folder in the cache, made where it is not there."""
    # Another version writes checkpoints of another format into a folder of its own.
    target = _cache() / f"{file.stem}-{sha256_of_file(file)[:16]}-{checkpoint.FORMAT}"
    if (target / CARD).is_file():
        return target
    try:
        unpack(file, target)
    except DataError as error:
        if (target / CARD).is_file():  # another process was first
            return target
        if target.parent.is_dir() and os.access(target.parent, os.W_OK):
            raise
        raise DataError(f"{error} Set XDG_CACHE_HOME to a folder that can.") from None
    return target


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("volumediff") / "models"


def _checkpoint(run: Path, tensors: dict[str, Tensor], *, step: int, borrowed: str) -> None:
    checkpoint.save(
        run,
        "best",
        step=step,
        tensors={"weights": tensors, "ema": tensors},
        state={
            "best": {},
            "borrowed": borrowed,
            "validated": 0,
            "bound": bound_of(run).model_dump(),
        },
        keep=1,
    )


def _carried(run: Path) -> Iterator[Path]:
    """The files of a run that a model file holds."""
    for path in sorted(run.rglob("*")):
        first = path.relative_to(run).parts[0]
        if path.is_file() and first not in LEFT_OUT and not first.startswith("."):
            yield path


def _is_float(value: Tensor) -> bool:
    return value.dtype == torch.float32


def _renamed(seen: Seen, name: str) -> Seen:
    """Rosters by the model's name: paths of the machine that trained it stay behind."""
    rosters = tuple(type(r)(f"the model {name}", r.parts) for r in seen.rosters)
    unknown = tuple(f"a model that {name} began with" for _ in seen.unknown[:1])
    return Seen(rosters, unknown)


def _saved(seen: Seen) -> bytes:
    return seal_json(json.loads(seen.to_json()))


def _anonymous(config: RunConfig, name: str) -> str:
    """The configuration with the last names of all paths: where data lay is nobody's business."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        if isinstance(value, str) and os.sep in value and value != POPULATION:
            return Path(value).name
        return value

    tree = plain(config.dump())
    tree["output"], tree["data"]["cache"] = name, None
    return parse(tree, where=name).to_yaml(f"The configuration of the model {name}.")
