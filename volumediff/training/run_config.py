"""The configuration of a run: the YAML files of `configs/pipelines`, `configs/autoencoders`,
`configs/classifiers` and `configs/comparers`.

A run trains a diffusion model (`space`, `kernel`, `network`), an `autoencoder`, a `classifier` of
the states of a diffusion run, which it names and takes them from, or a `comparer` of volumes with
what a diffusion run, which it names, makes of them. Components stay
constructor calls (`{name: unet, widths: [...]}`) that `volumediff.config.build` validates;
the sections around them are declared here. Unknown keys fail with a suggestion.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from volumediff.config import build, config_path, load, named, shipped, suggestion
from volumediff.data.augmentation import Augmentation
from volumediff.data.survey import AUTO
from volumediff.errors import UsageError
from volumediff.memory.policy import MemoryPolicy
from volumediff.storage.records import read_text

__all__ = [
    "Best",
    "Data",
    "Optim",
    "Population",
    "Preprocess",
    "RunConfig",
    "SplitRule",
    "Validation",
    "changes",
    "load_run_config",
    "of_run",
    "parse",
    "saved_config",
    "source_of",
]

Component = Annotated[str | dict[str, Any], BeforeValidator(named)]


def _known_layout(value: Any) -> Any:
    """The layout as it was written, if there is one of that name with these options."""
    if value != AUTO:
        build("layout", value, where="data.layout")
    return value


Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]

POPULATION = "population"
# What may differ when a run goes on: it changes neither data nor arithmetic of the steps left.
# Recomputation is for runs that meet a smaller card on their way; slabs and host memory change the
# rounding.
FREE = {
    *("optim.steps", "output", "data.workers", "data.cache", "trackers", "processes"),
    "memory.checkpoint",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _declared(cls: type) -> BeforeValidator:
    """Unknown keys of a plain dataclass fail: pydantic alone would leave them out."""
    choices = [f.name for f in fields(cls)]

    def check(value: Any) -> Any:
        unknown = [n for n in value if n not in choices] if isinstance(value, Mapping) else []
        if unknown:
            hint = suggestion(str(unknown[0]), choices)
            raise ValueError(f"unknown key {unknown[0]}; choose from {', '.join(choices)}.{hint}")
        return value

    return BeforeValidator(check)


class Population(_Section):
    """Simulated healthy subjects, used with `data.root: population`."""

    subjects: PositiveInt = 60
    seed: int = 0


class Preprocess(_Section):
    """Grid and intensities of the training volumes: see `volumediff.data.preprocessing`."""

    spacing_mm: PositiveFloat | tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    intensity: Component = "percentile"
    centre: Literal["foreground", "volume"] = "foreground"

    def spacing(self) -> tuple[float, float, float] | None:
        """Spacing along d, h, w; one number means the same along all."""
        spacing = self.spacing_mm
        return (spacing,) * 3 if isinstance(spacing, float) else spacing


class SplitRule(_Section):
    """Fractions of the patients by seed; `by_attribute` takes the parts from the attribute `split`
    of the cases (participants.tsv), and draws the validation part from training if none is named.
    """

    seed: int = 0
    validation: Fraction = 0.1
    calibration: Fraction = 0.1
    test: Fraction = 0.0
    by_attribute: bool = False


class Data(_Section):
    """Where the volumes are and how they become training samples.

    `layout` is a name that `volumediff info` lists, or a mapping with its options. `only` keeps
    the cases whose attributes have one of the values given, such as `{group: healthy}`.
    """

    root: str | None = None
    layout: Annotated[Component, BeforeValidator(_known_layout)] = AUTO
    channels: tuple[str, ...] | None = None
    only: dict[str, str | float | tuple[str | float, ...]] = {}
    population: Population = Population()
    preprocessing: Preprocess = Preprocess()
    augmentation: Annotated[Augmentation, _declared(Augmentation)] | None = None
    split: SplitRule = SplitRule()
    cache: Path | None = None
    workers: NonNegativeInt = 0


class Optim(_Section):
    """AdamW; the learning rate is a function of the step.

    `batch_size` is global: over all processes and accumulation steps. `decay` is the fraction of
    `lr` that a half cosine reaches at the last step; 1 keeps it constant.
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
    ema: Fraction = 0.9999


