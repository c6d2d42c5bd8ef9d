"""The JSON schema of run configurations, for editors: keys, types and names as they are typed.

It is made from the schemas of the tasks and the constructors of the components that ship. It
accepts whatever `parse` accepts of them; what follows from other keys (which parts fit) is for
`volumediff plan` and `train` to say. A component of one's own, `package.module:Class`, takes
anything.
"""

import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from volumediff import __version__
from volumediff.config import available, component, described, family_of
from volumediff.config.building import configurable, type_adapter
from volumediff.config.families import FAMILIES
from volumediff.data.survey import AUTO
from volumediff.settings.run_config import DEFAULT

__all__ = ["SCHEMA_FILE", "json_schema"]

SCHEMA_FILE = "volumediff.schema.json"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
OUTSIDE = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"}
# Keys that are not called like the family of their components.
FAMILY_OF = {"losses": "loss"}
# 200_000 and 1e-4 are text in one version of YAML and numbers in the other.
NUMBER = r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?$"
KINDS = {"integer", "number"}
ANYTHING = {"type": "object", "additionalProperties": True}
OUTSIDER = {"type": "object", "properties": {"name": OUTSIDE}, "required": ["name"]}
OTHER_WORDS = {"layout": (AUTO,)}
BORROWED = {"autoencoder", "image_codec"}  # the folder of a run may take their place


@functools.cache  # importing and reading every component takes seconds
def json_schema() -> str:
    """The schema as a JSON text."""
    made = _Schema()
    chosen = []
    for task in available("task"):
        made.add_task(task)
        named = {"properties": {"task": {"const": task}}}
        if task != DEFAULT:
            named["required"] = ["task"]  # type: ignore[assignment]
        chosen.append({"if": named, "then": {"$ref": f"#/$defs/task.{task}"}})
    schema = {
        "$schema": DRAFT,
        "title": f"A run of volumediff {__version__}",
        "type": "object",
        "properties": {"task": {"anyOf": [{"enum": available("task")}, OUTSIDE]}},
        "allOf": chosen,
        "$defs": made.definitions,
    }
    return json.dumps(_lenient(schema), indent=1) + "\n"


class _Schema:
    """Definitions, each made once."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def add_task(self, task: str) -> None:
        """The keys of a task."""
        schema = component("task", task).schema.model_json_schema()
        for name, inner in schema.pop("$defs", {}).items():
            self.definitions[name] = self._with_components(inner)
        self.definitions[f"task.{task}"] = self._with_components(schema)

    def family(self, name: str) -> dict[str, Any]:
        """A reference to the components of a family."""
        key = f"component.{name}"
        if key not in self.definitions:
            self.definitions[key] = {}  # families refer to each other
            known = described(name)
            names = {"anyOf": [{"enum": [*known, *OTHER_WORDS.get(name, ())]}, OUTSIDE]}
            if name in BORROWED:
                names = {"type": "string"}
            each = [self._component(name, n, text) for n, text in known.items()]
            self.definitions[key] = {"anyOf": [names, *each, OUTSIDER]}
        return {"$ref": f"#/$defs/{key}"}

    def _component(self, family: str, name: str, text: str) -> dict[str, Any]:
        cls = component(family, name)
        hints = typing.get_type_hints(cls.__init__)
        keys = {n: self._value(hints.get(n, Any)) for n in configurable(cls)}
        return {
            "type": "object",
            "description": text,
            "properties": {"name": {"const": name}, **keys},
            "required": ["name"],
            "additionalProperties": False,
        }

    def _value(self, annotation: Any) -> dict[str, Any]:
        """What an argument takes; anything where its annotation has no schema."""
        options: tuple[Any, ...] = (annotation,)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            options = typing.get_args(annotation)
        found = []
        for option in options:
            inner = typing.get_args(option)[:1] if typing.get_origin(option) is tuple else ()
            if family_of(option):
                found.append(self.family(str(family_of(option))))
            elif inner and family_of(inner[0]):
                found.append({"type": "array", "items": self.family(str(family_of(inner[0])))})
            else:
                found.append(self._plain(option))
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _plain(self, annotation: Any) -> dict[str, Any]:
        try:
            schema = type_adapter(annotation).json_schema()
        except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, TypeError):
            return {}
        self.definitions |= schema.pop("$defs", {})
        return schema

    def _with_components(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Properties that are components refer to their family."""
        for name, found in schema.get("properties", {}).items():
            family = FAMILY_OF.get(name, name)
            if family in FAMILIES:
                options = [self._options(family, option) for option in found.get("anyOf", [found])]
                if ANYTHING in options:
                    options = [o for o in options if o not in ({"type": "string"}, ANYTHING)]
                    own = self.family(family) if found.get("anyOf") else self._of_a_run(family)
                    options.insert(0, own)
                kept = {k: found[k] for k in ("default", "title") if k in found}
                schema["properties"][name] = {**kept, "anyOf": options}
        return schema

    def _options(self, family: str, option: dict[str, Any]) -> dict[str, Any]:
        """One of the types of a property; lists of components are lists of the family."""
        if option.get("type") == "array" and ANYTHING in option.get("items", {}).get("anyOf", ()):
            return {"type": "array", "items": self.family(family)}
        return {k: v for k, v in option.items() if k not in ("default", "title")}

    def _of_a_run(self, family: str) -> dict[str, Any]:
        """A component that is trained for the run that its key `of` names."""
        each = [self._component(family, n, text) for n, text in described(family).items()]
        for one in each:
            one["properties"]["of"] = {"type": "string"}
            one["required"] = ["name", "of"]
        return {"anyOf": [*each, OUTSIDER]}


def _lenient(schema: Any) -> Any:
    """Numbers as some editors read them, as text."""
    if isinstance(schema, list):
        return [_lenient(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner = {key: _lenient(value) for key, value in schema.items()}
    if schema.get("type") in KINDS:
        return {"anyOf": [inner, {"type": "string", "pattern": NUMBER}]}
    return inner
