"""`dseg.tsv`: the look-up table of BIDS for the values of label maps."""

from pathlib import Path

from volumediff.data.layouts._files import stem
from volumediff.data.layouts._tables import rows
from volumediff.errors import DataError

__all__ = ["LABEL_TABLES", "names_of_labels"]

LABEL_TABLES = ("dseg.tsv", "*_dseg.tsv")


def names_of_labels(label: Path, root: Path) -> dict[int, str]:
    """Label value -> name, from the nearest table that applies; empty where there is none.

    A table applies to the label maps beside and below it whose names have all of its entities
    (the inheritance principle of BIDS); the background is left out.

    Arguments:
        label: label map `..._dseg`
        root: folder of the data set

    Raises:
        DataError: a table without `index` and `name`, or an index that is no whole number
    """
    own = set(stem(label).split("_"))
    for folder in label.parents:
        fitting = [
            table
            for pattern in LABEL_TABLES
            for table in folder.glob(pattern)
            if set(table.stem.split("_")) <= own
        ]
        if fitting:
            return _read(max(fitting, key=lambda table: (len(table.stem.split("_")), table.name)))
        if folder == root:
            break
    return {}


def _read(table: Path) -> dict[int, str]:
    names = {}
    for row in rows(table, ["index", "name"], delimiter="\t"):
        if not row["index"].isdecimal():
            raise DataError(
                f"{table}: expected whole numbers in the column index, got {row['index']!r}."
            )
        if int(row["index"]) and row["name"]:
            names[int(row["index"])] = row["name"]
    return names
