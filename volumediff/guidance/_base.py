"""Guidance: a denoiser in, a denoiser out, so that every sampler works with every guidance."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

from volumediff.component import Component
from volumediff.kernels._base import Denoiser

__all__ = ["Guidance", "with_classes"]


@dataclass(frozen=True)
class Guidance(Component, ABC):
    """A change of the predicted distribution."""

    @abstractmethod
    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser."""

    @property
    def told_weight(self) -> float | None:
        """The weight that the network itself is told; None for none."""
        return None

    @property
    def needs_classes(self) -> bool:
        """Whether the guidance, or a term of it, is about class labels."""
        names = {f.name for f in fields(self)}
        terms = self.terms if "terms" in names else ()
        return "classes" in names or any(term.needs_classes for term in terms)


def with_classes(guidance: Guidance, classes: int) -> Guidance:
    """The guidance for a network of so many classes, terms included.

    Raises:
        ValueError: there are too few for it
    """
    names = {f.name for f in fields(guidance)}
    changes = {"classes": classes} if "classes" in names else {}
    if "terms" in names:
        changes["terms"] = tuple(with_classes(term, classes) for term in guidance.terms)
    return replace(guidance, **changes) if changes else guidance
