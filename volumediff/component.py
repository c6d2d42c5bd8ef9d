r"""Base class of components: identity, requirements and auxiliary models, read from the fields.

    level: float = 0.1                                 an argument: part of the identity
    map: Map                                           another component, in which all this holds
    scope: str = presentation("any deviation")         for readers: no part of the identity
    classifier: ClassPosterior | None = borrowed(...)  a model of another run, handed in
    run: str | None = presentation(None)               the folder of that run

A component is a frozen dataclass that derives from `Component`, and adds what a run must be like
for it in `needs`. Whoever holds a component can walk its parts, merge their needs, hand in what
they borrow, and decide by its identity whether two of them make the same map.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any, ClassVar, TypeVar

__all__ = [
    "Component",
    "Loan",
    "Provider",
    "Request",
    "Requirement",
    "borrowed",
    "handed_in",
    "identity_of",
    "is_handed_in",
    "presentation",
]

Own = TypeVar("Own", bound="Component")
_FREE, _LOAN, _HANDED = "presentation", "loan", "handed"


class Requirement(ABC):
    """What a run must be like for a component. A frozen dataclass, so that equal ones are one."""

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides with which a configuration trains such a run; none where all of them do."""
        return ()

    @property
    def configuration(self) -> str | None:
        """The shipped configuration that trains such a run, where it is not one of a pipeline."""
        return None

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raises ValueError for another model, in one line: what was expected, what came, and what
        to use or train instead."""


@dataclass(frozen=True)
class Loan:
    """A kind of model that components borrow from other runs.

    Arguments:
        kind: name by which it is loaded
        what: what is expected, in words
        configurations: folder of the configurations that train one
        option: parameter that names one run for all components of a method; None where
            only the component's own argument `run` does
        required: whether a method cannot be checked without; what is fitted on the run itself
            comes after the check
    """

    kind: str
    what: str
    configurations: str = ""
    option: str | None = None
    required: bool = True


@dataclass(frozen=True, eq=False)
class Request:
    """A field of a component that waits for a model of another run.

    Arguments:
        component: that borrows
        field: of it
        loan: what is borrowed
        place: of the component in the method, such as `map` or `guidance.terms[0]`
        lender: the other run that the component works with; None for that of the whole method
    """

    component: "Component"
    field: str
    loan: Loan
    place: str
    lender: Any = None

    @property
    def run(self) -> str | None:
        """The folder that the component itself names."""
        return getattr(self.component, "run", None)

    @property
    def value(self) -> Any:
        """What was handed in; None for nothing yet."""
        return getattr(self.component, self.field)

    @property
    def name(self) -> str:
        """Where the run is written: an option, or a key of the method."""
        own = f"{self.place}.run" if self.place else "run"
        return own if self.loan.option is None or self.run is not None else self.loan.option


Provider = Callable[[Request], Any]
"""What a request gets; None for nothing."""


def borrowed(loan: Loan) -> Any:
    """A dataclass field for a model of another run: None until `Component.bind` hands it in.

    What is handed in has the attributes `digest` (SHA-256 of the weights) and `seen` (what they
    were trained on), and `facts` for the records of results.
    """
    return field(default=None, kw_only=True, metadata={_LOAN: loan, _HANDED: True})


def handed_in(default: Any) -> Any:
    """A dataclass field that follows from the run, and may not be configured."""
    return field(default=default, kw_only=True, metadata={_FREE: True, _HANDED: True})


def presentation(default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """A dataclass field that changes no map: text for readers, or a step on finished maps."""
    given = {"default": default} if default_factory is MISSING else {}
    made = {} if default_factory is MISSING else {"default_factory": default_factory}
    return field(**given, **made, metadata={_FREE: True})


def is_handed_in(f: Field[Any]) -> bool:
    """Whether a dataclass field is handed in and never configured."""
    return _HANDED in f.metadata


class Component:
    """A part of a method; a frozen dataclass.

    Attributes:
        revision: raised when the same arguments come to mean another map, so that calibrations of
            before are not taken for those of now
        alone: whether its parts work with a model of their own, and not with the run's
    """

    revision: ClassVar[int] = 1
    alone: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """What the component itself requires of a run."""
        return ()

    def _inside(self) -> Iterator[tuple[str, "Component"]]:
        """Name and value of the components among the fields."""
        for f in fields(self):
            value = getattr(self, f.name)
            if _LOAN in f.metadata:
                continue
            if isinstance(value, Component):
                yield f.name, value
            elif isinstance(value, tuple):
                yield from (
                    (f"{f.name}[{i}]", v) for i, v in enumerate(value) if isinstance(v, Component)
                )

    def parts(self, place: str = "") -> Iterator[tuple[str, "Component"]]:
        """The component and all that it is made of, with their places.

        Arguments:
            place: of the component itself
        """
        yield place, self
        for name, part in self._inside():
            yield from part.parts(f"{place}.{name}" if place else name)

    def requirements(self) -> tuple[Requirement, ...]:
        """What the component and its parts require of a run, each once."""
        found = list(self.needs)
        if not self.alone:
            for _, part in self._inside():
                found += [r for r in part.requirements() if r not in found]
        return tuple(found)

    def requests(self) -> tuple[Request, ...]:
        """What the component and its parts borrow, handed in or not."""
        return tuple(
            Request(part, f.name, f.metadata[_LOAN], place)
            for place, part in self.parts()
            for f in fields(part)
            if _LOAN in f.metadata
        )

    def bind(self: Own, provide: Provider, place: str = "") -> Own:
        """The component, with what it and its parts borrow.

        Arguments:
            provide: request -> what it gets; None leaves the field as it is
            place: of the component itself

        Raises:
            ValueError: what is handed in does not suit a part
        """
        changes: dict[str, Any] = {}

        def bound(value: Any, name: str) -> Any:
            inside = isinstance(value, Component)
            return value.bind(provide, f"{place}.{name}" if place else name) if inside else value

        for f in fields(self):
            old = getattr(self, f.name)
            if _LOAN in f.metadata:
                given = provide(Request(self, f.name, f.metadata[_LOAN], place))
                new = old if given is None else given
            elif isinstance(old, tuple):
                made = tuple(bound(v, f"{f.name}[{i}]") for i, v in enumerate(old))
                new = old if all(a is b for a, b in zip(made, old, strict=True)) else made
            else:
                new = bound(old, f.name)
            if new is not old:
                changes[f.name] = new
        return replace(self, **changes) if changes else self

    def identity(self) -> dict[str, Any]:
        """What shapes the result, as plain values: class, arguments that are not the defaults,
        and digests of what is borrowed."""
        found: dict[str, Any] = {"name": _class_name(type(self))}
        if self.revision != 1:
            found["revision"] = self.revision
        return found | _arguments(self)


def identity_of(value: Any) -> Any:
    """The identity of an argument, as plain values that JSON can hold.

    Raises:
        TypeError: the argument has none, such as a tensor
    """
    if isinstance(value, Component):
        return value.identity()
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": _class_name(type(value))} | _arguments(value)
    if isinstance(value, type):
        return _class_name(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple | list):
        return [identity_of(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): identity_of(v) for k, v in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 3 and 3.0 are one argument
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"expected plain values, classes and dataclasses, got a {type(value).__name__}; define "
        "identity() of the component that has it."
    )


def _arguments(value: Any) -> dict[str, Any]:
    """The identity of the fields of a dataclass that are not at their defaults."""
    found = {}
    for f in fields(value):
        if not f.init or _FREE in f.metadata:
            continue
        own = getattr(value, f.name)
        if _LOAN in f.metadata:
            if own is not None:
                found[f.name] = own.digest
            continue
        mine = identity_of(own)
        if f.default is not MISSING and mine == identity_of(f.default):
            continue
        if f.default_factory is not MISSING and mine == identity_of(f.default_factory()):
            continue
        found[f.name] = mine
    return found


def _class_name(cls: type) -> str:
    """A class of this package by its name, wherever its file is; others with their module."""
    own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if own else f"{cls.__module__}:{cls.__qualname__}"
