"""Shipped components and their descriptions, read from source files without importing them.

Importing all of them takes seconds, since most need torch; their names and first docstring lines
are wanted by `volumediff info` and by messages. Classes are matched to their family as Python
would: along the bases that the files name, and through the imports of these.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from volumediff.config.families import FAMILIES, Family, family

__all__ = ["class_name", "listed", "name_of", "summary"]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT.name
# Between the small and the large letter of two words, and before the last letter of capitals.
WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class _Class:
    module: str
    name: str
    doc: str
    bases: tuple[str, ...]
    defined: frozenset[str]
    abstract: frozenset[str]


@dataclass(frozen=True)
class _Module:
    doc: str
    classes: dict[str, _Class]
    imports: dict[str, str]


def name_of(cls: type) -> str:
    """The name of a class in configurations: of its file, where a file is a component.

    Elsewhere it is `class_name`, as for what is no component.
    """
    known = next((f for f in FAMILIES.values() if f.holds(cls)), None)
    package, _, stem = cls.__module__.rpartition(".")
    if known is not None and known.folder and package == known.place and stem[0] != "_":
        return stem
    return class_name(cls.__name__, known)


def class_name(name: str, known: Family | None) -> str:
    """The name of a class in snake case, without that of its family.

    `GaussianNoise` of the family noise is `gaussian`, and so is `Gaussian` of the family kernel.
    """
    words = WORDS.sub("_", name).lower()
    return words if known is None else words.removesuffix(f"_{known.name}")


def summary(doc: str | None) -> str:
    """The first sentence of a docstring, in one line."""
    paragraph = " ".join((doc or "").strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.A-Z])(?<!et al)\. ", paragraph, maxsplit=1)[0]
    return sentence.rstrip(" .,:;") + "." if sentence else ""


@cache
def listed(name: str) -> dict[str, str]:
    """YAML name -> one-line description of every component that ships in a family.

    It is the first sentence of the file, where a file is a component, or of the class.
    """
    known = family(name)
    if not known.folder:
        classes = _concrete(known.place, known)
        return {class_name(c.name, known): summary(c.doc) for c in classes}
    folder = ROOT.joinpath(*known.place.split(".")[1:])
    stems = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    stems += sorted(
        p.parent.name for p in folder.glob("*/__init__.py") if not p.parent.name.startswith("_")
    )
    return {stem: summary(_read(f"{known.place}.{stem}").doc) for stem in stems}


def _concrete(module: str, known: Family) -> Iterator[_Class]:
    """Classes of a file that a configuration can name."""
    for found in _read(module).classes.values():
        usable = not found.name.startswith("_") and not _abstract(found)
        if usable and f"{module}:{found.name}" != known.base and _extends(found, known.base):
            yield found


@cache
def _read(module: str) -> _Module:
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path.with_suffix(".py")
    tree = ast.parse((file if file.is_file() else path / "__init__.py").read_text("utf-8"))
    imports, classes = {}, {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.ClassDef):
            classes[node.name] = _class(module, node)
    return _Module(ast.get_docstring(tree) or "", classes, imports)


def _class(module: str, node: ast.ClassDef) -> _Class:
    defined, abstract = set(), set()
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            words = {ast.unparse(d).rpartition(".")[2] for d in inner.decorator_list}
            (abstract if "abstractmethod" in words else defined).add(inner.name)
        elif isinstance(inner, ast.Assign):
            defined |= {t.id for t in inner.targets if isinstance(t, ast.Name)}
        elif isinstance(inner, ast.AnnAssign) and inner.value is not None:
            defined.add(ast.unparse(inner.target))
    return _Class(
        module,
        node.name,
        ast.get_docstring(node) or "",
        tuple(ast.unparse(b) for b in node.bases),
        frozenset(defined),
        frozenset(abstract),
    )


def _bases(cls: _Class) -> Iterator[_Class]:
    """The bases that are classes of this package."""
    for base in cls.bases:
        found = _resolved(cls.module, base)
        if found is not None:
            yield found


def _resolved(module: str, name: str) -> _Class | None:
    """The class that a name stands for in a module, through imports."""
    read = _read(module)
    if name in read.classes:
        return read.classes[name]
    first, dot, rest = name.partition(".")
    if first not in read.imports:
        return None
    origin, _, last = f"{read.imports[first]}{dot}{rest}".rpartition(".")
    return _resolved(origin, last) if origin.partition(".")[0] == PACKAGE else None


def _extends(cls: _Class, base: str) -> bool:
    own = f"{cls.module}:{cls.name}"
    return own == base or any(_extends(b, base) for b in _bases(cls))


def _abstract(cls: _Class) -> frozenset[str]:
    inherited = frozenset().union(*(_abstract(b) for b in _bases(cls)))
    return cls.abstract | (inherited - cls.defined)
