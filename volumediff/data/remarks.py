"""Remarks on a file: recorded and shown in tables."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Remark"]


@dataclass(frozen=True)
class Remark:
    """One remark about a volume that was accepted, or the reason why it was not.

    Arguments:
        severity: `info` (worth knowing), `warning` (treated in a defined way), `error` (refused)
        code: stable short name for tables and filters, such as `forms_shifted`
        message: one sentence
    """

    severity: Literal["info", "warning", "error"]
    code: str
    message: str
