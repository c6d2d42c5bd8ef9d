"""Rows: methods as YAML files, one slot per key.

route: {name: diffuse, log_snr: -0.42}      a row of the engine names its slots
sampler: {name: ancestral, steps: 50}
first: ddpm                                 a first pass is a row, by name or written out
first: {row: ra, run: runs/ra}              or a row with the autoencoder of another run
map: {name: posterior, run: runs/siamese}     this map has the comparer of another run
reconstruction: single_pass                 a row of an autoencoder has one instead of a route
adapt: {name: affine, steps: 10}            test-time adaptation; without it the network stays
baseline: {name: smoothing, sigma_mm: 4}    a baseline has one instead of route and sampler
detector: {name: posterior_mean, seeds: 2}  so has a model of the map itself
fitted: {name: padim, ridge: 0.01}          so has a method that learns from the run's volumes
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from volumediff import config
from volumediff.anomaly.baselines import Baseline
from volumediff.anomaly.detectors import Detector
from volumediff.anomaly.fitted._base import Fitted
from volumediff.anomaly.lent import Lender, Lent
from volumediff.anomaly.localizer import Localizer
from volumediff.anomaly.method import Method
from volumediff.anomaly.rebuilder import Rebuilder
from volumediff.errors import UsageError
from volumediff.guidance._base import Guidance

__all__ = ["Row", "build_row", "load_row", "load_tree"]

Row = Localizer | Rebuilder | Baseline | Detector | Fitted

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
    "reconstruction": "reconstruction",
}
# Methods that are one component instead of slots of their own.
SINGLE = ("baseline", "detector", "fitted")
WORDS = {"supervision": ("none", "unsupervised", "self", "weak", "full"), "scope": ()}


def load_row(
    name: str,
    *,
    overrides: Sequence[str] = (),
    lender: Lender | None = None,
) -> Row:
    """A method from its row.

    Arguments:
        name: of a row that ships with the package, or the path of a YAML file
        overrides: `slot.argument=value` words, such as `sampler.steps=10`
        lender: of what the row takes of other runs; None where nothing is lent

    Raises:
        UsageError: unknown row, slot, component or argument; one line that says what is expected
    """
    tree = _read(name, overrides)
    return build_row(tree, lender=lender, where=str(name))


def load_tree(name: str, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A row as nested dictionaries, a first pass that is a name written out.

    Raises:
        UsageError: unknown row, or no YAML file
    """
    tree = _read(name, overrides)
    if isinstance(tree.get("first"), str):
        tree["first"] = load_tree(tree["first"])
    return tree


def _read(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    return config.load(config.config_path("anomaly", str(name)), overrides)


def build_row(
    tree: Mapping[str, Any],
    *,
    lender: Lender | None = None,
    where: str = "row",
) -> Row:
    """A method from the tree of its row.

    Arguments:
        tree: slot -> specification, as in YAML
        lender: of what the row takes of other runs; None where nothing is lent
        where: name of the row, for messages

    Raises:
        UsageError: unknown slot, component or argument; one line that says what is expected
    """
    single = next((name for name in SINGLE if name in tree), None)
    whole = Rebuilder if "reconstruction" in tree else Localizer
    slots = [f.name for f in fields(whole if single is None else Method)]
    slots += ([] if single is None else [single]) + ["corruption"] * (single == "detector")
    for name in tree:
        if name not in slots:
            hint = config.suggestion(str(name), slots)
            raise UsageError(f"{where}.{name}: no slot of a row: {', '.join(slots)}.{hint}")
    values = {
        name: _slot(name, value, lender=lender, where=f"{where}.{name}")
        for name, value in tree.items()
        if name != single
    }
    try:
        if single is not None:
            derived = {"fit": None} if "fit" in _parameters(single, tree[single]) else {}
            where = f"{where}.{single}"
            return config.build(single, tree[single], where=where, **values, **derived)
        if whole is Localizer and "route" not in values:
            raise UsageError(
                f"{where}: expected a route, a reconstruction, a baseline, a detector or a fitted "
                "method, got none of them."
            )
        return whole(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _slot(name: str, value: Any, *, lender: Lender | None, where: str) -> Any:
    if name in WORDS:
        allowed = WORDS[name]
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise UsageError(f"{where}: expected {' or '.join(allowed) or 'text'}, got {value!r}.")
        return value
    if name == "first":
        return _first(value, lender=lender, where=where)
    if name == "reference":
        if not isinstance(value, bool):
            raise UsageError(f"{where}: expected true or false, got {value!r}.")
        return value
    if name in ("noise", "kernel", "recipe", "corruption", "autoencoder"):
        if not isinstance(value, str | type):
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
    # a classifier is handed to the finished row, by `with_classifier`
    takes = _parameters(FAMILIES[name], value)
    derived: dict[str, Any] = {"classifier": None} if "classifier" in takes else {}
    if "comparer" in takes:
        spec = {"name": value} if isinstance(value, str | type) else dict(value)
        run = spec.pop("run", None)
        given = None if run is None or lender is None else lender.comparer(str(run))
        value, derived = spec, {"comparer": given}
    return config.build(FAMILIES[name], value, where=where, **derived)


def _first(value: Any, *, lender: Lender | None, where: str) -> Method:
    """The row of a first pass; with the key `run`, of the run that it works with."""
    if isinstance(value, str):
        return load_row(value)
    if not isinstance(value, Mapping) or set(SINGLE) & set(value):
        raise UsageError(f"{where}: expected the name of a row or a row, got {value!r}.")
    if "row" not in value:
        return build_row(value, lender=lender, where=where)
    if set(value) - {"row", "run"} or not isinstance(value["row"], str):
        raise UsageError(f"{where}: expected the keys row and run alone, got {dict(value)!r}.")
    run = value.get("run")
    lent = None if run is None or lender is None else lender.autoencoder(str(run))
    return Lent(row=load_row(value["row"]), run=lent)


def _guidance(spec: Any, *, where: str) -> Guidance:
    # the number of classes is the checkpoint's: the localizer fills it in when it meets a model
    takes = _parameters("guidance", spec)
    derived: dict[str, Any] = {"classes": 1} if "classes" in takes else {}
    if "classifier" in takes:
        derived["classifier"] = None  # handed to the finished row, by `with_classifier`
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
    """Arguments of the component that a specification names; none if it names none."""
    return config.arguments(family, spec)
