"""Segmenters as YAML files: `configs/segmentation/<method>.yaml`, one key per field."""

from collections.abc import Sequence
from dataclasses import fields

from pydantic import TypeAdapter, ValidationError

from volumediff import config
from volumediff.errors import UsageError
from volumediff.segmentation.segmenter import Segmenter

__all__ = ["load_segmenter"]


def load_segmenter(name: str, overrides: Sequence[str] = ()) -> Segmenter:
    """A segmenter from its file.

    Arguments:
        name: of a file that ships with the package, or a path
        overrides: `key=value` words, such as `samples=10` or `sampler.steps=50`

    Raises:
        UsageError: unknown file, key or component, or a wrong value
    """
    tree = config.load(config.config_path("segmentation", name), overrides)
    types = {f.name: f.type for f in fields(Segmenter)}
    values = {}
    for key, value in tree.items():
        where = f"{name}.{key}"
        if key not in types:
            hint = config.suggestion(str(key), list(types))
            raise UsageError(f"{where}: a segmenter takes {', '.join(types)}.{hint}")
        if key == "sampler":
            values[key] = config.build("sampler", value, where=where)
            continue
        try:
            values[key] = TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{where}: {error.errors()[0]['msg']} (got {value!r}).") from None
    try:
        return Segmenter(**values)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
