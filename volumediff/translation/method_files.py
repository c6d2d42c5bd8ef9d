"""Translation methods as YAML files: how a run is trained, and how it is asked.

train: {recipe: {name: translation}}    over the configuration of a pipeline, see
                                        `volumediff.settings.run_config`
name: diffusion                         the rest is a component of the family translator
samples: 5
"""

from collections.abc import Sequence
from typing import Any

from volumediff import config
from volumediff.translation.translators._base import Translator

__all__ = ["load_translator"]


def load_translator(name: str, overrides: Sequence[str] = ()) -> Translator:
    """A translation method.

    Arguments:
        name: of a file that ships with the package, the path of a YAML file, or
            `package.module:Class`
        overrides: `key=value` overrides, such as `samples=10` or `sampler.steps=20`

    Raises:
        UsageError: unknown file, key or component, or a wrong value
    """
    if ":" in name:
        tree: dict[str, Any] = config.overridden({"name": name}, overrides)
    else:
        tree = config.load(config.config_path("translation", name), overrides)
    for training in ("train", "only_for"):
        tree.pop(training, None)
    return config.build("translator", tree, where=name)
