"""Arguments of the Python functions as options of the inference modules."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volumediff.api.arguments import Place
from volumediff.api.layouts import known_layout
from volumediff.api.overrides import words_of
from volumediff.inference.options import (
    LocalizeOptions,
    SampleOptions,
    SegmentOptions,
    TranslateOptions,
)

if TYPE_CHECKING:
    from volumediff.data.survey import Spec

__all__ = ["localize_options", "sample_options", "segment_options", "translate_options"]


def localize_options(
    method: Place,
    overrides: Sequence[str],
    components: Mapping[str, Any],
    *,
    classifier: Place | None,
    channels: Sequence[str] | None,
    layout: "Spec",
    site: Place | None,
    calibration_volumes: int | None,
    seed: int,
    trace: bool,
    force: bool,
    limits: bool,
    conditions: Mapping[str, str | float] | None = None,
    fill: Place | None,
    dicom: bool = False,
) -> LocalizeOptions:
    """Options of a localization; keyword components are words after the overrides."""
    return LocalizeOptions(
        method=str(method),
        overrides=(*overrides, *words_of(components)),
        classifier=None if classifier is None else Path(classifier),
        channels=_names(channels),
        layout=known_layout(layout),
        site=None if site is None else Path(site),
        calibration_volumes=calibration_volumes,
        seed=seed,
        trace=trace,
        force=force,
        limits=limits,
        conditions=dict(conditions or {}),
        fill=None if fill is None else Path(fill),
        dicom=dicom,
    )


def segment_options(
    method: Place | None,
    overrides: Sequence[str],
    components: Mapping[str, Any],
    *,
    channels: Sequence[str] | None,
    layout: "Spec",
    seed: int,
    write_samples: bool = False,
    force: bool = False,
    conditions: Mapping[str, str | float] | None = None,
    fill: Place | None = None,
    dicom: bool = False,
) -> SegmentOptions:
    """Options of a segmentation; keyword components are words after the overrides."""
    words = (*overrides, *words_of(components))
    return SegmentOptions(
        None if method is None else str(method),
        words,
        channels=_names(channels),
        layout=known_layout(layout),
        seed=seed,
        write_samples=write_samples,
        force=force,
        conditions=dict(conditions or {}),
        fill=None if fill is None else Path(fill),
        dicom=dicom,
    )


def translate_options(
    method: Place | None,
    overrides: Sequence[str],
    components: Mapping[str, Any],
    *,
    channels: Sequence[str] | None,
    layout: "Spec",
    seed: int,
    force: bool,
) -> TranslateOptions:
    """Options of a translation; keyword components are words after the overrides."""
    return TranslateOptions(
        None if method is None else str(method),
        (*overrides, *words_of(components)),
        channels=_names(channels),
        layout=known_layout(layout),
        seed=seed,
        force=force,
    )


def sample_options(
    overrides: Sequence[str],
    components: Mapping[str, Any],
    *,
    shape: tuple[int, int, int] | None,
    label: int,
    attributes: Mapping[str, str | float] | None,
    seed: int,
) -> SampleOptions:
    """Options of samples; keyword components are words after the overrides."""
    words = (*overrides, *words_of(components))
    return SampleOptions(words, shape, label, dict(attributes or {}), seed)


def _names(channels: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if channels is None else tuple(channels)
