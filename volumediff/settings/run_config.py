"""The configuration of a run: the sections that all runs share, and the keys of its task.

`task: NAME` says what is trained, a file of `volumediff/tasks` or `package.module:Class`; its
schema, a sub-class of `RunConfig`, declares what it takes beside the sections. Components stay
constructor calls (`{name: unet, widths: [...]}`) that `volumediff.config.build` validates. Unknown
keys fail with a suggestion. Nothing but the file itself is read: what a task takes from other runs
it resolves later, see `volumediff.tasks.resolved`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    PositiveInt,
    ValidationError,
    model_validator,
)

from volumediff.config import (
    available,
    component,
    config_path,
    expected,
    load,
    named,
    overlaid,
    overridden,
    shipped,
    suggestion,
)
from volumediff.errors import UsageError, shown
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.settings.sections import (
    Component,
    Data,
    Optim,
    Processes,
    Section,
    ValidationSection,
    declared,
)
from volumediff.storage.records import read_text

__all__ = [
    "RunConfig",
    "changes",
    "fixed_settings",
    "load_run_config",
    "parse",
    "saved_config",
    "with_words",
]

DEFAULT = "diffusion"
# Folders of methods that say how a run is trained, over the configuration of a pipeline, and the
# method of each that suits every pipeline.
METHODS = {"segmentation": "label_diffusion", "translation": "translation"}
NO_CALIBRATION = {"data": {"split": {"calibration": 0.0}}}
# Folders of shipped configurations of runs; the first is that of the default task.
FOLDERS = (
    *("pipelines", "models", "autoencoders", "classifiers", "residual_segmenters", "probes"),
    "students",
)
# What may differ when a run goes on: it changes neither data nor arithmetic of the steps left.
# Recomputation is for runs that meet a smaller card on their way; slabs and host memory change the
# rounding.
FREE = {
    *("optim.steps", "output", "data.workers", "data.cache", "trackers"),
    "memory.checkpoint",
}
FREE_SECTIONS = ("trackers", "processes.")


class RunConfig(Section):
    """Everything that decides a run, whatever it trains; saved as RUN/config.yaml.

    Arguments:
        task: what is trained; the task decides which keys there are beside these
        data: where the volumes are and how they become training samples
        method: segmentation or translation method that the run is configured for, see
            `with_words`; `segment` and `translate` take it where no other is asked for
        start_from: folder of a run whose weights this one begins with; see
            `volumediff.tasks.warm_start`
        adapter: low-rank adapter that is trained and kept in place of the weights, which are read
            from `start_from` whenever the run is loaded
        crop: size of the training crops in voxels; null trains on whole volumes
        memory: how activations are held
        optim: the optimizer and the learning rate
        validation: validation loss, previews and the selection of the best checkpoint
        save_every: updates between two checkpoints
        seed: random seed of weights, data order and noise
        deterministic: only deterministic kernels on CUDA; false is faster and not reproducible to
            the bit
        processes: processes that train together
        trackers: experiment trackers, such as tensorboard or wandb
        output: folder of the run
    """

    task: str = DEFAULT
    data: Data = Data()
    method: str | None = None
    start_from: Path | None = None
    adapter: Component | None = None
    crop: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    memory: Annotated[MemoryPolicy, declared(MemoryPolicy)] = MemoryPolicy()
    optim: Optim = Optim()
    validation: ValidationSection = ValidationSection()
    save_every: PositiveInt = 500
    seed: int = 0
    deterministic: bool = True
    processes: Processes = Processes()
    trackers: tuple[str, ...] = ()
    output: Path = Path("runs/run")

    @model_validator(mode="after")
    def _batches(self) -> "RunConfig":
        if self.optim.batch_size % self.optim.accumulate:
            raise ValueError(
                f"needs optim.batch_size ({self.optim.batch_size}) to be a multiple of "
                f"optim.accumulate ({self.optim.accumulate})"
            )
        return self

    @model_validator(mode="after")
    def _divided_in_float16(self) -> "RunConfig":
        if self.processes.shard and self.memory.dtype == "float16":
            raise ValueError(
                "memory.dtype=float16 scales losses, which is not supported with "
                "processes.shard=true: use bfloat16, or processes.shard=false"
            )
        return self

    @model_validator(mode="after")
    def _adapts_a_run(self) -> "RunConfig":
        if self.adapter is not None and self.start_from is None:
            raise ValueError("adapter: needs start_from, the folder of the run that it adapts")
        return self

    def borrows(self) -> dict[str, Path]:
        """Key -> folder of every run that this one is made from, beside `start_from`."""
        return {}

    @property
    def frozen_runs(self) -> dict[str, Path]:
        """Key -> folder of every run whose weights this one uses and does not train."""
        adapted = {} if self.adapter is None else {"start_from": self.start_from}
        return {**adapted, **self.borrows()}

    def dump(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self, title: str = "The resolved configuration of this run.") -> str:
        """The resolved configuration, as it is saved in the run, under a comment."""
        return f"# {title}\n" + yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration file (or the name of a shipped one) with `a.b=c` overrides applied.

    Raises:
        UsageError: one line with the key, what it takes and what came
    """
    name = str(path)
    if Path(name).is_file():
        found = Path(name)
    else:
        first, *others = FOLDERS
        kinds = (kind for kind in others if name in shipped(kind))
        found = config_path(next(kinds, first), name)
    return parse(with_words(load(found), overrides), where=str(path))


