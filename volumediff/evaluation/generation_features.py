"""Feature vectors of volumes: from a table, from a network of Med3D, or from a run."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from volumediff.autoencoders import Reconstructor
from volumediff.config.shipped_models import MODEL_SUFFIX
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.generation_volumes import ComparedVolume
from volumediff.features.med3d import is_med3d, med3d
from volumediff.features.pooled import pooled, pooled_problem
from volumediff.model import Model
from volumediff.runs.model_file import resolve
from volumediff.runs.trained import Trained, load_trained
from volumediff.storage.tensors import load_plain

__all__ = ["VolumeFeatures", "features_of"]

TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, eq=False)
class VolumeFeatures:
    """What turns a volume into a vector.

    Arguments:
        name: what it is, for people
        of: a volume's vector
    """

    name: str
    of: Callable[[ComparedVolume], Float[np.ndarray, "f"]]


def features_of(place: Path | str, *, trained: Trained | None, device: str) -> VolumeFeatures:
    """The features that a file or a run gives.

    Arguments:
        place: a table (.csv or .tsv) with a case and its numbers in each row, after a row of
            headings; a safetensors file of Med3D; or a run, as its folder, model file or name
        trained: the run that the real volumes are prepared for
        device: that networks run on

    Raises:
        UsageError: nothing there, or a run of other volumes or without features
        DataError: a file that is damaged or something else
    """
    path = Path(place)
    if path.suffix.lower() in TABLES:
        return _table(path)
    if path.suffix == MODEL_SUFFIX and path.is_file():
        tensors, _ = load_plain(path, advice="give a safetensors file")
        if is_med3d(tensors):
            try:
                network = med3d(tensors).to(device)
            except ValueError as error:
                raise DataError(f"{path}: is no network of Med3D ({error}).") from None
            name = f"Med3D {path.name}, {network.channels} features per channel"
            return VolumeFeatures(name, lambda v: network.vector(v.x.to(device)).cpu().numpy())
    return _run(place, trained, device)


def _table(path: Path) -> VolumeFeatures:
    if not path.is_file():
        raise UsageError(f"features {path}: expected a table of vectors, nothing is there.")
    rows: dict[str, np.ndarray] = {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter=TABLES[path.suffix.lower()])
        width = len(next(lines, []))
        for number, (case, *values) in enumerate(filter(None, lines), start=2):
            try:
                rows[case] = np.array([float(v) for v in values])
            except ValueError as error:
                raise DataError(f"{path}: line {number}: expected numbers ({error}).") from None
            if len(values) != width - 1 or not np.isfinite(rows[case]).all():
                raise DataError(
                    f"{path}: line {number}: expected {width - 1} finite numbers after the case, "
                    f"got {len(values)}; give each case a vector of one length."
                )

    def of(volume: ComparedVolume) -> np.ndarray:
        if volume.case.id not in rows:
            raise DataError(
                f"{path}: has no row for {volume.case.id}; expected one for every generated and "
                "every real volume."
            )
        return rows[volume.case.id]

    return VolumeFeatures(f"{path.name}, {max(width - 1, 0)} features", of)


def _run(place: Path | str, trained: Trained | None, device: str) -> VolumeFeatures:
    other = load_trained(resolve(place), device=device)
    if trained is None or repr(other.preprocessing) != repr(trained.preprocessing):
        raise UsageError(
            f"features {place}: expected a run of the volumes that are compared; give "
            "the run that drew them, with the same preprocessing as this one."
        )
    model = other.task.lend(Model) or other.task.lend(Reconstructor)
    if model is None:
        raise UsageError(f"features {place}: trains {other.task.noun}, which has no features.")
    if problem := pooled_problem(model):
        raise UsageError(f"features {place}: {problem}")

    def of(volume: ComparedVolume) -> np.ndarray:
        condition = other.condition(volume.case.attributes)
        return pooled(model, volume.x[None].to(other.device), condition).cpu().numpy()

    return VolumeFeatures(f"the {other.task.noun.split(' ', 1)[1]} {place}", of)
