"""Sections of a run's configuration: data, preprocessing, split, optimisation, validation.

Each is a frozen pydantic model that refuses unknown keys. What a task declares beside them stands
in the task's own file.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from volumediff.config import build, named, suggestion
from volumediff.data.augmentation import Augmentation
from volumediff.data.drawing import Drawing
from volumediff.data.lesion_free import LesionFree
from volumediff.data.patients import Patients
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO
from volumediff.errors import shown

__all__ = [
    "POPULATION",
    "Component",
    "Data",
    "ForRun",
    "Optim",
    "PopulationSection",
    "Preprocess",
    "Processes",
    "Section",
    "Selection",
    "SplitRule",
    "ValidationSection",
    "declared",
]


def _known_layout(value: Any) -> Any:
    """The layout as it was written, if there is one of that name with these options."""
    if value != AUTO:
        build("layout", value, where="data.layout")
    return value


Component = Annotated[str | dict[str, Any], BeforeValidator(named)]
"""A component as configurations write it: a name, or a mapping with `name` and arguments."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]

POPULATION = "population"


class Section(BaseModel):
    """Part of a configuration: unknown keys fail, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def declared(cls: type) -> BeforeValidator:
    """Unknown keys of a plain dataclass fail: pydantic alone would leave them out."""
    choices = [f.name for f in fields(cls)]

    def check(value: Any) -> Any:
        unknown = [n for n in value if n not in choices] if isinstance(value, Mapping) else []
        if unknown:
            hint = suggestion(str(unknown[0]), choices)
            raise ValueError(f"unknown key {unknown[0]}; choose from {', '.join(choices)}.{hint}")
        return value

    return BeforeValidator(check)


class PopulationSection(Section):
    """Simulated healthy subjects, used with `data.root: population`.

    Arguments:
        subjects: number of subjects
        seed: another seed is another population of the same kind
    """

    subjects: PositiveInt = 60
    seed: int = 0


class Preprocess(Section):
    """Grid and intensities of the training volumes: see `volumediff.data.preprocessing`.

    Arguments:
        spacing_mm: voxel size in millimetres, one number or three along d, h, w; null keeps that
            of the files
        shape: size of the volumes in voxels, cropped and padded; null keeps that of the files
        intensity: how intensities are brought to [-1, 1]
        centre: what the volumes are cropped around: the centre of the foreground, that of the
            volume, or a point as three fractions of the volume
    """

    spacing_mm: PositiveFloat | tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    intensity: Component = "percentile"
    centre: Literal["foreground", "volume"] | tuple[float, float, float] = "foreground"

    def spacing(self) -> tuple[float, float, float] | None:
        """Spacing along d, h, w; one number means the same along all."""
        spacing = self.spacing_mm
        return (spacing,) * 3 if isinstance(spacing, float) else spacing


class Drawn(Section):
    """Training samples that are drawn from label maps: see `volumediff.data.drawing`.

    Volumes for validation and calibration are never drawn.

    Arguments:
        label_maps: folder of label maps with FreeSurfer's numbers
        share: share of the training samples that is drawn; the others are volumes of the data set
        contrast: how tissues get their intensities
        drawing: deformation, resolution and bias field of the drawn samples
    """

    label_maps: Path
    share: Share = 0.5
    contrast: Component = "tissue"
    drawing: Annotated[Drawing, declared(Drawing)] = Drawing()


class SplitRule(Section):
    """Shares of the patients for validation, calibration and test, drawn by seed.

    For cross-validation, what the parts for calibration and test leave is divided into `folds`
    groups of patients. Runs that differ in `fold` alone share the test part and validate on every
    other patient once.

    Arguments:
        seed: random seed of the split
        validation: share of the patients whose volumes select the best checkpoint
        calibration: share of the patients whose volumes fit thresholds
        test: share of the patients that no part of the training sees
        least_calibration: patients reserved for the calibration part, which the thresholds of
            localization need, unless this is more than a quarter of all or `calibration` is 0
        by_attribute: take the parts from the attribute `split` of the cases (participants.tsv),
            and draw the validation part from training if none is named
        folds: number of groups for cross-validation
        fold: number of the group that validates, below `folds`, whatever `validation` says; null
            for no cross-validation
    """

    seed: int = 0
    validation: Fraction = 0.1
    calibration: Fraction = 0.1
    test: Fraction = 0.0
    least_calibration: NonNegativeInt = 5
    by_attribute: bool = False
    folds: Annotated[int, Field(ge=2)] = 5
    fold: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> "SplitRule":
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"takes a fold from 0 to {self.folds - 1}, got {self.fold}")
        return self


class Data(Section):
    """Where the volumes are and how they become training samples.

    Arguments:
        root: folder of the volumes, or population for simulated subjects
        layout: how the files are laid out: auto, a name that `volumediff info layout` lists, or a
            mapping with its options
        read: decisions on ambiguous files, such as {no_forms: ras}; see
            `volumediff.data.read_policy`
        channels: names of the images of each case, such as [T1w, FLAIR]; null for the one image
            that each case has
        only: attributes of the cases to keep, such as {group: healthy}
        label_names: what the values of label maps are called, such as {oedema: 1}, over the names
            of the data set
        patients: which cases belong to one patient where names do not say so, such as {pattern:
            'mouse\\d+'}; splits keep the cases of a patient together
        population: size and seed of the simulated subjects, with `root: population`
        preprocessing: grid and intensities of the volumes
        augmentation: random changes of the training volumes; null for none
        drawn: training samples that are drawn from label maps; null for none
        lesion_free: train on the lesion-free planes of volumes with lesions; null trains on them
            like on all others
        split: shares of the patients for validation, calibration and test
        cache: folder of prepared volumes; null for the folder `cache` beside the run
        workers: processes that load volumes; 0 loads them in the training process
    """

    root: str | None = None
    layout: Annotated[Component, BeforeValidator(_known_layout)] = AUTO
    read: Annotated[ReadPolicy, declared(ReadPolicy)] = ReadPolicy()
    channels: tuple[str, ...] | None = None
    only: dict[str, str | float | tuple[str | float, ...]] = {}
    label_names: dict[str, PositiveInt] = {}
    patients: Annotated[Patients, declared(Patients)] | None = None
    population: PopulationSection = PopulationSection()
    preprocessing: Preprocess = Preprocess()
    augmentation: Annotated[Augmentation, declared(Augmentation)] | None = None
    drawn: Drawn | None = None
    lesion_free: Annotated[LesionFree, declared(LesionFree)] | None = None
    split: SplitRule = SplitRule()
    cache: Path | None = None
    workers: NonNegativeInt = 0

    @property
    def channel_count(self) -> int:
        """Channels of the volumes; one unless the configuration names them."""
        return len(self.channels) if self.channels else 1


class Optim(Section):
    """AdamW, or stochastic gradient descent; the learning rate is a function of the step.

    Arguments:
        lr: learning rate after the warm-up
        steps: number of updates; the most, where `patience` is given
        warmup: updates over which the learning rate rises linearly from 0
        decay: fraction of `lr` that a half cosine reaches at the last update; 1 keeps it constant
        batch_size: samples of one update, over all processes and accumulation steps
        accumulate: passes whose gradients are added up for one update; divides `batch_size`
        clip: largest norm of the gradient; null for no limit
        weight_decay: decoupled weight decay of AdamW
        betas: decay rates of AdamW's averages of the gradient and of its square
        momentum: Nesterov momentum of stochastic gradient descent, which takes the place of AdamW;
            nnU-Net has 0.99 with lr 0.01
        power: exponent of the polynomial decay (1 - progress)^power, which takes the place of the
            cosine; nnU-Net has 0.9
        ema: decay rate of the average of the weights, which validation and inference use
        patience: updates after the warm-up without a lower loss, after which training ends; null
            to make all `steps`
    """

    lr: PositiveFloat = 1e-4
    steps: PositiveInt = 100_000
    warmup: NonNegativeInt = 500
    decay: Share = 1.0
    batch_size: PositiveInt = 1
    accumulate: PositiveInt = 1
    clip: PositiveFloat | None = 1.0
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    power: PositiveFloat | None = None
    ema: Fraction = 0.9999
    patience: PositiveInt | None = None


class Selection(Section):
    """Selection of the best checkpoint: voxel AP on synthetic lesions in validation volumes,
    or, for models of labels, the Dice of validation volumes.

    Arguments:
        volumes: number of validation volumes
        steps: network calls for the segmentation of a volume, for models of labels
        levels: times in (0, 1) to which volumes with synthetic lesions are noised
        smooth_mm: standard deviation of the smoothing of the maps, in millimetres
    """

    volumes: PositiveInt = 4
    steps: PositiveInt = 5
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.6, 0.8)
    smooth_mm: NonNegativeFloat = 3.0


class Processes(Section):
    """Processes that train together.

    Arguments:
        number: processes that the launch must have; null for any number
        shard: divide weights, gradients and moments among the processes (FSDP2); otherwise each
            has all of them (DDP)
        domain: processes that share each volume along d
        timeout_s: seconds that a process waits for another one in a step, or for a sign of its
            life meanwhile, before the run ends
    """

    number: PositiveInt | None = None
    shard: bool = False
    domain: PositiveInt = 1
    timeout_s: PositiveFloat = 45.0


class ValidationSection(Section):
    """Validation loss, previews and the selection of the best checkpoint.

    Arguments:
        every: updates between two validations
        volumes: most validation volumes that are used
        previews: volumes that are drawn or restored as pictures at each validation
        preview_steps: network calls for one preview
        best: how the best checkpoint is selected; null selects by the validation loss
    """

    every: PositiveInt = 1000
    volumes: PositiveInt = 16
    previews: NonNegativeInt = 0
    preview_steps: PositiveInt = 25
    best: Selection | None = None


def _names_a_run(value: Any) -> Any:
    """A component for another run says which: `of` is the folder of that run."""
    if not isinstance(value, Mapping) or not isinstance(value.get("of"), str):
        raise ValueError(f"needs the key of: the folder of a diffusion run (got {shown(value)})")
    return value


ForRun = Annotated[dict[str, Any], BeforeValidator(_names_a_run)]
"""A component that is trained for the diffusion run whose folder its key `of` names."""
