"""RUN/preparation.json: where the volumes of a run lie, and what of the head they show.

It goes with the run, and says what is done to a raw scan before the run's own preprocessing.
"""

from volumediff.storage.records import Record

__all__ = ["NAME", "RunPreparation"]

NAME = "preparation.json"


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
