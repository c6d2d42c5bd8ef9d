"""Importers: checkpoints of other tools -> runs. The file name is the KIND of the command."""

from volumediff.importers._base import Importer, Source

__all__ = ["Importer", "Source"]
