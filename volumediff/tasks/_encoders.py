"""Autoencoders of other runs, for a latent space and its images, or for a prior of its codes.

A run keeps copies of them, and then stands alone.
"""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from volumediff.autoencoders import Autoencoder
from volumediff.config import build, component, name_of
from volumediff.errors import UsageError
from volumediff.image_codecs import ImageCodec
from volumediff.recipes._base import Recipe
from volumediff.recipes.label_maps import LabelMapRecipe
from volumediff.settings.import_record import NAME as IMPORT
from volumediff.settings.run_config import RunConfig
from volumediff.spaces import StateSpace
from volumediff.tasks._base import Task
from volumediff.tasks._borrowing import keep, kept, source_of, take
from volumediff.tasks._loading import build_task, load_task
from volumediff.tasks._oracle import ORACLE, OracleDice, oracle_in

__all__ = [
    "IMAGE",
    "STATES",
    "BorrowedEncoder",
    "BorrowedEncoders",
    "encoder",
    "encoder_paths",
    "keep_encoders",
    "space_of",
]

# Names of the copies in RUN/borrowed: the autoencoder of what is diffused, and that of images.
STATES, IMAGE = "autoencoder", "image"
LABEL_MAPS = LabelMapRecipe.teaches


@dataclass(frozen=True, eq=False)
class BorrowedEncoder:
    """An autoencoder of another run.

    Arguments:
        autoencoder: with the run's weights, or fresh ones
        digest: SHA-256 of the weights; empty where they are fresh
        recipe: that it was trained on
        oracle: what it gives back of masks, where that was measured
    """

    autoencoder: Autoencoder
    digest: str
    recipe: Recipe
    oracle: OracleDice | None = None


