"""Optional packages: loaded where they are used, or one line that says what to install."""

import importlib
from types import ModuleType

from volumediff.errors import UsageError

__all__ = ["optional"]

# package -> the extra of volumediff that installs it
EXTRAS = {"h5py": "fastmri", "highdicom": "dicom", "monai": "monai"}


def optional(module: str, *, purpose: str) -> ModuleType:
    """A module of an optional package.

    Arguments:
        module: its full name
        purpose: what needs it, for the message

    Raises:
        UsageError: the package is not installed; names the extra to install
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise UsageError(
            f"{purpose} needs {package}, which is not installed: "
            f"pip install 'volumediff[{EXTRAS[package]}]'."
        ) from error
