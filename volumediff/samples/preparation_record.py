"""How volumes were prepared: RUN/preparation.json of a run, prepared.json of a data set.

RUN/preparation.json goes with the run, and says what is done to a raw scan before the run's own
preprocessing. A data set that `prepare` wrote says the same of itself.
"""

import json
from pathlib import Path
from typing import Any

from volumediff.errors import DataError
from volumediff.storage.records import Record, read

__all__ = ["NAME", "RunPreparation", "recorded_preparation", "told_preparation"]

NAME = "preparation.json"
MARK = "prepared.json"  # of `volumediff prepare`


class RunPreparation(Record):
    """RUN/preparation.json.

    Arguments:
        template: name of the template in whose space the volumes lie; None: in none that is known
        stripped: whether they show the brain alone
        n4: whether their bias field was corrected
        source: `prepared.json`, that volumes were looked at, or whose weights were imported
    """

    template: str | None
    stripped: bool
    n4: bool
    source: str


def recorded_preparation(run: Path) -> RunPreparation | None:
    """What is recorded about a run, such as an imported one; None where nothing is yet.

    Raises:
        DataError: the record is damaged
    """
    path = run / NAME
    if not path.is_file():
        return None
    return read(path, RunPreparation, advice="remove it: it is measured again")


def told_preparation(folder: Path) -> RunPreparation | None:
    """What `prepare` wrote about the data set in a folder; None where it wrote none.

    Raises:
        DataError: what it wrote is damaged
    """
    path = folder / MARK
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name = str(content["template"]["name"]).partition(" at ")[0]
        strip = content["strip"] or content["mask"] == "none"
        return RunPreparation(template=name, stripped=strip, n4=content["n4"], source=MARK)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data set again.") from None
