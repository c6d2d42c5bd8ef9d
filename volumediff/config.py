"""YAML in, validated constructor calls out.

A component is written as `{name: wavelet, levels: 2}`: the name is a file in a family folder (or a
class, in snake case, of a block module), the other keys are keyword arguments of its constructor,
checked against the constructor's own annotations. Where an annotation is itself a family's base
class, the value is again a component. Arguments that follow from other parts (channels, strides)
are passed as `derived` and may not be written in YAML.
"""

import difflib
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from volumediff.errors import UsageError

__all__ = [
    "available",
    "build",
    "component",
    "config_path",
    "load",
    "name_of",
    "overridden",
    "shipped",
    "suggestion",
]

# Folders in which every file is a component, named by its stem.
FOLDERS = {
    "space": "volumediff.spaces",
    "schedule": "volumediff.schedules",
    "times": "volumediff.times",
    "kernel": "volumediff.kernels",
    "network": "volumediff.networks",
    "autoencoder": "volumediff.autoencoders",
    "classifier": "volumediff.classifiers",
    "comparer": "volumediff.comparers",
    "guidance": "volumediff.guidance",
    "sampler": "volumediff.samplers",
    "importer": "volumediff.importers",
    "layout": "volumediff.data.layouts",
    "recipe": "volumediff.recipes",
    "corruption": "volumediff.data.corruptions",
    "route": "volumediff.anomaly.routes",
    "policy": "volumediff.anomaly.policies",
    "map": "volumediff.anomaly.maps",
    "fitted": "volumediff.anomaly.fitted",
}
# Files that hold all components of a family, named by their class in snake case.
MODULES = {
    "intensity": "volumediff.data.intensity",
    "region": "volumediff.data.regions",
    "noise": "volumediff.noise",
    "where": "volumediff.anomaly.where",
    "ensemble": "volumediff.anomaly.ensemble",
    "post": "volumediff.anomaly.post",
    "threshold": "volumediff.anomaly.threshold",
    "score": "volumediff.anomaly.score",
    "calibration": "volumediff.anomaly.calibration",
    "adaptation": "volumediff.anomaly.adaptation",
    "baseline": "volumediff.anomaly.baselines",
    "detector": "volumediff.anomaly.detectors",
    "reconstruction": "volumediff.anomaly.reconstruction",
}
# Both build plain values alone; libyaml's is ten times as fast, and not everywhere.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ROOTS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")


