"""Modules whose passes over whole volumes a memory policy may run in slabs or from host memory."""

from abc import ABC, abstractmethod

from torch import nn

__all__ = ["Streamable"]


class Streamable(nn.Module, ABC):
    """A module that says which of its methods map volumes to volumes from end to end."""

    @property
    @abstractmethod
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        """Modules, and the names of these methods of theirs."""
