"""Guidances one after the other: each changes the denoiser that the one before has made."""

from dataclasses import dataclass

from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser

__all__ = ["Chain"]


@dataclass(frozen=True)
class Chain(Guidance):
    """Guidances in a row, such as classifier-free guidance and then clipping.

    Arguments:
        terms: the guidances, the first next to the model
    """

    terms: tuple[Guidance, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("expected at least one term, got none.")

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser."""
        for term in self.terms:
            denoise = term(denoise)
        return denoise
