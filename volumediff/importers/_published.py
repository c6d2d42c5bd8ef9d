"""What a tool publishes beside its weights: settings in JSON or YAML, and a licence.

Settings are read and never run. MONAI's bundles write `@name` for a value that stands elsewhere
in their files and `$...` for Python code: references are followed as long as they lead to plain
values, and where one leads to code, the command asks for the word that says the value instead.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volumediff.config.yaml_text import LONGEST, Unfit, parse_yaml
from volumediff.errors import DataError, UsageError, shown

__all__ = ["Published", "Settings", "agreed", "published_with"]

SETTINGS = (".json", ".yaml", ".yml")
FOLDERS = ("configs", "config")
MOST_FILES = 200
DEEPEST = 20  # references that lead to references
CODE = ("$", "%")  # Python, and the text of another file, in MONAI's bundles
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*")
TITLE = 80  # characters of a licence's first line
CARD = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)  # of a model on the hub


class _Code(Exception):
    """A value that is code, or a reference that leads nowhere but to code."""


@dataclass(frozen=True, eq=False)
class Settings:
    """A mapping within a file of settings.

    Arguments:
        place: the file and where in it, for messages
        values: the mapping as it is written
        whole: all that is published
        file: name of the file, in which references are looked up first
    """

    place: str
    values: Mapping[str, Any]
    whole: "Published"
    file: str

    def value(self, key: str, *, word: str, default: Any = None) -> Any:
        """A plain value: text, numbers, truth values, and lists and mappings of these.

        Arguments:
            key: in the mapping
            word: the KEY=VALUE that says it on the command line
            default: where the mapping has no such key, or the user has given the word

        Raises:
            UsageError: the value is code
        """
        if key not in self.values or self.whole.is_said(word):
            return default
        try:
            return self.whole.plain(self.values[key], self.file)
        except _Code as error:
            raise UsageError(
                f"{self.place}: {key} is given by the code {shown(str(error))}, which is never "
                f"run; give {word}."
            ) from None


class Published:
    """Everything that is published beside a checkpoint.

    Arguments:
        files: name of a file -> its mapping
        licence: SPDX identifier or name; None where none was found
        said: keys of the words that the user has given, which no setting overrules
    """

    def __init__(
        self,
        files: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        licence: str | None = None,
        said: Collection[str] = (),
    ) -> None:
        self.files = dict(files or {})
        self.licence = licence
        self._said = tuple(said)

    def parts(self, *targets: str) -> list[Settings]:
        """Mappings whose `_target_` is one of these classes, in any module, file by file."""
        found = [
            part for file, tree in self.files.items() for part in self._within(file, "", tree)
        ]
        return [p for p in found if str(p.values.get("_target_")).rpartition(".")[2] in targets]

    def holding(self, key: str) -> list[Settings]:
        """Mappings at any depth that have a key, file by file."""
        found = [
            part for file, tree in self.files.items() for part in self._within(file, "", tree)
        ]
        return [part for part in found if key in part.values]

    def is_said(self, word: str) -> bool:
        """Whether the user has given this KEY=VALUE, or a section that has it."""
        key = word.partition("=")[0]
        return any(key == said or key.startswith(f"{said}.") for said in self._said)

    def plain(self, value: Any, file: str, depth: int = 0) -> Any:
        """A value with its references followed; raises where it is code."""
        if isinstance(value, str) and value.startswith(CODE):
            raise _Code(value)
        if isinstance(value, str) and value.startswith("@"):
            if depth > DEEPEST:
                raise _Code(value)
            found, where = self._referred(value, file)
            return self.plain(found, where, depth + 1)
        if isinstance(value, Mapping):
            return {key: self.plain(inner, file, depth) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.plain(inner, file, depth) for inner in value]
        return value

    def _referred(self, reference: str, file: str) -> tuple[Any, str]:
        """What `@a#b` or `@a::b` means: in its own file, or else in the first that has it."""
        keys = re.split("#|::", reference[1:])
        for name in (file, *(n for n in self.files if n != file)):
            node: Any = self.files[name]
            for key in keys:
                if isinstance(node, Mapping) and key in node:
                    node = node[key]
                elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                    node = node[int(key)]
                else:
                    break
            else:
                return node, name
        raise _Code(reference)

    def _parts(self) -> Iterator[Settings]:
        for file, tree in self.files.items():
            yield from self._within(file, "", tree)

    def _within(self, file: str, path: str, node: Any) -> Iterator[Settings]:
        if isinstance(node, Mapping):
            yield Settings(f"{file}: {path}" if path else file, node, self, file)
            for key, inner in node.items():
                yield from self._within(file, f"{path}#{key}" if path else str(key), inner)
        elif isinstance(node, list):
            for index, inner in enumerate(node):
                yield from self._within(file, f"{path}#{index}", inner)


def _class(part: Settings) -> str:
    return str(part.values.get("_target_")).rpartition(".")[2]


def agreed(parts: Sequence[Settings], key: str, *, word: str, default: Any = None) -> Any:
    """What all parts say about a key, or the default where there is none.

    Arguments:
        default: what a part that does not have the key means by it

    Raises:
        UsageError: a value is code, or two parts differ
    """
    values = [part.value(key, word=word, default=default) for part in parts]
    for part, value in zip(parts, values, strict=True):
        if value != values[0]:
            raise UsageError(
                f"{parts[0].place} has {key} {shown(values[0])}, and {part.place} has "
                f"{shown(value)}; give {word}."
            )
    return values[0] if values else default


def published_with(path: Path, said: Collection[str] = ()) -> Published:
    """What is published with a checkpoint: in its folder, `configs` and `config` of it, or of the
    folder above where those are there. Files of more than 1 MiB are data, and no settings.

    Arguments:
        path: the checkpoint, or the folder that holds everything
        said: see `Published`

    Raises:
        DataError: a file of settings cannot be read
    """
    folder = _published_folder(path)
    files: dict[str, Mapping[str, Any]] = {}
    for file in _settings_of(folder):
        tree = _tree(file)
        if isinstance(tree, Mapping):
            files[file.relative_to(folder).as_posix()] = tree
    return Published(files, licence=_licence(folder), said=said)


def _published_folder(path: Path) -> Path:
    if path.is_dir():
        return path
    for folder in (path.parent, path.parent.parent):
        if any((folder / name).is_dir() for name in FOLDERS):
            return folder
    return path.parent


def _settings_of(folder: Path) -> list[Path]:
    inner = (p for name in FOLDERS for p in (folder / name).rglob("*"))
    found = sorted(p for p in (*folder.glob("*"), *inner) if p.suffix in SETTINGS and p.is_file())
    return [p for p in found if p.stat().st_size <= LONGEST][:MOST_FILES]


def _tree(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError, Unfit) as error:
        raise DataError(
            f"{file}: cannot be read as settings ({' '.join(str(error).split())}); repair it, or "
            "put the checkpoint into a folder without it."
        ) from None


def _licence(folder: Path) -> str | None:
    """What a licence file or the head of a model card says."""
    files = sorted(p for pattern in LICENCES for p in folder.glob(pattern) if p.is_file())
    if files:
        return _title(files[0].read_text(encoding="utf-8", errors="replace"))
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = CARD.match(text)
    try:
        tree = parse_yaml(head[1]) if head else None
    except Unfit:
        return None  # a card for people: what it says about the licence is not found
    found = tree.get("license") if isinstance(tree, Mapping) else None
    return found if isinstance(found, str) else None


def _title(text: str) -> str | None:
    """The identifier of a well-known licence; of another its first line."""
    if "Apache License" in text and "Version 2.0" in text:
        return "Apache-2.0"
    if "MIT License" in text:
        return "MIT"
    lines = (" ".join(line.split()) for line in text.splitlines())
    return next((line[:TITLE] for line in lines if line), None)