def suggestion(word: str, choices: list[str]) -> str:
    """` Did you mean 'x'?` for the nearest choice, or nothing."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def name_of(cls: type) -> str:
    """The name of a class in configurations, its own in snake case."""
    name = cls.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _members(family: str) -> dict[str, str]:
    """YAML name -> `module:Class or nothing` of every component of the family."""
    if family in FOLDERS:
        package = importlib.import_module(FOLDERS[family])
        stems = [m.name for m in pkgutil.iter_modules(package.__path__)]
        return {s: f"{FOLDERS[family]}.{s}" for s in sorted(stems) if not s.startswith("_")}
    if family in MODULES:
        module = importlib.import_module(MODULES[family])
        classes = [getattr(module, n) for n in module.__all__]
        return {
            name_of(c): f"{MODULES[family]}:{c.__name__}"
            for c in classes
            if inspect.isclass(c) and not inspect.isabstract(c) and _family(c) == family
        }
    raise UsageError(f"{family!r} is no family of components: choose from {_families()}.")


def _families() -> str:
    return ", ".join(sorted([*FOLDERS, *MODULES]))


def _family(annotation: object) -> str | None:
    """The family whose abstract base class the annotation is or derives from."""
    if not inspect.isclass(annotation):
        return None
    for base in annotation.__mro__:
        if not inspect.isabstract(base):
            continue
        for family, folder in FOLDERS.items():
            if base.__module__ == f"{folder}._base":
                return family
        for family, module in MODULES.items():
            if base.__module__ == module:
                return family
    return None


def available(family: str) -> list[str]:
    """Names that a configuration may use for the family, for example `space`."""
    return list(_members(family))


def component(family: str, name: str) -> type:
    """The class behind a name.

    Raises:
        UsageError: no such name; the message lists the names there are
    """
    members = _members(family)
    if name not in members:
        hint = suggestion(str(name), list(members))
        raise UsageError(f"{family}.name = {name!r}: choose from {', '.join(members)}.{hint}")
    path, _, wanted = members[name].partition(":")
    module = importlib.import_module(path)
    if wanted:
        return getattr(module, wanted)
    classes = [getattr(module, n) for n in module.__all__]
    return next(c for c in classes if inspect.isclass(c) and _family(c) == family)


def build(family: str, spec: str | Mapping[str, Any], *, where: str = "", **derived: Any) -> Any:
    """Constructs a component from its specification.

    Arguments:
        family: for example `space`, `kernel`, `route`
        spec: a name, or a mapping with the key `name` and keyword arguments
        where: path of the specification in its file, for messages
        derived: arguments that are computed, not configured

    Raises:
        UsageError: unknown name or key, or wrong type; one line that says what is expected
    """
    where = where or family
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise UsageError(
            f"{where}: expected a name or a mapping with the key 'name', got {spec!r}; "
            f"choose the name from {', '.join(available(family))}."
        )
    if not isinstance(spec["name"], str):
        raise UsageError(f"{where}.name: expected a name, got {spec['name']!r}.")
    cls = component(family, spec["name"])
    hints = typing.get_type_hints(cls.__init__)
    parameters = {n: p for n, p in inspect.signature(cls).parameters.items() if n not in derived}
    values = {}
    for name, value in spec.items():
        if name == "name":
            continue
        if name not in parameters:
            takes = ", ".join(parameters) or "no arguments"
            reason = (
                "is derived, not configured"
                if name in derived
                else f"{cls.__name__} takes {takes}"
            )
            raise UsageError(f"{where}.{name}: {reason}.{suggestion(name, list(parameters))}")
        values[name] = _value(hints.get(name, Any), value, f"{where}.{name}")
    missing = [
        n
        for n, p in parameters.items()
        if n not in values and p.default is inspect.Parameter.empty
    ]
    if missing:
        raise UsageError(f"{where}: {cls.__name__} needs {', '.join(missing)}.")
    try:
        return cls(**derived, **values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _value(annotation: Any, value: Any, where: str) -> Any:
    """The value converted to its annotation; nested components are built."""
    options = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = list(typing.get_args(annotation))
    if value is None and type(None) in options:
        return None
    for option in options:
        family = _family(option)
        if family:
            return build(family, value, where=where)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            inner = _family(typing.get_args(option)[0])
            if inner:
                return tuple(build(inner, v, where=f"{where}[{i}]") for i, v in enumerate(value))
    config = None if inspect.isclass(annotation) else ConfigDict(arbitrary_types_allowed=True)
    try:
        adapter = TypeAdapter(annotation, config=config)
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{p}]" for p in first["loc"] if isinstance(p, int))
        raise UsageError(f"{where}{place}: {first['msg']} (got {first['input']!r}).") from error


def config_path(kind: str, name: str) -> Path:
    """The file of a named configuration that ships with the package, or the path itself.

    Arguments:
        kind: folder below `configs`, such as `anomaly` or `pipelines`
        name: a file name without its ending, or a path to a YAML file
    """
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    names = []
    for root in ROOTS:
        folder = root / kind
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
        names += sorted(p.stem for p in folder.glob("*.yaml"))
    hint = suggestion(name, names)
    raise UsageError(
        f"{kind} configuration {name!r}: no such file, and none of the shipped "
        f"{', '.join(dict.fromkeys(names)) or 'ones'}.{hint}"
    )


def shipped(kind: str) -> list[str]:
    """Names of the configurations of a folder that ship with the package."""
    return sorted({p.stem for root in ROOTS for p in (root / kind).glob("*.yaml")})


def load(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file as nested dictionaries, with `a.b=c` words applied.

    Raises:
        UsageError: not YAML, no mapping, or an override that is no `key=value`
    """
    try:
        tree = _safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.problem}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as a YAML file ({reason}).") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected a mapping of sections, got {type(tree).__name__}.")
    return overridden(tree, overrides)


def _safe_load(text: str) -> Any:
    """What `yaml.safe_load` gives, by the faster loader."""
    loader = LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def overridden(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the tree with `a.b=c` words applied; values are read as YAML."""
    result = _copy(tree)
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise UsageError(f"{word!r}: expected key=value, for example optim.lr=1e-4.")
        *parents, last = path.split(".")
        node = result
        for parent in parents:
            inner = node.get(parent)
            # a bare name such as `space: voxel` is the short form of {name: voxel}
            node[parent] = {"name": inner} if isinstance(inner, str) else (inner or {})
            node = node[parent]
            if not isinstance(node, dict):
                raise UsageError(f"{word!r}: '{parent}' is a value, not a section.")
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{word!r}: the value is not valid YAML.") from error
    return result


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {k: _copy(v) for k, v in tree.items()}
    return [_copy(v) for v in tree] if isinstance(tree, list) else tree
