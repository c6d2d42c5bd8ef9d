"""Translators: how the target channels follow from the source channels, one file each."""

from volumediff.translation.translators._base import TranslationPair, Translator

__all__ = ["TranslationPair", "Translator"]
