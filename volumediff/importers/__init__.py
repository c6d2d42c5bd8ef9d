"""Importers: checkpoints of other tools -> runs. The file name is the KIND of the command."""

from volumediff.importers._base import ForeignCheckpoint, Importer

__all__ = ["ForeignCheckpoint", "Importer"]
