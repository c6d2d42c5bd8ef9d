"""RUN/label_names.json: what the labels are called that a run was trained on.

The names are those of its data set (`dataset.json`, `dseg.tsv`) and of `data.label_names`. Results
of the run carry them, also where the data are not at hand.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.storage.records import Record, read, write

__all__ = ["keep_label_names", "label_names_of"]

NAME = "label_names.json"


class StoredLabelNames(Record):
    """label_names.json: label value -> name."""

    names: dict[int, str]


def keep_label_names(run: Path, cases: Sequence[Case]) -> None:
    """Writes the names that the cases know; nothing where they know none.

    Arguments:
        run: folder of the run
        cases: of the data set; of two that disagree the first counts
    """
    names: dict[int, str] = {}
    for case in cases:
        names = {**case.names, **names}
    if names:
        write(run / NAME, StoredLabelNames(names=dict(sorted(names.items()))))


def label_names_of(run: Path) -> Mapping[int, str]:
    """The names that a run has; empty where its data set had none.

    Raises:
        DataError: the record is damaged
    """
    path = run / NAME
    if not path.is_file():
        return {}
    return read(path, StoredLabelNames, advice="remove it: labels are then shown by number").names
