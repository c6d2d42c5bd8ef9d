"""Methods from YAML files, one component per key.

route: {name: diffuse, log_snr: -0.42}      a method of a diffusion model names its components
sampler: {name: ancestral, steps: 50}
first: ddpm                                 a first pass is a method, by name or written out
first: {row: ra, run: runs/ra}              or a method with the autoencoder of another run
map: {name: posterior, run: runs/siamese}   this map has the residual segmenter of another run
reconstruction: single_pass                 a method of an autoencoder has one instead of a route
adapt: {name: affine, steps: 10}            test-time adaptation; without it the network stays
baseline: {name: smoothing, sigma_mm: 4}    a baseline has one instead of route and sampler
detector: {name: posterior_mean, seeds: 2}  so has a model of the map itself
fitted: {name: padim, ridge: 0.01}          so has a method that learns from the run's volumes
members: {scan: scan, place: atlas}         a fusion has several methods, each with a name
method: package.module:Class                a kind of method of your own, with its own keys

The kind follows from a key that only it has (`Method.mark`), from a component that is a method
(`Method.section`), or from the key `method`; keys and their types are the fields of its class.

A member of a fusion is written as the name of a method or its YAML file, or as the keys of a
method, with two more: `use`, a method whose keys these ones override, and `run`, the folder of
another run whose model it works with.

members:
  scan: {use: scan, run: runs/fine, ensemble: {seeds: 4}}
  dark: {baseline: {name: intensity, sign: -1}}
"""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from volumediff import config
from volumediff.anomaly.member import Member
from volumediff.anomaly.methods._base import Method
from volumediff.errors import UsageError

__all__ = ["build_method", "method_tree", "read_method"]

MEMBERS = "members"


def read_method(name: str, *, overrides: Sequence[str] = ()) -> Method:
    """A method from its file.

    Arguments:
        name: of a method that ships with the package, or the path of a YAML file
        overrides: `component.argument=value` overrides, such as `sampler.steps=10`

    Raises:
        UsageError: unknown method, key, component or argument; one line that says what is
            expected
    """
    return build_method(_read(name, overrides), where=str(name))


