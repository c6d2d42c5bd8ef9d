"""The inventory of `info`: what ships, and which method runs on which pipeline."""

from functools import cache
from typing import TYPE_CHECKING, Any

from volumediff import config
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.anomaly.methods._base import Method
    from volumediff.autoencoders import Reconstructor
    from volumediff.component import Component
    from volumediff.model import Model

__all__ = [
    "inventory",
    "localization",
    "needs_of",
    "pipelines_of",
    "segmentation",
    "segments_on",
    "trained_by",
    "translates_on",
    "translation",
]


def inventory() -> dict[str, Any]:
    """Names that commands and configurations take, by family."""
    from volumediff.anomaly.method_files import read_method

    return {
        "pipelines": config.shipped("pipelines"),
        "autoencoders": config.shipped("autoencoders"),
        "classifiers": config.shipped("classifiers"),
        "residual_segmenters": config.shipped("residual_segmenters"),
        "probes": config.shipped("probes"),
        "students": config.shipped("students"),
        "localization methods": config.shipped("anomaly"),
        "segmentation methods": config.shipped("segmentation"),
        "translation methods": config.shipped("translation"),
        "components": {family: config.available(family) for family in config.families()},
        "localization": localization(),
        "segmentation": segmentation(),
        "translation": translation(),
        "localization needs": {n: needs_of(read_method(n)) for n in config.shipped("anomaly")},
    }


@cache
def localization() -> dict[str, dict[str, str]]:
    """method -> pipeline -> "ok", or why no checkpoint of the pipeline serves the method."""
    return {name: pipelines_of(name) for name in config.shipped("anomaly")}


@cache
def segmentation() -> dict[str, dict[str, str]]:
    """method -> pipeline -> "ok", or why the method cannot be trained or used on the pipeline."""
    return {name: segments_on(name) for name in config.shipped("segmentation")}


def segments_on(name: str) -> dict[str, str]:
    """pipeline -> "ok", or why a segmentation method cannot be trained or used on the pipeline."""
    return {pipeline: _segments(name, path) for pipeline, path in _smallest().items()}


def _segments(name: str, path: str) -> str:
    import torch

    from volumediff.segmentation.method_files import load_segmenter
    from volumediff.settings.run_config import load_run_config
    from volumediff.tasks import build_task

    try:
        with torch.device("meta"):
            task = build_task(load_run_config(path, [f"method={name}"]))
            reason = task.refusals.segment
            if reason is not None:
                return reason
            load_segmenter(name).check(task.result)
    except (ValueError, UsageError) as error:
        return str(error)
    return "ok"


@cache
def translation() -> dict[str, dict[str, str]]:
    """method -> pipeline -> "ok", or why the method cannot be trained or used on the pipeline."""
    return {name: translates_on(name) for name in config.shipped("translation")}


def translates_on(name: str) -> dict[str, str]:
    """pipeline -> "ok", or why a translation method cannot be trained or used on the pipeline."""
    return {pipeline: _translates(name, path) for pipeline, path in _smallest().items()}


def trained_by(name: str) -> str:
    """The translation method whose training half a method is for: its own, or the default's."""
    from volumediff.inference.translate import DEFAULT

    return name if "train" in config.load(config.config_path("translation", name)) else DEFAULT


def _translates(name: str, path: str) -> str:
    import torch

    from volumediff.settings.run_config import load_run_config
    from volumediff.tasks import build_task
    from volumediff.translation.method_files import load_translator

    words = [f"method={trained_by(name)}", "data.channels=[T1w,FLAIR]"]
    try:
        with torch.device("meta"):
            task = build_task(load_run_config(path, words))
            reason = task.refusals.translate
            if reason is not None:
                return reason
            load_translator(name).check(task.result)
    except (ValueError, UsageError) as error:
        return str(error)
    return "ok"


def _smallest() -> dict[str, str]:
    """The smallest shipped configuration of each pipeline."""
    pipelines: dict[str, list[str]] = {}
    for shipped in config.shipped("pipelines"):
        pipelines.setdefault(shipped.rpartition("_")[0], []).append(shipped)
    return {p: min(n, key=lambda s: int(s.rpartition("_")[2])) for p, n in pipelines.items()}


def pipelines_of(name: str) -> dict[str, str]:
    """pipeline -> "ok", or why no checkpoint of the pipeline serves a method.

    The smallest configuration of a pipeline is built without memory, as the method needs it to be
    trained. The last column is that of the runs of autoencoders, of the method's own kind.
    """
    from volumediff.anomaly.method_files import read_method

    method = read_method(name)
    columns = {**_smallest(), "autoencoder": _autoencoder(method)}
    return {pipeline: _suits(method, path) for pipeline, path in columns.items()}


def needs_of(method: "Method") -> list[str]:
    """What a method needs beyond the shipped configurations of pipelines.

    Returns:
        configurations and overrides with which its run is trained, then options and overrides
        that name the runs it borrows models from, with a configuration that trains such a one
    """
    own = [r.configuration for r in method.requirements() if r.configuration is not None][:1]
    found = own + [word for r in method.requirements() for word in r.words]
    for request in method.requests():
        if request.loan.required:
            example = _configuration(request.component)
            example = example or config.shipped(request.loan.configurations)[0]
            named = request.name == request.loan.option
            found.append(f"--{request.name}" if named else f"{request.name}={example}")
    return list(dict.fromkeys(found))


def _configuration(component: "Component") -> str | None:
    """The configuration that trains the autoencoder which a component is about."""
    needs = (need for _, part in component.parts() for need in part.needs)
    return next((n.configuration for n in needs if n.configuration is not None), None)


def _autoencoder(method: "Method") -> str:
    """The configuration of the autoencoder that a method is about, a VAE where any will do."""
    return _configuration(method) or "vae_64"


# What a word of `needs_of` stands for, where it takes arguments.
FULL = {
    "recipe.corruption=pasted": ("recipe.corruption={name: pasted, masks: LESION_MASKS}",),
    "recipe=class_conditional": (
        "recipe={name: class_conditional, attribute: group, values: [healthy, sick]}",
    ),
    "recipe=modality_cycle": ("recipe=modality_cycle", "data.channels=[FLAIR,T2w]"),
    "kernel=cold": ("kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}",),
    "kernel=discrete": (
        "kernel={name: discrete, schedule: {name: cosine, zero_terminal_snr: true}}",
    ),
    "space.autoencoder=binary": ("space.autoencoder=binary_64",),
}


def _suits(method: "Method", path: str) -> str:
    words: tuple[str, ...] = ()
    if path in config.shipped("pipelines"):
        words = tuple(word for need in method.requirements() for word in need.words)
    try:
        method.check(_model(path, tuple(dict.fromkeys(words))), borrowed=False)
    except (ValueError, UsageError) as error:
        return str(error)
    return "ok"


@cache
def _model(path: str, words: tuple[str, ...]) -> "Model | Reconstructor":
    import torch

    from volumediff.settings.run_config import load_run_config
    from volumediff.tasks import build_task

    # Where the space has no autoencoder to be changed, the rest of the words says why not.
    if "space.autoencoder" not in load_run_config(path).borrows():
        words = tuple(w for w in words if not w.startswith("space.autoencoder="))
    with torch.device("meta"):
        full = [each for word in words for each in FULL.get(word, (word,))]
        return build_task(load_run_config(path, full)).module
