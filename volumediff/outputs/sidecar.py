"""The JSON beside a map, read back: what it must say, and of which types.

`localize` writes it (see `export`); evaluation, findings, reports and `restore` read it. Maps of
other tools may come with less, so that every key may be missing; one that is there must fit.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from volumediff.data.read_policy import ReadPolicy
from volumediff.storage.records import Record, parse_file

__all__ = ["read_facts"]

# A name in the same folder: no way out of it.
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
Policy = create_model(
    "Policy", __base__=Record, **{f.name: (f.type, f.default) for f in fields(ReadPolicy)}
)


class Input(Record):
    """A volume that the map was made of."""

    file: str
    sha256: str


class TraceStep(Record):
    """A mask or map of the method's components."""

    name: str
    file: FileName


class ProbabilityTable(Record):
    """Of a lesion by map value: steps of `metrics.calibration.Probability`."""

    edges: Annotated[tuple[float, ...], Field(min_length=1)]
    values: Annotated[tuple[float, ...], Field(min_length=1)]


class MapFacts(Record):
    """What readers look at; the rest is provenance, and stays as it is."""

    model_config = ConfigDict(extra="allow")

    patient: str = ""
    method: str = ""
    fingerprint: str | None = None
    supervision: str | None = None
    scope: str | None = None
    weights_sha256: str | None = None
    score: float | None = None
    threshold: float | None = None
    threshold_rule: str | None = None
    thresholds: dict[str, float] = Field(default_factory=dict)
    probability: ProbabilityTable | None = None
    inputs: dict[str, Input] = Field(default_factory=dict)
    prepared_inputs: dict[str, Input] = Field(default_factory=dict)
    read_policy: Policy = Policy()
    trace: tuple[TraceStep, ...] = ()
    seen: str | None = None


def read_facts(path: Path) -> dict[str, Any]:
    """The content of the JSON beside a map.

    Raises:
        DataError: not there, damaged, or a key that does not fit
    """
    return parse_file(path, MapFacts, advice="localize again").model_dump(exclude_unset=True)