@dataclass(frozen=True, eq=False)
class BorrowedEncoders:
    """What a space is made of, by the name of the copy.

    Arguments:
        each: autoencoders by name
        frozen: those parts that are not trained
    """

    each: Mapping[str, BorrowedEncoder]
    frozen: tuple[nn.Module, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, of the digests of all where there are several."""
        digests = [found.digest for _, found in sorted(self.each.items())]
        if len(digests) < 2 or not any(digests):
            return "".join(digests)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def encoder_paths(spec: Any) -> dict[str, str]:
    """Key below a component -> folder of the autoencoder's run that it names."""
    if not isinstance(spec, Mapping):
        return {}
    found = {}
    if spec.get("autoencoder"):
        found["autoencoder"] = str(spec["autoencoder"])
    image = spec.get("image")
    if isinstance(image, str):
        found["image"] = image
    inner = encoder_paths(spec.get("inner"))
    return {
        **found,
        **{f"image.{key}": path for key, path in encoder_paths(image).items()},
        **{f"inner.{key}": path for key, path in inner.items()},
    }


def _name(key: str) -> str:
    """Name of the copy of the run that a key names."""
    return IMAGE if "image" in key.split(".") else STATES


def keep_encoders(spec: Any, run: Path, *, where: str) -> None:
    """Copies the autoencoders that a component names into a run, once.

    Raises:
        UsageError: a run is not trained yet
        DataError: a checkpoint is damaged
    """
    for key, path in encoder_paths(spec).items():
        if kept(run, _name(key)) is not None:
            continue
        place = f"{where}.{key}"
        if not (Path(path) / "config.yaml").is_file():
            raise UsageError(
                f"{place} = {path}: no such run; train it first: volumediff train "
                f"configs/autoencoders/{Path(path).name}.yaml output={path}"
            )
        tensors = load_task(Path(path)).module.state_dict()
        keep(run, _name(key), of=Path(path), tensors=tensors, where=place, beside=[ORACLE, IMPORT])


def encoder(
    path: str,
    run: Path | None,
    where: str,
    *,
    channels: tuple[str, ...] | None,
    recipe: Mapping[str, Any] | None = None,
    name: str = STATES,
) -> BorrowedEncoder:
    """The autoencoder that a component asks for.

    Arguments:
        path: folder of its run
        run: folder of this run, which keeps a copy; None takes fresh weights
        where: key that names the run
        channels: images of this run, for an autoencoder that is not trained yet
        recipe: keys of this run's recipe; the labels and their coding are those of an autoencoder
            of masks that is not trained yet
        name: of the copy

    Raises:
        UsageError: no such run, or it trains something else
        DataError: the run's copy is damaged
    """
    if not path:
        raise UsageError(f"{where}: expected the folder of an autoencoder's run.")
    copy = kept(run, name)
    if copy is not None:
        autoencoder, trained_on = _autoencoder(copy.config)
        take(autoencoder, copy)
        return BorrowedEncoder(autoencoder, copy.digest, trained_on, oracle_in(copy.folder))
    source = source_of(Path(path), where=where, folder="autoencoders", channels=channels)
    if not (Path(path) / "config.yaml").is_file() and recipe is not None:
        source = _for_labels(source, recipe)
    autoencoder, trained_on = _autoencoder(source)
    return BorrowedEncoder(autoencoder, "", trained_on)


def _for_labels(source: RunConfig, recipe: Mapping[str, Any]) -> RunConfig:
    """A configuration that is not trained yet, for the labels of the run that will use it."""
    own = getattr(source, "recipe", None)
    if not isinstance(own, Mapping) or component("recipe", own["name"]).teaches != LABEL_MAPS:
        return source
    wanted = {key: recipe[key] for key in ("labels", "coding") if key in recipe}
    return source.model_copy(update={"recipe": {**own, **wanted}})


def _autoencoder(config: RunConfig) -> tuple[Autoencoder, Recipe]:
    task: Task = build_task(config)
    found = task.lend(Autoencoder)
    if found is None:
        raise UsageError(
            f"{config.output}: expected the run of an autoencoder with a latent grid, such as kl "
            f"or vq, got {name_of(type(task.module))}."
        )
    return found, task.recipe


def space_of(
    spec: str | Mapping[str, Any] | None,
    run: Path | None,
    *,
    channels: tuple[str, ...] | None,
    recipe: Mapping[str, Any] | None = None,
    where: str = "space",
) -> tuple[StateSpace, BorrowedEncoders]:
    """The space of a specification, with the autoencoders of runs in place of their paths.

    Arguments:
        spec: of the space
        run: folder of this run, which keeps copies; None takes fresh weights
        channels: images of this run
        recipe: keys of its recipe
        where: key of the space

    Raises:
        UsageError: no such run, or parts that do not fit
        DataError: a copy is damaged
    """
    parts = {"name": spec} if isinstance(spec, str) else dict(spec or {})
    takes = inspect.signature(component("space", str(parts.get("name")))).parameters
    if "autoencoder" in parts and "autoencoder" not in takes:
        raise UsageError(
            f"{where}: expected a latent space, for the autoencoder {parts['autoencoder']}, got "
            f"{parts.get('name')}; use a latent pipeline."
        )
    derived: dict[str, Any] = {}
    each: dict[str, BorrowedEncoder] = {}
    frozen: tuple[nn.Module, ...] = ()
    if "autoencoder" in takes:
        path = str(parts.pop("autoencoder", "") or "")
        found = encoder(path, run, f"{where}.autoencoder", channels=channels, recipe=recipe)
        each[STATES], frozen = found, (found.autoencoder,)
        derived |= {"autoencoder": found.autoencoder, "digest": found.digest}
        if "image" in takes:
            image = parts.pop("image", None)
            codec = None
            if image is not None:
                codec, borrowed = _image_codec(
                    image, run, channels=channels, states=found.autoencoder, where=f"{where}.image"
                )
                each |= borrowed
                frozen += codec.frozen_parts
            derived["image"] = codec
    if "inner" in takes:
        inner = parts.pop("inner", None)
        derived["inner"], within = space_of(
            inner, run, channels=channels, recipe=recipe, where=f"{where}.inner"
        )
        each, frozen = {**each, **within.each}, frozen + within.frozen
    space = build("space", parts, where=where, **derived)
    return space, BorrowedEncoders(each, frozen)


def _image_codec(
    spec: Any,
    run: Path | None,
    *,
    channels: tuple[str, ...] | None,
    states: Autoencoder,
    where: str,
) -> tuple[ImageCodec, dict[str, BorrowedEncoder]]:
    """The codec of images beside that of the states, and the autoencoder that it is made of.

    Arguments:
        spec: the folder of an autoencoder's run, or a component of the family image_codec
        states: the autoencoder of what is diffused, whose grid it ends on
    """
    if isinstance(spec, str):
        spec, place = {"name": "frozen", "autoencoder": spec}, where
    elif isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        spec, place = dict(spec), f"{where}.autoencoder"
    else:
        raise UsageError(
            f"{where}: expected the folder of an autoencoder's run, or a mapping with the name of "
            f"an image codec such as {{name: strided}}, got {spec!r}."
        )
    takes = inspect.signature(component("image_codec", spec["name"])).parameters
    derived: dict[str, Any] = {}
    borrowed = {}
    if "autoencoder" in takes:
        path = str(spec.pop("autoencoder", "") or "")
        found = encoder(path, run, place, channels=channels, name=IMAGE)
        borrowed[IMAGE] = found
        derived["autoencoder"] = found.autoencoder
    known = {
        "inputs": len(channels or ("",)),
        "stride": states.stride,
        "planar": states.planar,
    }
    derived |= {name: value for name, value in known.items() if name in takes}
    return build("image_codec", spec, where=where, **derived), borrowed
