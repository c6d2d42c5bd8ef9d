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
    """Simulated healthy subjects, used with `data.root: population`."""

    subjects: PositiveInt = 60
    seed: int = 0


class Preprocess(Section):
    """Grid and intensities of the training volumes: see `volumediff.data.preprocessing`."""

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

    `label_maps` is a folder of label maps with FreeSurfer's numbers, `share` the share of the
    training samples that is drawn; the others are volumes of the data set. Volumes for validation
    and calibration are never drawn.
    """

    label_maps: Path
    share: Share = 0.5
    contrast: Component = "tissue"
    drawing: Annotated[Drawing, declared(Drawing)] = Drawing()


class SplitRule(Section):
    """Fractions of the patients by seed; `by_attribute` takes the parts from the attribute `split`
    of the cases (participants.tsv), and draws the validation part from training if none is named.

    For cross-validation `fold` is a number below `folds`: what the parts for calibration and test
    leave is divided into so many groups of patients, and this one validates, whatever `validation`
    says. Runs that differ in `fold` alone share the test part and validate on every other patient
    once.

    `least_calibration` patients are reserved for the calibration part, which the thresholds of
    localization need, unless this is more than a quarter of all or `calibration` is 0.
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

    `layout` is a name that `volumediff info` lists, or a mapping with its options. `only` keeps
    the cases whose attributes have one of the values given, such as `{group: healthy}`.
    `lesion_free` trains crops from the lesion-free planes of volumes with lesions, see
    `volumediff.data.lesion_free`; without it they train like all others. `patients` names the
    patient of every case where names do not, such as `{pattern: 'mouse\\d+'}`, see
    `volumediff.data.patients`; splits keep the cases of a patient together. `read` decides on
    ambiguous files, such as `{no_forms: ras}`, see `volumediff.data.read_policy`.
    """

    root: str | None = None
    layout: Annotated[Component, BeforeValidator(_known_layout)] = AUTO
    read: Annotated[ReadPolicy, declared(ReadPolicy)] = ReadPolicy()
    channels: tuple[str, ...] | None = None
    only: dict[str, str | float | tuple[str | float, ...]] = {}
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
    """AdamW; the learning rate is a function of the step.

    `batch_size` is global: over all processes and accumulation steps. `decay` is the fraction of
    `lr` that a half cosine reaches at the last step; 1 keeps it constant. A number for `power`
    takes the polynomial (1 - progress)^power in place of the cosine, one for `momentum` stochastic
    gradient descent with Nesterov momentum in place of AdamW: nnU-Net has 0.9 and 0.99 with lr
    0.01. With `patience` training ends when its loss was not below the least so far for so many
    steps after the warm-up; `steps` is then the most.
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
    """Selection of the best checkpoint: voxel AP on synthetic lesions in validation volumes, or,
    for models of labels, the Dice of validation volumes that are segmented in so many steps."""

    volumes: PositiveInt = 4
    steps: PositiveInt = 5
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.6, 0.8)
    smooth_mm: NonNegativeFloat = 3.0


class Processes(Section):
    """Processes that train together.

    If `number` is given, the launch must have as many. With `shard` weights, gradients and moments
    are divided among them (FSDP2); otherwise each has all of them (DDP). So many as `domain` says
    share each volume along d. One that waits for another in a step for longer than `timeout_s`
    seconds ends the run.
    """

    number: PositiveInt | None = None
    shard: bool = False
    domain: PositiveInt = 1
    timeout_s: PositiveFloat = 600.0


class ValidationSection(Section):
    """Every `every` steps: validation loss, previews and, if `best` is given, selection."""

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
