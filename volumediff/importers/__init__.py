"""Importers: checkpoints of other tools -> runs. The file name is the KIND of the command."""

from volumediff.importers._base import ForeignCheckpoint, Importer, Origin

__all__ = ["ForeignCheckpoint", "Importer", "Origin"]
