"""Guidance: a denoiser in, a denoiser out, so that every sampler works with every guidance."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from volumediff.kernels._base import Denoiser

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance(ABC):
    """A change of the predicted distribution."""

    @abstractmethod
    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser."""
