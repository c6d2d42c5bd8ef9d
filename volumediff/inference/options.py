"""Options of localization, segmentation, translation and sampling: their defaults and meanings.

The Python functions and the commands take their defaults from here. Nothing heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["LocalizeOptions", "SampleOptions", "SegmentOptions", "TranslateOptions"]


@dataclass(frozen=True)
class LocalizeOptions:
    """How anomalies are localized.

    Arguments:
        method: name of a method that ships with the package, or the path of a YAML file
        overrides: `component.argument=value` overrides that change the method
        classifier: folder of a run of a classifier of noisy states, for methods that need one
        channels: names of the images in the data; None takes those of the run
        layout: of the folders of data: `auto`, a name, or a mapping with its options
        site: healthy volumes of the site that the images are of; its thresholds are used
        calibration_volumes: largest number of healthy volumes, if a calibration is fitted
        seed: random seed
        trace: whether masks and maps of the components are kept, and written
        force: whether inputs are taken that the run was plainly not trained for
        limits: whether it is measured, for a model of latents, how small a lesion its autoencoder
            keeps; takes two passes through the autoencoder per case
        conditions: attributes such as age, for runs that are conditioned on some, in place of
            those of the cases; `estimate` looks for the likeliest value
        fill: translation run that draws channels which a case lacks
        dicom: whether findings and map of a DICOM series are written as DICOM objects, too
    """

    method: str = "scan"
    overrides: tuple[str, ...] = ()
    classifier: Path | None = None
    channels: tuple[str, ...] | None = None
    layout: str | Mapping[str, Any] = "auto"
    site: Path | None = None
    calibration_volumes: int | None = None
    seed: int = 0
    trace: bool = True
    force: bool = False
    limits: bool = True
    conditions: Mapping[str, str | float] = field(default_factory=dict)
    fill: Path | None = None
    dicom: bool = False


@dataclass(frozen=True)
class SegmentOptions:
    """How images are segmented.

    Arguments:
        method: name of a segmentation method that ships with the package, or the path of a YAML
            file; None takes the one that the run was configured for, or `label_diffusion`
        overrides: `key=value` overrides that change the method
        channels: names of the images in the data; None takes those of the run
        layout: of the folders of data: `auto`, a name, or a mapping with its options
        seed: random seed
        write_samples: whether the label map of every sample is written
        force: whether inputs are taken that the run was plainly not trained for
        conditions: as for localization
        fill: translation run that draws channels which a case lacks
        dicom: whether the labels of a DICOM series are written as DICOM objects, too
    """

    method: str | None = None
    overrides: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None
    layout: str | Mapping[str, Any] = "auto"
    seed: int = 0
    write_samples: bool = False
    force: bool = False
    conditions: Mapping[str, str | float] = field(default_factory=dict)
    fill: Path | None = None
    dicom: bool = False


@dataclass(frozen=True)
class TranslateOptions:
    """How missing channels are made.

    Arguments:
        method: name of a translation method that ships with the package, or the path of a YAML
            file; None takes the one that the run was configured for, or `translation`
        overrides: `key=value` overrides that change the method
        channels: names of the source images in the data; None takes those of the run
        layout: of the folders of data: `auto`, a name, or a mapping with its options
        seed: random seed
        force: whether inputs are taken that the run was plainly not trained for
    """

    method: str | None = None
    overrides: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None
    layout: str | Mapping[str, Any] = "auto"
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class SampleOptions:
    """How new volumes are drawn.

    Arguments:
        overrides: key=value settings of sampler and guidance, such as `sampler.steps=20` or
            `guidance=classifier_free`
        shape: voxels along R, A, S; None takes the shape of the run's volumes
        label: class of the volumes, for runs conditioned on a class; 0 is healthy
        attributes: scalars such as age, for runs conditioned on some; one that names a class, such
            as modality=mri_t2, takes the place of the label
        seed: random seed; sample i of a seed is the same in any call
    """

    overrides: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    label: int = 0
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    seed: int = 0
