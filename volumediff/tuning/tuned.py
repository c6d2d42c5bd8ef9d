"""Result of a search: every setting with its measurements, and the chosen method as YAML."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from volumediff.anomaly.tuning_axes import Axis
from volumediff.tuning.trials import Trial

__all__ = ["AxisSearch", "Setting", "Tuned", "name_of"]

Setting = tuple[tuple[str, float], ...]  # axis and value, for every axis of the method


def name_of(setting: Setting) -> str:
    """`log_snr=-0.42 guidance.weight=3`, for lines and messages."""
    return " ".join(f"{axis}={value:g}" for axis, value in setting)


@dataclass(frozen=True)
class AxisSearch:
    """The settings that were visited along one axis, all others fixed.

    Arguments:
        axis: the axis
        settings: those with measurements, in the order of their values
    """

    axis: Axis
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search.

    Arguments:
        method: name of the method
        facts: what the measurements depend on: run, weights, seed, volumes, truth
        own: the method's own setting
        trials: measurements of each setting that was visited, in that order
        refused: why a setting was not tried
        stages: the search, axis by axis
        chosen: the setting that is taken
        row: its tree
        stopped: what ended the search before its grid was done; None if nothing did
    """

    method: str
    facts: Mapping[str, Any]
    own: Setting
    trials: Mapping[Setting, Trial]
    refused: Mapping[Setting, str]
    stages: tuple[AxisSearch, ...]
    chosen: Setting
    row: Mapping[str, Any]
    stopped: str | None = None

    def summary(self) -> dict[str, Any]:
        """The outcome without the measurements."""
        return {
            "own": dict(self.own),
            "chosen": dict(self.chosen),
            "stopped": self.stopped,
            "searched": [stage.axis.name for stage in self.stages],
            "row": dict(self.row),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "method": self.method,
            **self.facts,
            **self.summary(),
            "settings": [
                {
                    "setting": dict(setting),
                    "mean_ap": _or_none(trial.mean("ap")),
                    "se_ap": _or_none(trial.error("ap")),
                    **trial.to_json(),
                }
                for setting, trial in self.trials.items()
            ],
            "refused": [
                {"setting": dict(setting), "reason": reason}
                for setting, reason in self.refused.items()
            ],
        }

    def to_yaml(self) -> str:
        """The method with the chosen values, as `--method` takes it."""
        ap = {s: f"{trial.mean('ap'):.3f}" for s, trial in self.trials.items()}
        lines = [
            f"{self.method} with {name_of(self.chosen)}: the highest voxel AP, {ap[self.chosen]}, "
            f"on {len(self.facts['volumes'])} validation",
            f"volumes with {self.facts['truth']} lesions; the method's own {name_of(self.own)} "
            f"has {ap.get(self.own, 'not been tried')}.",
            f"Weights {self.facts['weights_sha256'][:12]}, seed {self.facts['seed']}.",
        ]
        if self.stopped is not None:
            lines.append(f"The search is not complete: {self.stopped}.")
        text = yaml.safe_dump(
            json.loads(json.dumps(self.row)), sort_keys=False, default_flow_style=None, width=99
        )
        return "".join(f"# {line}\n" for line in lines) + text


def _or_none(value: float) -> float | None:
    return value if value == value else None
