"""One member of an ensemble of segmentations."""

from dataclasses import dataclass

__all__ = ["Draw"]


@dataclass(frozen=True)
class Draw:
    """What makes one member differ from the others.

    Arguments:
        number: in the order of the ensemble
        key: everything that the member draws comes from it
        flips: axes of the volume, 0 to 2 for d, h, w, that are reversed before and after
        time: in [0, 1], for predictors that look at noisy volumes
        member: which run is asked: 0 for the method's own, then the others of an ensemble
        level: share of the readers that agree, for runs that are told it
        head: number of one of several trained heads, for predictors that have them; None for all
        weight: in fusions that weigh their members
    """

    number: int
    key: int
    flips: tuple[int, ...] = ()
    member: int = 0
    time: float | None = None
    level: float | None = None
    head: int | None = None
    weight: float = 1.0