def with_words(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A configuration with `a.b=c` overrides applied.

    `method=NAME` among them lays the training half of a method over the tree first: the section
    `train` of a file NAME.yaml of `configs/segmentation` or `configs/translation`, or of a YAML
    file of one's own. A
    method that builds on a run of the pipeline says under `builds_on` which key names it: it is
    the folder that the pipeline alone would have trained into, and the name of the method is
    added to that of the new run. A method that is about one kind of pipeline says under `only_for`
    which components the configuration must have in the end. No volumes are kept for calibration,
    which is about maps of anomalies, unless words ask for some.

    Raises:
        UsageError: no such method, a configuration that it is not for, or an override that is no
            `key=value`
    """
    names = [word.partition("=")[2] for word in overrides if word.partition("=")[0] == "method"]
    if names and names[-1] != "null":
        first, *others = METHODS
        kind = next((kind for kind in others if names[-1] in shipped(kind)), first)
        method = load(config_path(kind, names[-1]))
        tree = overlaid(overlaid(tree, NO_CALIBRATION), method.get("train") or {})
        if "builds_on" in method:
            own = tree.get("output", str(RunConfig.model_fields["output"].default))
            words = [f"{method['builds_on']}={own}", f"output={own}_{Path(names[-1]).stem}"]
            tree = overridden(tree, words)
        tree = overridden(tree, overrides)
        _check_only_for(names[-1], method.get("only_for") or {}, tree, usual=METHODS[kind])
        return tree
    return overridden(tree, overrides)


def _check_only_for(
    method: str, wanted: Mapping[str, str], tree: Mapping[str, Any], *, usual: str
) -> None:
    """Raises UsageError where a configuration has not the components that a method is about."""
    for key, name in wanted.items():
        got = tree.get(key)
        got = got.get("name") if isinstance(got, Mapping) else got
        if got != name:
            raise UsageError(
                f"method={method}: expected a configuration with {key} {name}, which the method "
                f"is about, got {got}; use another pipeline, or the method {usual}."
            )


def saved_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with, with `a.b=c` overrides applied.

    Raises:
        UsageError: the folder is no run, or an override does not fit
        DataError: its configuration is damaged, or was edited
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run}: no config.yaml, so this is no run; give the folder of a run.")
    advice = "put it back, or train with the changed keys into another output=DIR"
    read_text(path, advice=f"the configuration of a run cannot change; {advice}")
    return parse(load(path, overrides), where=str(path))


def parse(tree: Mapping[str, Any], *, where: str = "config") -> RunConfig:
    """Validates nested dictionaries against the schema of their task; reads no other file.

    Raises:
        UsageError: one line for the first fault
    """
    tree = named(tree)
    name = tree.get("task", DEFAULT)
    if not isinstance(name, str):
        raise UsageError(
            f"{where}: task: expected a name, got {shown(name)}; choose from "
            f"{', '.join(available('task'))}, or give package.module:Class."
        )
    schema = component("task", name).schema
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        fault = _first(error, schema, name) + _advice(error, tree.get("method"))
        raise UsageError(f"{where}: {fault}") from None


def _advice(error: ValidationError, method: object) -> str:
    """Where a method was laid over a file that was written for another task, such as by `plan`."""
    first = error.errors()[0]
    if method is None or first["type"] != "extra_forbidden" or len(first["loc"]) != 1:
        return ""
    return (
        f" A file that was written for another task cannot be trained with method={method}; give "
        f"method={method} to the command that writes the file, such as volumediff plan, too."
    )


def _first(error: ValidationError, schema: type[RunConfig], task: str) -> str:
    first = error.errors()[0]
    *parents, last = [str(p) for p in first["loc"]] or [""]
    needed = [n for n, field in schema.model_fields.items() if field.is_required()]
    absent = {str(e["loc"][0]) for e in error.errors() if e["loc"] and e["input"] is None}
    absent |= {str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"}
    missing = [name for name in needed if name in absent]
    if first["type"] == "extra_forbidden":
        section: Any = schema
        for parent in parents:
            section = _section_of(section.model_fields[parent].annotation)
        choices = list(section.model_fields)
        kind = "unknown key" if parents else f"unknown key for task {task}"
        if not parents and (others := _tasks_with(last, task)):
            kind += f" (it is one of task={_and(others)})"
        takes = f"{kind}; choose from {', '.join(choices)}."
        return f"{'.'.join([*parents, last])}: {takes}{suggestion(last, choices)}"
    if missing:
        return f"needs {', '.join(missing)} for task {task}."
    if first["type"] == "value_error":
        place = f"{'.'.join([*parents, last])}: " if last else ""
        return f"{place}{str(first['ctx']['error']).rstrip('.')}."
    kinds = ("function-", "tuple[", "dict[")  # alternatives of a type, which are no keys
    names = [p for p in [*parents, last] if p != "str" and not p.startswith(kinds)]
    return f"{'.'.join(names)}: {expected(first)}, got {shown(first['input'])}."


def _and(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _tasks_with(key: str, task: str) -> list[str]:
    """Other tasks whose schema has a key."""
    names = [name for name in available("task") if name != task]
    return [n for n in names if key in component("task", n).schema.model_fields]


def _section_of(annotation: Any) -> Any:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))


def changes(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old -> new` for every setting that may not change within a run."""
    before, after = fixed_settings(old), fixed_settings(new)
    none = "nothing"
    return [
        f"{k}: {before.get(k, none)} -> {after.get(k, none)}"
        for k in {**before, **after}
        if before.get(k, none) != after.get(k, none)
    ]


def fixed_settings(config: RunConfig) -> dict[str, str]:
    """Key -> value, as JSON, of every setting that may not change within a run."""
    return {
        key: value
        for key, value in _flat(config.dump()).items()
        if key not in FREE and not key.startswith(FREE_SECTIONS)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found