class Best(_Section):
    """Selection of the best checkpoint: voxel AP on synthetic lesions in validation volumes."""

    volumes: PositiveInt = 4
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.6, 0.8)
    smooth_mm: NonNegativeFloat = 3.0


class Validation(_Section):
    """Every `every` steps: validation loss, previews and, if `best` is given, selection."""

    every: PositiveInt = 1000
    volumes: PositiveInt = 16
    previews: NonNegativeInt = 0
    preview_steps: PositiveInt = 25
    best: Best | None = None


class RunConfig(_Section):
    """Everything that decides a run; saved as RUN/config.yaml.

    `times` are those that are trained, from above the first to the second: [0, 0.8] for methods
    that never go higher, [0.999, 1] for a detector that is only asked at t = 1. `start_from` is
    the folder of a run whose weights this one begins with; see `warm_start`.
    """

    data: Data = Data()
    space: Component | None = None
    kernel: Component | None = None
    network: Component | None = None
    autoencoder: Component | None = None
    classifier: Component | None = None
    comparer: Component | None = None
    recipe: Component = "healthy"
    noise: Component = "gaussian"
    times: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (
        0.0,
        1.0,
    )
    start_from: Path | None = None
    crop: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    memory: Annotated[MemoryPolicy, _declared(MemoryPolicy)] = MemoryPolicy()
    optim: Optim = Optim()
    validation: Validation = Validation()
    save_every: PositiveInt = 500
    seed: int = 0
    deterministic: bool = True
    processes: PositiveInt | None = None
    trackers: tuple[str, ...] = ()
    output: Path = Path("runs/run")

    @model_validator(mode="after")
    def _one_kind(self) -> "RunConfig":
        low, high = self.times
        if not low < high:
            raise ValueError(f"needs times [low, high] with low < high, got [{low:g}, {high:g}]")
        if self.comparer is not None:
            names = ("space", "kernel", "network", "autoencoder", "classifier")
            found = [name for name in names if getattr(self, name) is not None]
            if found:
                raise ValueError(f"takes comparer alone, not with {' and '.join(found)}")
            return self._batches()
        if self.classifier is not None:
            others = {"network": self.network, "autoencoder": self.autoencoder}
            found = [name for name, part in others.items() if part is not None]
            if found:
                raise ValueError(f"takes classifier alone, not with {' and '.join(found)}")
            if self.crop is not None:
                raise ValueError("takes crop: null with a classifier: its class is the volume's")
            return self._batches()
        diffusion = {"space": self.space, "kernel": self.kernel, "network": self.network}
        missing = [name for name, part in diffusion.items() if part is None]
        if self.autoencoder is None and missing:
            raise ValueError(f"needs {', '.join(missing)} (or autoencoder alone)")
        if self.autoencoder is not None and len(missing) < 3:
            raise ValueError("takes autoencoder alone, or space, kernel and network, not both")
        return self._batches()

    def _batches(self) -> "RunConfig":
        if self.optim.batch_size % self.optim.accumulate:
            raise ValueError(
                f"needs optim.batch_size ({self.optim.batch_size}) to be a multiple of "
                f"optim.accumulate ({self.optim.accumulate})"
            )
        return self

    def dump(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self, title: str = "The resolved configuration of this run.") -> str:
        """The resolved configuration, as it is saved in the run, under a comment."""
        return f"# {title}\n" + yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration file (or the name of a shipped one) with `a.b=c` words applied.

    Raises:
        UsageError: one line with the key, what it takes and what came
    """
    name = str(path)
    if Path(name).is_file():
        found = Path(name)
    else:
        others = ("autoencoders", "classifiers", "comparers")
        kinds = (kind for kind in others if name in shipped(kind))
        found = config_path(next(kinds, "pipelines"), name)
    return parse(load(found, overrides), where=str(path))


def saved_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with, with `a.b=c` words applied.

    Raises:
        UsageError: the folder is no run, or an override does not fit
        DataError: its configuration is damaged, or was edited
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run}: no config.yaml, so this is no run; give the folder of a run.")
    advice = "put it back, or train with the changed keys into another output=DIR"
    read_text(path, advice=f"a run has one configuration for ever; {advice}")
    return parse(load(path, overrides), where=str(path))


def parse(tree: Mapping[str, Any], *, where: str = "config") -> RunConfig:
    """Validates nested dictionaries.

    Raises:
        UsageError: one line for the first fault
    """
    try:
        found = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first(error)}") from None
    if found.comparer is not None and found.data.root is None:
        return found.model_copy(update={"data": source_of(found).data})
    return found if found.classifier is None or found.space is not None else _with_states(found)


def of_run(config: RunConfig) -> Path:
    """The diffusion run that a classifier or a comparer is trained for.

    Raises:
        UsageError: the configuration names none
    """
    kind, spec = _dependent(config)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("of"), str):
        raise UsageError(f"{kind}.of: expected the folder of a diffusion run.")
    return Path(spec["of"])


def source_of(config: RunConfig) -> RunConfig:
    """The configuration of that run, or a shipped one of its name.

    Raises:
        UsageError: no such run and no shipped configuration of this name, or no diffusion model
    """
    of, (kind, _) = of_run(config), _dependent(config)
    try:
        run = (of / "config.yaml").is_file()
        source = saved_config(of) if run else load_run_config(config_path("pipelines", of.name))
    except UsageError as error:
        raise UsageError(f"{kind}.of = {of}: no diffusion run ({error})") from None
    if source.network is None:
        raise UsageError(f"{kind}.of = {of}: expected the run of a diffusion model.")
    return source


def _dependent(config: RunConfig) -> tuple[str, Component | None]:
    """What is trained for a diffusion run, and its specification."""
    if config.comparer is not None:
        return "comparer", config.comparer
    return "classifier", config.classifier


def _with_states(config: RunConfig) -> RunConfig:
    """The configuration of a classifier, with the parts that its states come from filled in.

    Raises:
        UsageError: no such run and no shipped configuration of this name, or no diffusion model
    """
    source = source_of(config)
    parts = {name: getattr(source, name) for name in ("space", "kernel", "noise")}
    if config.data.root is None:
        parts["data"] = source.data
    return config.model_copy(update=parts)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    *parents, last = [str(p) for p in first["loc"]] or [""]
    if first["type"] == "extra_forbidden":
        section: Any = RunConfig
        for parent in parents:
            section = _section_of(section.model_fields[parent].annotation)
        choices = list(section.model_fields)
        takes = f"unknown key; choose from {', '.join(choices)}."
        return f"{'.'.join([*parents, last])}: {takes}{suggestion(last, choices)}"
    if first["type"] == "value_error":
        place = f"{'.'.join([*parents, last])}: " if last else ""
        return f"{place}{str(first['ctx']['error']).rstrip('.')}."
    names = [p for p in [*parents, last] if not p.startswith(("function-", "tuple[", "dict["))]
    return f"{'.'.join(names)}: {first['msg']} (got {first['input']!r})."


def _section_of(annotation: Any) -> Any:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))


def changes(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old -> new` for every setting that may not change within a run."""
    before, after = _flat(old.dump()), _flat(new.dump())
    keys = [k for k in {**before, **after} if k not in FREE and not k.startswith("trackers")]
    none = "nothing"
    return [
        f"{k}: {before.get(k, none)} -> {after.get(k, none)}"
        for k in keys
        if before.get(k, none) != after.get(k, none)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found