def method_tree(name: str, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A method as nested dictionaries, a first pass that is a name written out.

    Raises:
        UsageError: unknown method, or no YAML file
    """
    tree = _read(name, overrides)
    if isinstance(tree.get("first"), str):
        tree["first"] = method_tree(tree["first"])
    return tree


def _read(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    tree = config.load(config.config_path("anomaly", str(name)))
    if isinstance(tree.get(MEMBERS), Mapping):  # written out, so that overrides find their keys
        found = {label: _member_tree(spec, label) for label, spec in tree[MEMBERS].items()}
        tree = {**tree, MEMBERS: found}
        own = [word for word in overrides if not _renews_member(word)]
        for word in overrides:
            if _renews_member(word):
                tree = config.overridden(tree, [word])
                label = word.partition("=")[0].split(".")[1]
                tree[MEMBERS][label] = _member_tree(tree[MEMBERS][label], label)
        overrides = own
    return config.overridden(tree, overrides)


def _renews_member(word: str) -> bool:
    """Whether an override replaces a whole member: `members.scan=ddpm`."""
    first, *rest = word.partition("=")[0].split(".")
    return first == MEMBERS and len(rest) == 1


def _member_tree(spec: Any, label: str) -> Any:
    """The keys of a member, with those of the method that it uses."""
    if isinstance(spec, str):
        return _read(spec, ())
    if not isinstance(spec, Mapping) or "use" not in spec:
        return spec
    if not isinstance(spec["use"], str):
        raise UsageError(
            f"members.{label}.use: expected the name of a method or its YAML file, got "
            f"{spec['use']!r}."
        )
    own = {name: value for name, value in spec.items() if name != "use"}
    return _merged(_read(spec["use"], ()), own)


def _merged(tree: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with other values; a component of another name is another one as a whole."""
    found = dict(tree)
    for name, value in own.items():
        old = found.get(name)
        old = {"name": old} if isinstance(old, str) and isinstance(value, Mapping) else old
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = "name" in value and value["name"] != old.get("name")
            found[name] = dict(value) if renamed else _merged(old, value)
        else:
            found[name] = value
    return found


def build_method(tree: Mapping[str, Any], *, where: str = "method") -> Method:
    """A method from the tree of its file; models of other runs are handed in by `Method.bind`.

    Arguments:
        tree: key -> specification, as in YAML
        where: name of the method, for messages

    Raises:
        UsageError: unknown key, component or argument; one line that says what is expected
    """
    cls = _kind(tree, where)
    section = cls.section if cls.section in tree else None
    slots = cls.slots(whole="method" in tree)
    keys = {"method"} if "method" in tree else {section}
    for name in tree:
        if name not in slots and name not in keys:
            known = [*slots, *(k for k in keys if k)]
            hint = config.suggestion(str(name), known)
            raise UsageError(
                f"{where}.{name}: no key of a method; choose from {', '.join(known)}.{hint}"
            )
    hints = typing.get_type_hints(cls.__init__)
    values = {
        name: _slot(hints[name], value, f"{where}.{name}")
        for name, value in tree.items()
        if name not in keys
    }
    if section is not None:
        return config.build(section, tree[section], where=f"{where}.{section}", **values)
    missing = [name for name in cls.required() if name not in values]
    if missing:
        raise UsageError(f"{where}: {cls.__name__} needs {', '.join(missing)}.")
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _kind(tree: Mapping[str, Any], where: str) -> type[Method]:
    """The class of a method's tree."""
    if "method" in tree:
        return config.component("method", tree["method"])
    for family in tree:
        if family in config.families() and _is_method(family):
            name = tree[family]
            name = name.get("name") if isinstance(name, Mapping) else name
            return config.component(family, name)
    kinds = [config.component("method", name) for name in config.available("method")]
    for cls in kinds:
        if cls.mark in tree:
            return cls
    marks = [str(cls.mark) for cls in kinds]
    sections = [f for f in config.families() if f != "method" and _is_method(f)]
    for name in tree:
        hint = config.suggestion(str(name), [*marks, *sections])
        if hint and name not in Method.slots():
            known = ", ".join([*marks, *sections, *Method.slots()])
            raise UsageError(f"{where}.{name}: no key of a method; choose from {known}.{hint}")
    raise UsageError(
        f"{where}: expected one of the keys {', '.join([*marks, *sections])} or method, which say "
        "what kind of method it is, got none of them."
    )


def _is_method(family: str) -> bool:
    """Whether the components of a family are methods."""
    return issubclass(config.base_of(family), Method)


def _members(value: Any, where: str) -> tuple[Member, ...]:
    """The members of a fusion; null leaves one out."""
    if isinstance(value, tuple) and all(isinstance(v, Member) for v in value):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{where}: expected a name for each method, such as {{scan: scan, place: atlas}}, got "
            f"{value!r}."
        )
    found = []
    for label, spec in value.items():
        if spec is None:
            continue
        place = f"{where}.{label}"
        tree = _member_tree(spec, str(label))
        run = None
        if isinstance(tree, Mapping) and "run" in tree:
            tree = dict(tree)
            run = tree.pop("run")
            if run is not None and not isinstance(run, str):
                raise UsageError(f"{place}.run: expected the folder of a run, got {run!r}.")
        try:
            found.append(Member(label=str(label), row=_method(tree, place), run=run))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
    return tuple(found)


def _slot(annotation: Any, value: Any, where: str) -> Any:
    """The value of a key."""
    options = typing.get_args(annotation) or (annotation,)
    if annotation == tuple[Member, ...]:
        return _members(value, where)
    if value is None and type(None) in options:
        return None
    for option in options:
        if isinstance(option, type) and issubclass(option, Method):
            return _method(value, where)
    if typing.get_origin(annotation) is typing.Literal:
        if value not in options:
            raise UsageError(f"{where}: expected {' or '.join(map(str, options))}, got {value!r}.")
        return value
    named = [o for o in (annotation, *options) if typing.get_origin(o) is type]
    if named:
        if not isinstance(value, str | type):
            raise UsageError(
                f"{where}: expected a name, got {value!r}; its arguments are the checkpoint's."
            )
        return config.component(config.family_of(typing.get_args(named[0])[0]), value)
    return config.value_of(annotation, value, where)


def _method(value: Any, where: str) -> Method:
    """A method inside of another: by name, or written out."""
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        return read_method(value)
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{where}: expected the name of a method or its components, got {value!r}."
        )
    return build_method(value, where=where)
