"""Results of a method in memory: a map before normalization, and the finished localization."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.normalization import Residual

__all__ = ["Localization", "RawLocalization"]


@dataclass(frozen=True, eq=False)
class Localization:
    """What a method found in one volume.

    Arguments:
        map: higher is more abnormal; outside the foreground the lowest value inside, at most 0
        mask: map above the threshold; None where the threshold needs a calibration that was not
            given, or is an oracle
        pseudo_healthy: the volume without its findings; None for methods that make none
        score: volume score
        trace: masks and intermediate maps of the blocks, by name
        threshold: of the mask
        uncertainty: deviation of the map between the seeds of an ensemble, before normalization
            and post-processing; None with one seed
        finding_ml: smallest component of the mask, in millilitres
        contributions: what each member of a fusion adds to the map, by its name; none of others
        network_calls: evaluations of a network that each member took, by its name
    """

    map: Float[Tensor, "1 1 d h w"]
    mask: Bool[Tensor, "1 1 d h w"] | None
    pseudo_healthy: Float[Tensor, "1 c d h w"] | None
    score: float
    trace: dict[str, Tensor]
    threshold: float | None = None
    uncertainty: Float[Tensor, "1 1 d h w"] | None = None
    finding_ml: float = 0.0
    contributions: dict[str, Float[Tensor, "1 1 d h w"]] = field(default_factory=dict)
    network_calls: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RawLocalization:
    """A map before normalization and post-processing.

    Arguments:
        map: the map
        healthy: pseudo-healthy volume, if the method makes one
        trace: masks and intermediate maps
        errors: mean of the maps of each run in the foreground, or what else the score remembers
            a run by; None without runs
        uncertainty: deviation between the seeds of an ensemble
        members: of a fusion, each prepared for its normalization
        network_calls: evaluations of a network that each member took, by its name
    """

    map: Float[Tensor, "1 1 d h w"]
    healthy: Float[Tensor, "1 c d h w"] | None
    trace: dict[str, Tensor] = field(default_factory=dict)
    errors: Float[Tensor, "n"] | None = None
    uncertainty: Float[Tensor, "1 1 d h w"] | None = None
    members: tuple[Residual, ...] = ()
    network_calls: dict[str, int] = field(default_factory=dict)
