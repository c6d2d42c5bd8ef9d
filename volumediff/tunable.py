r"""Fields of components that are worth tuning; each component declares its own.

    sigma_mm: float = tunable(2.0, Tunable.WIDTH)

A search finds such fields wherever the component stands in a method; what is not declared is never
touched. All times and log-SNRs of a method form one axis, since they are one corruption.
"""

from dataclasses import field, fields
from enum import Enum
from typing import Any

__all__ = ["Tunable", "tunable", "tunables"]

_KEY = "tunable"


class Tunable(Enum):
    """What a declared field is, and so how it may be changed.

    TIME and LOG_SNR are noise levels, or tuples of them, and are shifted in log-SNR; the others
    are positive numbers and are scaled: STRENGTH of a guidance, PARAMETER of a baseline, WIDTH of
    what is done to a finished map.
    """

    TIME = "time"
    LOG_SNR = "log-SNR"
    STRENGTH = "strength"
    PARAMETER = "parameter"
    WIDTH = "width"


def tunable(default: Any, what: Tunable) -> Any:
    """A dataclass field with a default that is declared tunable."""
    return field(default=default, metadata={_KEY: what})


def tunables(block: Any) -> dict[str, Tunable]:
    """Name -> kind of the declared fields of a component, which is a dataclass instance."""
    return {f.name: f.metadata[_KEY] for f in fields(block) if _KEY in f.metadata}
