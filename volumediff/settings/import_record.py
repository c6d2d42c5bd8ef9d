"""RUN/imported.json: where the weights of a run come from that were not trained here.

The record goes with the run into its exports and their model cards: whoever passes the weights on
has to know their licence.
"""

from pathlib import Path

from volumediff.storage.records import Record, read, write

__all__ = ["NAME", "ImportRecord", "import_records_of", "keep_import_record"]

NAME = "imported.json"
UNKNOWN = "none found: ask the authors before you use or share the weights"


class ImportRecord(Record):
    """Source of imported weights.

    Arguments:
        kind: importer, such as wdm
        name: of the published model, or of the tool that trained it
        address: where it is published
        licence: of the weights; None where none was found
        source: the file that was imported, or the repository of the hub
        commit: hash of the repository's commit; None for a file
        sha256: of the file of weights
    """

    kind: str
    name: str
    address: str
    licence: str | None
    source: str
    commit: str | None
    sha256: str

    @property
    def line(self) -> str:
        """The source and the licence in one line."""
        at = "" if self.commit is None else f", commit {self.commit[:12]}"
        return (
            f"weights of {self.name} ({self.address}), from {self.source}{at}; licence: "
            f"{self.licence or UNKNOWN}"
        )


def keep_import_record(run: Path, found: ImportRecord) -> None:
    """Writes the record of a run.

    Raises:
        DataError: no space or no permission
    """
    write(run / NAME, found)


def import_records_of(run: Path) -> tuple[ImportRecord, ...]:
    """The records of a run, and of what it keeps of others, such as an autoencoder; none where
    all weights were trained here.

    Raises:
        DataError: one is damaged
    """
    places = [run / NAME, *sorted(run.glob(f"borrowed/*/{NAME}"))]
    return tuple(
        read(path, ImportRecord, advice="import the run again")
        for path in places
        if path.is_file()
    )
