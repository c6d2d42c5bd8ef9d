"""One translated case against its measured channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from volumediff.data.brain_masks import brain_mask_of
from volumediff.data.cases import Case
from volumediff.data.foreground import foreground
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import Volume, check_grids, read
from volumediff.errors import DataError
from volumediff.metrics.image_similarity import psnr, ssim_map, unit_range
from volumediff.metrics.mask_dice import mean_dice

__all__ = ["Segments", "TranslatedCase", "measure_translation"]

Segments = Callable[[Mapping[str, Volume]], UInt8[np.ndarray, "d h w"]]
"""Label map of a case given its channels by name."""


@dataclass(frozen=True)
class TranslatedCase:
    """The figures of a case.

    Arguments:
        case, patient, group: whose it is
        channels: channel -> metric -> value
        lesions: metric -> Dice of a segmentation, where one was asked for
        cost: of the translation, by the ledger
    """

    case: str
    patient: str
    group: str
    channels: Mapping[str, Mapping[str, float]]
    lesions: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)


def measure_translation(
    translated: Mapping[str, Path],
    case: Case,
    *,
    policy: ReadPolicy,
    by: str | None,
    cost: Mapping[str, float] | None = None,
    segments: Segments | None = None,
) -> TranslatedCase:
    """Compares the translated channels of a case with the measured ones.

    The mask is that of the brain beside the case's images, and else the foreground of the
    measured channel.

    Arguments:
        translated: channel -> file
        case: with its measured channels
        policy: decisions on ambiguous files
        by: attribute of the subgroups
        cost: of the translation
        segments: gives labels of channels, for the Dice of lesions

    Raises:
        DataError: a channel was not measured, files are on different grids, or nothing is shown
    """
    drawn, measured = {}, {}
    for channel, path in translated.items():
        if channel not in case.images:
            raise DataError(
                f"{case.id}: expected a measured {channel} to compare with, got the images "
                f"{', '.join(case.images)}."
            )
        drawn[channel], measured[channel] = read(path), read(case.images[channel], policy=policy)
        check_grids(measured[channel], drawn[channel])
    mask = brain_mask_of(case)
    found = {}
    for channel, truth in measured.items():
        x, y = truth.array[0], drawn[channel].array[0]
        inside = foreground(x, "auto") if mask is None else _inside(mask, truth, policy)
        if not inside.any():
            raise DataError(f"{case.images[channel]}: expected an image, got background alone.")
        u, w = unit_range(x, inside), unit_range(y, inside)
        similar = float(ssim_map(u, w)[inside].mean())
        found[channel] = {"psnr": psnr(u, w, inside), "ssim": similar}
    lesions = {} if segments is None else _lesions(drawn, case, policy, segments)
    group = str(case.attributes.get(by, "")) if by else ""
    return TranslatedCase(case.id, case.patient, group, found, lesions, dict(cost or {}))


def _inside(path: Path, like: Volume, policy: ReadPolicy) -> Bool[np.ndarray, "d h w"]:
    mask = read(path, kind="label", policy=policy)
    check_grids(like, mask)
    return mask.array[0] > 0


def _lesions(
    drawn: Mapping[str, Volume], case: Case, policy: ReadPolicy, segments: Segments
) -> dict[str, float]:
    """Dice of what is segmented with the translated channels, with that of the measured ones, and
    of both with the labels where the case has some."""
    real = {name: read(path, policy=policy) for name, path in case.images.items()}
    synthetic, measured = segments({**real, **drawn}), segments(real)
    found = {"lesion_dice": _dice(synthetic, measured)}
    if case.label is not None:
        label = read(case.label, kind="label", policy=policy)
        check_grids(next(iter(real.values())), label)
        truth = label.array[0]
        found["lesion_dice_labels"] = _dice(synthetic, truth)
        found["lesion_dice_measured"] = _dice(measured, truth)
    return found


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of everything that is marked; nan where nothing is in either."""
    if not (a.any() or b.any()):
        return float("nan")
    return mean_dice([(torch.from_numpy(a > 0), torch.from_numpy(b > 0))])
