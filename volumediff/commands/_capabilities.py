"""What this installation has, and which method runs on which pipeline (`info`)."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from volumediff import config
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.anomaly.rows import Row
    from volumediff.autoencoders import Reconstructor
    from volumediff.model import Model

__all__ = ["inventory", "localization"]


def inventory() -> dict[str, Any]:
    """Names that commands and configurations take, by family."""
    from volumediff.anomaly.rows import load_row

    return {
        "pipelines": config.shipped("pipelines"),
        "autoencoders": config.shipped("autoencoders"),
        "classifiers": config.shipped("classifiers"),
        "comparers": config.shipped("comparers"),
        "localization methods": config.shipped("anomaly"),
        "segmentation methods": config.shipped("segmentation"),
        "components": {family: config.available(family) for family in config.families()},
        "localization": localization(),
        "localization needs": {n: _all_needs(load_row(n)) for n in config.shipped("anomaly")},
    }


@cache
def localization() -> dict[str, dict[str, str]]:
    """row -> pipeline -> "ok", or why no checkpoint of the pipeline serves the row.

    The smallest configuration of a pipeline is built without memory, as the row needs it to be
    trained. The last column is that of the runs of autoencoders, of the row's own kind.
    """
    from volumediff.anomaly.rows import load_row

    pipelines: dict[str, list[str]] = {}
    for name in config.shipped("pipelines"):
        pipelines.setdefault(name.rpartition("_")[0], []).append(name)
    smallest = {p: min(n, key=lambda s: int(s.rpartition("_")[2])) for p, n in pipelines.items()}
    rows = {name: load_row(name) for name in config.shipped("anomaly")}
    models = cache(_model)
    return {
        name: {
            pipeline: _suits(row, models, path)
            for pipeline, path in [*smallest.items(), ("autoencoder", autoencoder_of(row))]
        }
        for name, row in rows.items()
    }


def autoencoder_of(row: "Row") -> str:
    """The smallest shipped configuration of the kind of autoencoder that a row is about, of its
    first pass if it has one by another run; a VAE where any will do."""
    from volumediff.anomaly.lent import Lent
    from volumediff.anomaly.localizer import Localizer
    from volumediff.anomaly.rebuilder import Rebuilder

    if isinstance(row, Localizer) and isinstance(row.first, Lent):
        row = row.first.row
    wanted = row.autoencoder if isinstance(row, Rebuilder) else None
    names = _autoencoders()
    return names.get(wanted) or names[config.component("autoencoder", "vae")]


@cache
def _autoencoders() -> dict[type, str]:
    """The smallest shipped configuration of every kind of autoencoder."""
    found: dict[type, list[str]] = {}
    for name in config.shipped("autoencoders"):
        spec = config.load(config.config_path("autoencoders", name))["autoencoder"]
        found.setdefault(config.component("autoencoder", spec["name"]), []).append(name)
    return {kind: min(n, key=lambda s: int(s.rpartition("_")[2])) for kind, n in found.items()}


def _all_needs(row: "Row") -> list[str]:
    from volumediff.anomaly._classifier import takes_classifier

    return [*_needs(row), *["--classifier"] * takes_classifier(row)]


def _needs(row: "Row") -> tuple[str, ...]:
    """How a run must be trained for the row, beyond the shipped configurations."""
    from volumediff.anomaly.detectors import Detector
    from volumediff.anomaly.lent import Lent
    from volumediff.anomaly.localizer import Localizer
    from volumediff.anomaly.maps.posterior import Posterior
    from volumediff.anomaly.rebuilder import Rebuilder

    if isinstance(row, Rebuilder):
        return (autoencoder_of(row),)
    words = _training(row)
    if isinstance(row, Localizer | Detector) and row.corruption is not None:
        words.append(f"recipe.corruption={config.name_of(row.corruption)}")
    if isinstance(row, Localizer) and isinstance(row.first, Lent):
        words.append(f"first.run={autoencoder_of(row)}")
    if isinstance(row, Localizer) and isinstance(row.map, Posterior):
        words.append(f"map.run={config.shipped('comparers')[0]}")
    return tuple(words)


def _training(row: "Row") -> list[str]:
    """Recipe, kernel and noise, where they are not those of the shipped configurations."""
    from volumediff.anomaly._classifier import takes_classifier
    from volumediff.anomaly.detectors import Detector
    from volumediff.anomaly.localizer import Localizer
    from volumediff.kernels.discrete import Discrete
    from volumediff.kernels.gaussian import Gaussian as GaussianKernel
    from volumediff.noise import Gaussian

    if isinstance(row, Detector):
        return ["recipe=synthetic_anomalies"]
    labels = takes_classifier(row)  # they train the classifier, whatever the model knows of them
    words = ["recipe=class_conditional"] if row.supervision == "weak" and not labels else []
    if not isinstance(row, Localizer):
        return words
    if row.recipe is not None:
        words = [f"recipe={config.name_of(row.recipe)}"]
    if row.reference:
        words.append("recipe.reference=true")
    if row.kernel is not GaussianKernel:
        words.append(f"kernel={config.name_of(row.kernel)}")
    if row.kernel is Discrete:
        words.append("space.autoencoder=binary")
    if row.noise is not Gaussian:
        words.append(f"noise={config.name_of(row.noise)}")
    return [*words, *row.route.needs]


# What a word of `_needs` stands for, where it takes arguments.
FULL = {
    "recipe=class_conditional": (
        "recipe={name: class_conditional, attribute: group, values: [healthy, sick]}"
    ),
    "kernel=cold": "kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}",
    "kernel=discrete": (
        "kernel={name: discrete, schedule: {name: cosine, zero_terminal_snr: true}}"
    ),
    "space.autoencoder=binary": "space.autoencoder=binary_64",
}
Models = Callable[[str, tuple[str, ...]], "Model | Reconstructor"]


def _suits(row: "Row", models: Models, path: str) -> str:
    from volumediff.anomaly._classifier import takes_classifier, with_classifier
    from volumediff.anomaly.lent import Borrowed, Lent
    from volumediff.anomaly.localizer import Localizer
    from volumediff.anomaly.maps.posterior import Posterior
    from volumediff.classification import ClassPosterior
    from volumediff.comparison import VoxelPosterior
    from volumediff.model import Model

    pipeline = path in config.shipped("pipelines")
    needs = _needs(row) if pipeline else ()
    words = tuple(w for w in needs if "=" in w and not w.startswith(("first.", "map.")))
    if isinstance(row, Localizer) and isinstance(row.first, Lent):
        lent = Borrowed(models(autoencoder_of(row), ()), "")
        row = replace(row, first=replace(row.first, run=lent))
    if isinstance(row, Localizer) and isinstance(row.map, Posterior):  # never asked
        seen = VoxelPosterior(lambda x, healthy: x, row.supervision, "")
        row = replace(row, map=replace(row.map, comparer=seen))
    try:
        model = models(path, words)
        if isinstance(model, Model) and takes_classifier(row):  # of two classes, never asked
            schedule = model.kernel.schedule
            row = with_classifier(row, ClassPosterior(lambda z, t: z, schedule, 2, ""))
        row.check(model)
    except (ValueError, UsageError) as error:
        return str(error)
    return "ok"


def _model(path: str, words: tuple[str, ...]) -> "Model | Reconstructor":
    import torch

    from volumediff.settings.run_config import load_run_config
    from volumediff.tasks import build_task

    # Where the space has no autoencoder to be changed, the rest of the words says why not.
    if "space.autoencoder" not in load_run_config(path).borrows():
        words = tuple(w for w in words if not w.startswith("space.autoencoder="))
    with torch.device("meta"):
        return build_task(load_run_config(path, [FULL.get(w, w) for w in words])).module
