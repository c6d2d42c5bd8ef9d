"""A run exported as one model file, calibrated with the weights as the file holds them."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.runs.model_file import ModelCard
    from volumediff.runs.trained import Trained

__all__ = ["export"]


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
    from volumediff.config.shipped_models import MODEL_SUFFIX
    from volumediff.runs.model_file import CardText, copy_run, pack
    from volumediff.runs.preparation import preparation_of
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
        copied = reload(folder, data=trained.config.data.root)
        copied.calibrate(method, overrides=overrides, report=report)
        words = list(overrides)
        return pack(folder, file, name=file.stem, card=text, method=str(method), words=words)
