"""A run exported as one model file, calibrated with the weights as the file holds them."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.api.run import Run
    from volumediff.runs.model_file import ModelCard

__all__ = ["export"]


def export(
    run: "Run",
    file: Path | str,
    *,
    card: Mapping[str, Any],
    method: Path | str,
    overrides: Sequence[str],
    report: Callable[[str], None],
) -> "ModelCard":
    """See `Run.export`."""
    from volumediff.api.run import load
    from volumediff.runs.model_file import SUFFIX, CardText, copy_run, pack
    from volumediff.runs.preparation import preparation_of
    from volumediff.storage.records import parse

    file = Path(file)
    if file.suffix != SUFFIX:
        raise UsageError(f"{file}: expected a file name that ends with {SUFFIX}.")
    advice = "complete the card: about, data, licence, limits, metrics"
    text = parse(json.dumps(dict(card)), CardText, where="card", advice=advice)
    preparation_of(run.trained)  # keeps it in the run, from where it is copied
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / file.stem
        copy_run(run.trained, folder)
        copied = load(folder, device=str(run.trained.device), data=run.trained.config.data.root)
        copied.calibrate(method, overrides=overrides, report=report)
        words = list(overrides)
        return pack(folder, file, name=file.stem, card=text, method=str(method), words=words)
