"""Contract of baselines: they learn from the run's training volumes and ask no network."""

from abc import ABC
from typing import ClassVar

from volumediff.model import Model
from volumediff.translation.translators._base import Translator

__all__ = ["TranslationBaseline"]


class TranslationBaseline(Translator, ABC):
    """A translator that learns, whatever model the run has."""

    learns: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        """Any will do: it is not asked."""
