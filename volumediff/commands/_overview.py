"""The pages of `info`: an overview, or one family, component, method or configuration.

The glance and the families are read from sources and YAML files, so that they cost a fraction of
a second; only the page of a method builds models, to say on which pipelines it runs.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volumediff import __version__, config
from volumediff.config.shipped_models import MODEL_SUFFIX, SHIPPED, shipped_models
from volumediff.errors import UsageError

__all__ = ["facts", "glance", "page"]

WIDTH = 120  # columns
YAML = (".yaml", ".yml")
JOINED = "\N{NO-BREAK SPACE}"  # where no line may break
# Folder of configurations -> what one of its files is.
KINDS = {
    "anomaly": "localization method",
    "segmentation": "segmentation method",
    "translation": "translation method",
}


def glance() -> list[str]:
    """All names that commands and configurations take, families as counts."""
    kinds = _kinds()
    lines = [f"volumediff {__version__}", "", "Configurations that volumediff train takes:"]
    trained = [kind for kind in kinds if kind not in KINDS]
    lines += _named({f"{kind} ({len(kinds[kind])})": kinds[kind] for kind in trained})
    lines += ["", "Methods, by what they do:"]
    task = {kind: KINDS[kind].partition(" ")[0] for kind in kinds if kind in KINDS}
    lines += _named({f"{task[kind]} ({len(kinds[kind])})": kinds[kind] for kind in task})
    counts = {family: len(config.available(family)) for family in config.families()}
    lines += ["", f"Families of components ({sum(counts.values())} components):"]
    lines += _wrapped(", ".join(f"{name}{JOINED}{n}" for name, n in counts.items()), indent=2)
    lines += ["", "More: volumediff info NAME, of a family, a method, a configuration, or a YAML"]
    lines += ["file or package.module:Class of your own; volumediff info --json for everything."]
    return lines


def page(name: str) -> list[str]:
    """All that is known of a name: of a family, a method or a configuration, or of several.

    Raises:
        UsageError: nothing has this name
    """
    pages = [_lines(found) for found in facts(name)]
    return [line for i, lines in enumerate(pages) for line in ([""] * bool(i) + lines)]


def facts(name: str) -> list[dict[str, Any]]:
    """What is known of a name, as JSON: one entry per thing with this name.

    Raises:
        UsageError: nothing has this name
    """
    if ":" in name:
        return [_component(name)]
    if name in shipped_models() or name.endswith(MODEL_SUFFIX):
        return [_model(name)]
    if Path(name).suffix in YAML:
        return [_configuration_file(name)]
    found: list[dict[str, Any]] = []
    if name in config.families():
        found.append({"family": name, "components": config.described(name)})
    found += [_configuration(kind, name) for kind, names in _kinds().items() if name in names]
    for family in config.families():
        if name in config.available(family):
            text = config.described(family)[name]
            found.append({"component": name, "family": family, "description": text})
    if not found:
        known = [*config.families(), *(n for names in _kinds().values() for n in names)]
        known += [n for family in config.families() for n in config.available(family)]
        raise UsageError(
            f"{name!r}: no family, method, configuration or component has this name; volumediff "
            f"info lists them.{config.suggestion(name, known)}"
        )
    return found


def _model(name: str) -> dict[str, Any]:
    """The card of a model that ships, or of a model file."""
    from volumediff.runs.model_file import card_of_file

    file = SHIPPED / f"{name}{MODEL_SUFFIX}" if name in shipped_models() else Path(name)
    if not file.is_file():
        raise UsageError(f"{file}: expected a model file, nothing there.")
    card = card_of_file(file).model_dump(mode="json")
    return {"model": card["name"], "file": str(file), **card}


def _kinds() -> dict[str, list[str]]:
    """Folder of configurations -> the names in it."""
    folders = {p.parent.name for root in config.ROOTS for p in root.glob("*/*.yaml")}
    first = ["pipelines", "autoencoders"]
    order = sorted(folders, key=lambda k: (k not in first, k not in first or first.index(k), k))
    return {kind: config.shipped(kind) for kind in order}


def _component(name: str) -> dict[str, Any]:
    """A class of somebody else's package."""
    reasons = []
    for family in config.families():
        try:
            cls = config.component(family, name)
        except UsageError as error:
            reasons.append(str(error))
            continue
        text = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
        return {"component": name, "family": family, "description": text}
    outside = [r for r in reasons if "expected a class that extends" not in r]
    if outside:
        raise UsageError(outside[0].partition(": ")[2])
    raise UsageError(f"{name}: extends the base class of no family of components.")


