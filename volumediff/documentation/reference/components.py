"""The reference of components: every family, every component, every argument."""

import importlib
import inspect

from volumediff.config import available, component, described, families
from volumediff.config.families import FAMILIES
from volumediff.config.listing import summary
from volumediff.documentation.reference.arguments import Argument, arguments_of
from volumediff.documentation.reference.markdown import code, page, table

__all__ = ["components"]

LEAD = """Everything that a configuration or a method can name. A component is written as its name
or as a mapping with its arguments, such as `sampler: {name: ddim, steps: 25}`; a class of your own
as `package.module:Class`. `volumediff info FAMILY` lists a family on the terminal."""
# Arguments that follow from the rest of a configuration, and cannot be written.
DERIVED = {
    "autoencoder": {"channels", "shape"},
    "classifier": {"in_channels", "classes"},
    "conditioner": {"host"},
    "image_codec": {"autoencoder", "inputs", "stride"},
    "network": {"in_channels", "out_channels", "conditioner_inputs"},
    "pretext": {"features"},
    "residual_segmenter": {"channels"},
    "space": {"digest"},
}
ELSEWHERE = {"task"}  # on the page of configuration keys


def components() -> str:
    """The page."""
    names = [family for family in families() if family not in ELSEWHERE]
    listed = ", ".join(f"[{family}](#{family})" for family in names)
    return page("Components", LEAD, f"Families: {listed}.", *(_family(f) for f in names))


def _family(family: str) -> str:
    place = FAMILIES[family].place
    about = summary(inspect.getdoc(importlib.import_module(place)))
    lines = described(family)
    parts = [f"## {family}", f"{about} Files: `{place}`."]
    for name in available(family):
        parts.append(f"### {name} ({family})\n\n{lines[name]}")
        parts.append(_arguments(family, name))
    return "\n\n".join(part for part in parts if part)


def _arguments(family: str, name: str) -> str:
    shown = [a for a in arguments_of(component(family, name)) if _is_configured(family, a)]
    rows = ((code(a.name), a.type, code(a.default) or "required", a.text) for a in shown)
    return table(("argument", "value", "default", "meaning"), rows)


def _is_configured(family: str, argument: Argument) -> bool:
    return argument.name not in DERIVED.get(family, ())
