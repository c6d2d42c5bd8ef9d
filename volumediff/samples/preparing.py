"""Cases are prepared into the cache; those that cannot be are all named, not the first alone."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from volumediff.data.cases import Case
from volumediff.errors import DataError
from volumediff.storage.cache import Cache

__all__ = ["Made", "UnpreparedCase", "prepare_share"]

Made = tuple[dict[str, np.ndarray], dict[str, Any]]


@dataclass(frozen=True)
class UnpreparedCase:
    """One case before it is prepared.

    Arguments:
        case: the case
        fingerprint: all that the prepared arrays depend on
        make: prepares it
    """

    case: Case
    fingerprint: Mapping[str, Any]
    make: Callable[[], Made]


class _RefusedCase(Exception):
    """A case cannot be used, which is noted; others may be."""


def prepare_share(
    sources: Sequence[UnpreparedCase], cache: Cache, *, rank: int, world: int
) -> None:
    """Prepares the cases of one process.

    Raises:
        DataError: cases that cannot be used, after the others are in the cache; or a cache that
            cannot be written, at once
    """
    refused: list[str] = []

    def make(source: UnpreparedCase) -> Made:
        try:
            return source.make()
        except DataError as error:
            refused.append(str(error))
            raise _RefusedCase from error

    for index, source in enumerate(sources[rank::world]):
        with contextlib.suppress(_RefusedCase):
            cache.entry(source.case.id, source.fingerprint, partial(make, source))
        if index % 10 == 9:
            cache.report(f"{(index + 1) * world} of {len(sources)} volumes are prepared")
    if len(refused) == 1:
        raise DataError(refused[0])
    if refused:
        raise DataError(
            f"{len(refused)} of {len(sources)} volumes cannot be used: {' '.join(refused)}"
        )
