"""Measurements of settings in RUN/tuning/<method>-<fingerprint>.json, written as they come.

The fingerprint is of everything that measurements depend on, and of nothing else: a search that
was stopped goes on, and one over another grid takes the settings that are there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from volumediff.errors import DataError
from volumediff.outputs.ledger import fingerprint
from volumediff.storage.records import Record, read, write
from volumediff.tuning.trials import Trial
from volumediff.tuning.tuned import Setting

__all__ = ["TuningJournal", "open_journal"]

Figure = float | None
Figures = tuple[Figure, ...]


class StoredSetting(Record):
    """Measurements of a setting as `Trial.to_json` has them: null stands for nan."""

    model_config = ConfigDict(allow_inf_nan=True)

    setting: dict[str, float]
    ap: Figures
    healthy_error: Figures
    lesion_map: Figures
    healthy_change: Figures
    lesion_left: Figures
    lesion_put: Figures
    threshold: Figure
    dice: Figure
    network_calls: Figure
    seconds: Figure


class StoredJournal(Record):
    """The file: what measurements depend on, measurements of each setting, and the result."""

    facts: dict[str, Any]
    settings: tuple[StoredSetting, ...]
    result: dict[str, Any] | None


@dataclass
class TuningJournal:
    """The measurements that are known.

    Arguments:
        path: the file
        facts: what the measurements depend on
        trials: measurements of each setting
    """

    path: Path
    facts: Mapping[str, Any]
    trials: dict[Setting, Trial] = field(default_factory=dict)

    def write(self, result: Mapping[str, Any] | None = None) -> None:
        """Writes all measurements, in an order independent of the search, and the result."""
        settings = [
            {"setting": dict(setting), **self.trials[setting].to_json()}
            for setting in sorted(self.trials)
        ]
        write(self.path, {"facts": dict(self.facts), "settings": settings, "result": result})


def open_journal(folder: Path, name: str, facts: Mapping[str, Any]) -> TuningJournal:
    """The journal of these facts, with what is in it already.

    Raises:
        DataError: the file is damaged
    """
    path = folder / f"{Path(name).stem}-{fingerprint(facts)[:16]}.json"
    journal = TuningJournal(path, facts)
    if not path.is_file():
        return journal
    advice = "remove the file to tune anew"
    stored = read(path, StoredJournal, advice=advice)
    if stored.facts != json.loads(json.dumps(facts)):
        raise DataError(f"{path}: damaged: facts: not those in its name; {advice}.")
    for entry in stored.settings:
        figures = entry.model_dump(exclude={"setting"})
        journal.trials[tuple(entry.setting.items())] = Trial.from_json(figures)
    return journal
