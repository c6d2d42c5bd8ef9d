"""A run exported as one model file, calibrated with the weights as the file holds them."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.runs.model_file import ModelCard
    from volumediff.runs.trained import Trained

__all__ = ["export"]

METHOD = "method"  # folder in a model for the YAML file of its method, if it does not ship


def export(
    trained: "Trained",
    file: Path | str,
    *,
    card: Mapping[str, Any],
    method: Path | str,
    overrides: Sequence[str],
    reload: Callable[..., Any],
    report: Callable[[str], None],
) -> "ModelCard":
    """See `Run.export`; `reload` opens the copy of the run that is exported."""
    from volumediff.anomaly.method_files import method_tree
    from volumediff.config.shipped_models import MODEL_SUFFIX
    from volumediff.runs.model_file import CardText, copy_run, pack
    from volumediff.runs.preparation import preparation_of
    from volumediff.storage.atomic import write_text
    from volumediff.storage.records import parse

    file = Path(file)
    if file.suffix != MODEL_SUFFIX:
        raise UsageError(f"{file}: expected a file name that ends with {MODEL_SUFFIX}.")
    advice = "complete the card: about, data, licence, limits, metrics"
    text = parse(json.dumps(dict(card)), CardText, where="card", advice=advice)
    preparation_of(trained)  # keeps it in the run, from where it is copied
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / file.stem
        copy_run(trained, folder)
        name = str(method)
        if Path(method).is_file():  # others do not have it: the model brings it along
            name = f"{METHOD}/{Path(method).name}"
            (folder / METHOD).mkdir()
            write_text(folder / name, yaml.safe_dump(method_tree(str(method)), sort_keys=False))
            method = folder / name
        copied = reload(folder, data=trained.config.data.root)
        copied.calibrate(method, overrides=overrides, report=report)
        words = list(overrides)
        return pack(folder, file, name=file.stem, card=text, method=name, words=words)