def _configuration_file(name: str) -> dict[str, Any]:
    """A YAML file of one's own: a method if it has the keys of one, else what trains a run.

    Raises:
        UsageError: no such file, or one that is neither
    """
    if not Path(name).is_file():
        raise UsageError(f"{name}: expected a YAML file of a method or a run, got no such file.")
    kind = _kind_of(config.load(Path(name)))
    if kind is not None:
        return _configuration(kind, name)
    from volumediff.settings.run_config import load_run_config

    task = load_run_config(name).task
    kind = f"configuration of task {task}"
    return {kind: name, "file": name, "about": config.head(Path(name))}


def _kind_of(tree: Mapping[str, Any]) -> str | None:
    """The folder of configurations that a tree belongs to; None for one that trains."""
    from volumediff.settings.run_config import RunConfig

    if "predictor" in tree:
        return "segmentation"
    if "name" in tree:
        return "translation"
    return None if {"network", *RunConfig.model_fields} & tree.keys() else "anomaly"


def _configuration(kind: str, name: str) -> dict[str, Any]:
    path = config.config_path(kind, name)
    found: dict[str, Any] = {
        KINDS.get(kind, kind): name,
        "file": str(path),
        "about": config.head(path),
    }
    if kind == "segmentation":
        from volumediff.documentation.method_matrix import segments_on

        return {**found, "runs on": segments_on(name)}
    if kind == "translation":
        from volumediff.documentation.method_matrix import trained_by, translates_on

        return {**found, "trained by": trained_by(name), "runs on": translates_on(name)}
    if kind != "anomaly":
        return found
    from volumediff.anomaly.method_files import read_method
    from volumediff.documentation.method_matrix import needs_of, pipelines_of

    tree = config.load(path)
    return {
        **found,
        **{key: tree[key] for key in ("supervision", "scope") if key in tree},
        "needs": needs_of(read_method(name)),
        "runs on": pipelines_of(name),
    }


def _lines(found: Mapping[str, Any]) -> list[str]:
    """An entry of `facts` as text."""
    if "model" in found:
        return [f"{found['model']}: a model file, {found['file']}", *_named(_card(found))]
    if "components" in found:
        members = found["components"]
        lines = [f"{found['family']}: a family of {len(members)} components"]
        return lines + _named({name: [text] for name, text in members.items()})
    if "component" in found:
        head = f"{found['component']}: a component of the family {found['family']}"
        return [head, *_wrapped(found["description"], indent=2)]
    (kind, name), *_ = found.items()
    what = f"one of the {kind}" if kind in _kinds() else kind
    lines = [f"{name}: {what}, {found['file']}"]
    lines += _wrapped(" ".join(found["about"].split()), indent=2)
    if "runs on" not in found:
        return lines
    rows = {key: [found[key]] for key in ("supervision", "scope") if key in found}
    if "needs" in found:
        needs = " ".join(found["needs"])
        rows["needs"] = [f"a run trained with {needs}" if needs else "any run"]
    else:
        rows["needs"] = [f"a run trained with method={found.get('trained by', name)}"]
    lines += ["", *_named(rows), "", "Pipelines it runs on, if trained as needed:"]
    return lines + _named(
        {k: ["yes" if why == "ok" else f"no: {why}"] for k, why in found["runs on"].items()}
    )


def _card(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Rows of a model card; lists and mappings entry by entry."""
    rows = {}
    for key, value in found.items():
        if key in ("model", "file", "name"):
            continue
        if isinstance(value, Mapping):
            rows[key] = [f"{k}: {v}" for k, v in value.items()]
        else:
            rows[key] = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return rows


def _named(rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Names in one column, their words, wrapped, in another."""
    wide = max(map(len, rows), default=0) + 4
    lines = []
    for name, words in rows.items():
        first, *rest = _wrapped(", ".join(words), indent=wide) or [""]
        lines += [f"  {name}".ljust(wide) + first.strip(), *rest]
    return lines


def _wrapped(text: str, *, indent: int) -> list[str]:
    space = " " * indent
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False
    )
    return [line.replace(JOINED, " ") for line in lines]
