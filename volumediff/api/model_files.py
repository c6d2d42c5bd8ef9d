"""A run as one model file, with its card; the method that a card names."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volumediff.api.arguments import Place, Report, silent
from volumediff.errors import UsageError
from volumediff.inference.options import LocalizeOptions, SegmentOptions

if TYPE_CHECKING:
    from volumediff.runs.model_file import ModelCard
    from volumediff.runs.trained import Trained

__all__ = ["export", "method_of"]

METHOD = "method"  # folder in a model for the YAML file of its method, if it does not ship


def method_of(
    trained: "Trained", method: Place | None, overrides: Sequence[str], default: str | None
) -> tuple[Place | None, Sequence[str]]:
    """The method that is asked for, or else that of the model's card, or else the default."""
    from volumediff.runs.model_file import card_of

    if method is not None:
        return method, overrides
    card = card_of(trained.run)
    if card is None:
        return default, overrides
    carried = trained.run / card.method
    return carried if carried.is_file() else card.method, (*card.overrides, *overrides)


def export(
    run: Place,
    file: Place,
    *,
    card: Mapping[str, Any],
    method: Place | None = None,
    overrides: Sequence[str] = (),
    data: Place | None = None,
    device: str = "auto",
    report: Report = silent,
) -> "ModelCard":
    """Writes a run as one model file: weights, preparation, what its method fitted, and a card.

    What the method fits, such as the calibration of a localization, is fitted anew with the
    weights as the file holds them, so the run's data must be reachable for it.

    Arguments:
        run: folder of a run that localizes or segments
        file: NAME.safetensors; NAME is the model's
        card: what `volumediff.runs.model_file.CardText` asks for
        method: that the model is meant for; None is `scan`, and for a run that segments the method
            that it was configured for, or `label_diffusion`
        overrides: of the method
        data: folder of the run's data, if they were moved
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        report: receives progress lines

    Raises:
        UsageError: the run cannot be exported, or its data are not reachable
        DataError: the card lacks something, or the file cannot be written
    """
    import yaml

    from volumediff.anomaly.method_files import method_tree
    from volumediff.config import load as load_yaml
    from volumediff.config.shipped_models import MODEL_SUFFIX
    from volumediff.runs.model_file import CardText, copy_run, pack
    from volumediff.runs.preparation import preparation_of
    from volumediff.runs.trained import load_trained
    from volumediff.storage.atomic import write_text
    from volumediff.storage.records import parse

    file = Path(file)
    if file.suffix != MODEL_SUFFIX:
        raise UsageError(f"{file}: expected a file name that ends with {MODEL_SUFFIX}.")
    advice = "complete the card: about, data, licence, limits, metrics"
    text = parse(json.dumps(dict(card)), CardText, where="card", advice=advice)
    trained = load_trained(run, device=device)
    if data is not None:
        trained = trained.moved(data)
    if (reason := trained.task.refusals.localize) and trained.task.refusals.segment:
        raise UsageError(f"{trained.name}: {reason}")
    segments = trained.task.refusals.segment is None
    preparation_of(trained)  # keeps it in the run, from where it is copied
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / file.stem
        copy_run(trained, folder)
        name = None if method is None else str(method)
        if method is not None and Path(method).is_file():  # others do not have it
            name = f"{METHOD}/{Path(method).name}"
            tree = load_yaml(Path(method)) if segments else method_tree(str(method))
            (folder / METHOD).mkdir()
            write_text(folder / name, yaml.safe_dump(tree, sort_keys=False))
            method = folder / name
        copied = load_trained(folder, device=device).moved(trained.config.data.root)
        fit = _fit_segmentation if segments else _calibrate
        fitted = fit(copied, method, overrides, report)
        return pack(
            folder,
            file,
            name=file.stem,
            card=text,
            verb="segment" if segments else "localize",
            method=name or fitted,
            words=list(overrides),
        )


def _calibrate(
    trained: "Trained", method: Place | None, overrides: Sequence[str], report: Report
) -> str:
    """Calibrates a localization method in the run; returns its name."""
    from volumediff.calibration.of_run import calibrate, load_method

    name = str(method or LocalizeOptions.method)
    calibrate(trained, load_method(trained, name, overrides, report=report), name, report=report)
    return name


def _fit_segmentation(
    trained: "Trained", method: Place | None, overrides: Sequence[str], report: Report
) -> str:
    """Fits what a segmentation method fits, in the run; returns its name."""
    from volumediff.inference.segment import segmenting

    name = None if method is None else str(method)
    options = SegmentOptions(method=name, overrides=tuple(overrides))
    return segmenting(trained, options, announce=report).method
