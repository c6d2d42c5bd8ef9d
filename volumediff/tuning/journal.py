"""Figures of settings in RUN/tuning/<row>-<fingerprint>.json, written as they come.

The fingerprint is of everything that figures depend on, and of nothing else: a search that was
stopped goes on, and one over another grid takes the settings that are there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volumediff.errors import DataError
from volumediff.outputs.ledger import fingerprint
from volumediff.storage.folder import write_text
from volumediff.tuning.trials import Trial
from volumediff.tuning.tuned import Setting

__all__ = ["Journal", "open_journal"]


@dataclass
class Journal:
    """The figures that are known.

    Arguments:
        path: the file
        facts: what the figures depend on
        trials: figures of each setting
    """

    path: Path
    facts: Mapping[str, Any]
    trials: dict[Setting, Trial] = field(default_factory=dict)

    def write(self, result: Mapping[str, Any] | None = None) -> None:
        """Writes all figures, in an order that does not tell when they came, and the result."""
        settings = [
            {"setting": dict(setting), **self.trials[setting].to_json()}
            for setting in sorted(self.trials)
        ]
        content = {**self.facts, "settings": settings, "result": result}
        write_text(self.path, json.dumps(content, indent=1))


def open_journal(folder: Path, name: str, facts: Mapping[str, Any]) -> Journal:
    """The journal of these facts, with what is in it already.

    Raises:
        DataError: the file is damaged
    """
    path = folder / f"{Path(name).stem}-{fingerprint(facts)[:16]}.json"
    journal = Journal(path, facts)
    if not path.is_file():
        return journal
    try:
        for entry in json.loads(path.read_bytes())["settings"]:
            setting = tuple((axis, float(value)) for axis, value in entry.pop("setting").items())
            journal.trials[setting] = Trial.from_json(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no readable figures ({type(error).__name__}); remove the file to tune anew."
        ) from None
    return journal
