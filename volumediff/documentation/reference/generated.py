"""All generated pages of the reference, by file name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from volumediff.documentation.pages import PAGES
from volumediff.documentation.reference.commands import commands
from volumediff.documentation.reference.components import components
from volumediff.documentation.reference.configuration import configuration
from volumediff.documentation.reference.methods import localization, segmentation, translation
from volumediff.documentation.reference.metrics import metrics
from volumediff.documentation.reference.python_interface import python_interface
from volumediff.documentation.reference.shipped_configurations import shipped_configurations
from volumediff.storage.atomic import write_text

__all__ = ["REFERENCE", "generated", "write_reference"]

REFERENCE = PAGES / "reference"


def generated(program: Any) -> dict[str, Callable[[], str]]:
    """File name -> the function that makes the page.

    Arguments:
        program: click's group of all commands
    """
    return {
        "commands.md": lambda: commands(program),
        "configuration.md": configuration,
        "components.md": components,
        "shipped-configurations.md": shipped_configurations,
        "localization-methods.md": localization,
        "segmentation-methods.md": segmentation,
        "translation-methods.md": translation,
        "metrics.md": metrics,
        "python.md": python_interface,
    }


def write_reference(program: Any) -> list[Path]:
    """Writes all generated pages anew; returns those that changed."""
    changed = []
    for name, make in generated(program).items():
        path, text = REFERENCE / name, make()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            changed.append(path)
    return changed
