"""Names of the models that ship with the package, found without reading them."""

from pathlib import Path

import volumediff

__all__ = ["DEFAULT", "MODEL_SUFFIX", "SHIPPED", "shipped_models"]

MODEL_SUFFIX = ".safetensors"
SHIPPED = Path(volumediff.__file__).parent / "models"
DEFAULT = "t1w"


def shipped_models() -> list[str]:
    """Names of the models that this installation has."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{MODEL_SUFFIX}"))
