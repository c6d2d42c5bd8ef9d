"""Components by name, built from YAML, and the YAML files themselves."""

from volumediff.config.building import arguments, build, value_of
from volumediff.config.components import (
    available,
    base_of,
    component,
    described,
    family_of,
    name_of,
    named,
    reference,
    suggestion,
)
from volumediff.config.expectation import expected
from volumediff.config.families import FAMILIES, Family, families
from volumediff.config.files import ROOTS, config_path, head, load, overlaid, overridden, shipped

__all__ = [
    "FAMILIES",
    "ROOTS",
    "Family",
    "arguments",
    "available",
    "base_of",
    "build",
    "component",
    "config_path",
    "described",
    "expected",
    "families",
    "family_of",
    "head",
    "load",
    "name_of",
    "named",
    "overlaid",
    "overridden",
    "reference",
    "shipped",
    "suggestion",
    "value_of",
]
