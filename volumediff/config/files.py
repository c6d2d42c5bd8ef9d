"""YAML files: which ship, how they are read, and `key=value` overrides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volumediff.config.components import suggestion
from volumediff.config.yaml_text import DEEPEST, LONGEST, Unfit, parse_yaml
from volumediff.errors import UsageError, shown

__all__ = ["ROOTS", "config_path", "head", "load", "overlaid", "overridden", "shipped"]

PACKAGE = Path(__file__).parents[1]
ROOTS = (PACKAGE / "configs", PACKAGE.parent / "configs")


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
    others = f" The shipped ones are {', '.join(dict.fromkeys(names))}." if not hint else ""
    raise UsageError(
        f"{kind} configuration {name!r}: no such file, and none that ships.{hint}{others} "
        "volumediff info lists all names."
    )


def head(path: Path) -> str:
    """The comment that a configuration begins with: what it is, its paper, its cost."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines)


def shipped(kind: str) -> list[str]:
    """Names of the configurations of a folder that ship with the package."""
    return sorted({p.stem for root in ROOTS for p in (root / kind).glob("*.yaml")})


def load(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file as nested dictionaries, with `a.b=c` overrides applied.

    Raises:
        UsageError: not YAML, no mapping, or an override that is no `key=value`
    """
    try:
        with open(path, encoding="utf-8") as file:
            tree = parse_yaml(file.read(LONGEST + 1))
    except Unfit as error:
        place = path if error.line is None else f"{path}:{error.line}"
        raise UsageError(f"{place}: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as a YAML file ({reason}).") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected a mapping of sections, got {type(tree).__name__}.")
    return overridden(tree, overrides)


def overridden(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the tree with `a.b=c` overrides applied; values are read as YAML."""
    result = _copy(tree)
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise UsageError(f"{shown(word)}: expected key=value, for example optim.lr=1e-4.")
        *parents, last = path.split(".")
        if len(parents) > DEEPEST:
            raise UsageError(
                f"{shown(word)}: is nested too deep: expected at most {DEEPEST} dots."
            )
        node = result
        for parent in parents:
            inner = node.get(parent)
            # a bare name such as `space: voxel` is the short form of {name: voxel}
            node[parent] = {"name": inner} if isinstance(inner, str) else (inner or {})
            node = node[parent]
            if not isinstance(node, dict):
                raise UsageError(f"{shown(word)}: '{parent}' is a value, not a section.")
        try:
            node[last] = parse_yaml(text)
        except Unfit as error:
            raise UsageError(f"{shown(word)}: {error}.") from None
    return result


def overlaid(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with another one laid over it, section by section.

    A component of another name takes the place of what is there with all of its arguments; one
    without a name changes arguments of what is there. None takes a key out.
    """
    result = _copy(tree)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
            continue
        below = result.get(key)
        if isinstance(value, Mapping):
            below = {"name": below} if isinstance(below, str) else below or {}
            other = "name" in value and value["name"] != below.get("name")
            result[key] = overlaid({} if other else below, value)
        elif not (isinstance(below, Mapping) and below.get("name", below) == value):
            result[key] = _copy(value)
    return result


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {k: _copy(v) for k, v in tree.items()}
    return [_copy(v) for v in tree] if isinstance(tree, list) else tree
