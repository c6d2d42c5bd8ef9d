"""Saliency maps that the user gives, one per case, resampled to the grid of the model."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from volumediff.data.preprocessing import Prepared
from volumediff.data.volume import Volume
from volumediff.errors import DataError, UsageError
from volumediff.runs.trained import Trained

__all__ = ["saliency_maps", "saliency_on"]


def saliency_maps(source: Path, cases: Sequence[str]) -> dict[str, Path]:
    """The file of each case.

    Arguments:
        source: the file of the only case, or a folder with <case>_saliency.nii.gz
        cases: their names

    Raises:
        UsageError: a case has no file, or several cases share one
    """
    if source.is_dir():
        found = {case: source / f"{case}_saliency.nii.gz" for case in cases}
    elif len(cases) > 1:
        raise UsageError(
            f"saliency {source}: expected a folder with <case>_saliency.nii.gz for "
            f"{len(cases)} cases, got one file."
        )
    else:
        found = dict.fromkeys(cases, source)
    missing = [path for path in found.values() if not path.is_file()]
    if missing:
        raise UsageError(f"saliency: {missing[0]}: no such file; every case needs its map.")
    return found


def saliency_on(volume: Volume, trained: Trained, ready: Prepared) -> Float[Tensor, "1 1 d h w"]:
    """A map on the prepared grid of its case, on the model's device.

    Raises:
        DataError: it has more than one channel
    """
    if len(volume.array) != 1:
        raise DataError(f"{volume.path}: expected one map, got {len(volume.array)} channels.")
    return trained.preprocessing.to_prepared(volume, ready.record)[None].to(trained.device)
