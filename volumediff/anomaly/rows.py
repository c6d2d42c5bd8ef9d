"""Rows: methods as YAML files, one slot per key.

route: {name: diffuse, log_snr: -0.42}      a row of the engine names its slots
sampler: {name: ancestral, steps: 50}
first: ddpm                                 a first pass is a row, by name or written out
adapt: {name: affine, steps: 10}            test-time adaptation; without it the network stays
baseline: {name: smoothing, sigma_mm: 4}    a baseline has one instead of route and sampler
detector: {name: posterior_mean, seeds: 2}  so has a model of the map itself
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from volumediff import config
from volumediff.anomaly.baselines import Atlas, Baseline
from volumediff.anomaly.detectors import Detector
from volumediff.anomaly.localizer import Localizer, Method
from volumediff.errors import UsageError
from volumediff.guidance._base import Guidance

__all__ = ["Row", "available_rows", "load_row"]

Row = Localizer | Baseline | Detector

FAMILIES = {
    "normalize": "calibration",
    "post": "post",
    "threshold": "threshold",
    "score": "score",
    "route": "route",
    "policy": "policy",
    "sampler": "sampler",
    "ensemble": "ensemble",
    "map": "map",
}
WORDS = {"supervision": ("none", "unsupervised", "self", "weak", "full"), "scope": ()}


def available_rows() -> list[str]:
    """Names of the methods that ship with the package."""
    return sorted({p.stem for root in config.ROOTS for p in (root / "anomaly").glob("*.yaml")})


def load_row(name: str, *, atlas: Atlas | None = None, overrides: Sequence[str] = ()) -> Row:
    """A method from its row.

    Arguments:
        name: of a row that ships with the package, or the path of a YAML file
        atlas: healthy atlas, for the baselines that need one
        overrides: `slot.argument=value` words, such as `sampler.steps=10`

    Raises:
        UsageError: unknown row, slot, component or argument; one line that says what is expected
    """
    tree = config.load(config.config_path("anomaly", str(name)), overrides)
    return _method(tree, atlas=atlas, where=str(name))


def _method(tree: Mapping[str, Any], *, atlas: Atlas | None, where: str) -> Row:
    whole = next((name for name in ("baseline", "detector") if name in tree), None)
    slots = [f.name for f in fields(Localizer if whole is None else Method)]
    if whole is not None:
        slots += [whole] + ["corruption"] * (whole == "detector")
    for name in tree:
        if name not in slots:
            hint = config.suggestion(str(name), slots)
            raise UsageError(f"{where}.{name}: no slot of a row: {', '.join(slots)}.{hint}")
    values = {
        name: _slot(name, value, atlas=atlas, where=f"{where}.{name}")
        for name, value in tree.items()
        if name != whole
    }
    try:
        if whole == "detector":
            return config.build("detector", tree[whole], where=f"{where}.detector", **values)
        if whole == "baseline":
            return _baseline(tree["baseline"], values, atlas=atlas, where=f"{where}.baseline")
        if "route" not in values:
            raise UsageError(f"{where}: expected a route, a baseline or a detector, got none.")
        return Localizer(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _slot(name: str, value: Any, *, atlas: Atlas | None, where: str) -> Any:
    if name in WORDS:
        allowed = WORDS[name]
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise UsageError(f"{where}: expected {' or '.join(allowed) or 'text'}, got {value!r}.")
        return value
    if name == "first":
        if isinstance(value, str):
            return load_row(value)
        if not isinstance(value, Mapping) or not {"baseline", "detector"}.isdisjoint(value):
            raise UsageError(f"{where}: expected the name of a row or a row, got {value!r}.")
        return _method(value, atlas=atlas, where=where)
    if name == "reference":
        if not isinstance(value, bool):
            raise UsageError(f"{where}: expected true or false, got {value!r}.")
        return value
    if name in ("noise", "kernel", "recipe", "corruption"):
        if not isinstance(value, str):
            raise UsageError(
                f"{where}: expected a name, got {value!r}; its arguments are the checkpoint's."
            )
        return config.component(name, value)
    if name == "guidance":
        return _guidance(value, where=where)
    if name == "adapt":
        return None if value is None else config.build("adaptation", value, where=where)
    if name == "post":
        if not isinstance(value, list):
            raise UsageError(f"{where}: expected a list of steps, got {value!r}.")
        return tuple(config.build("post", v, where=f"{where}[{i}]") for i, v in enumerate(value))
    return config.build(FAMILIES[name], value, where=where)


def _baseline(spec: Any, values: dict[str, Any], *, atlas: Atlas | None, where: str) -> Baseline:
    derived = dict(values)
    if "atlas" in _parameters("baseline", spec):
        derived["atlas"] = atlas
    return config.build("baseline", spec, where=where, **derived)


def _guidance(spec: Any, *, where: str) -> Guidance:
    # the number of classes is the checkpoint's: the localizer fills it in when it meets a model
    takes = _parameters("guidance", spec)
    derived: dict[str, Any] = {"classes": 1} if "classes" in takes else {}
    if "terms" in takes:
        terms = spec.get("terms") if isinstance(spec, Mapping) else None
        if not isinstance(terms, list):
            raise UsageError(f"{where}.terms: expected a list of guidances, got {terms!r}.")
        spec = {name: value for name, value in spec.items() if name != "terms"}
        derived["terms"] = tuple(
            _guidance(term, where=f"{where}.terms[{i}]") for i, term in enumerate(terms)
        )
    return config.build("guidance", spec, where=where, **derived)


def _parameters(family: str, spec: Any) -> set[str]:
    """Fields of the component that a specification names; none if it names none."""
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    if name not in config.available(family):
        return set()  # config.build says so better
    return {f.name for f in fields(config.component(family, name))}
