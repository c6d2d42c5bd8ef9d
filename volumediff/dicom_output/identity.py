"""Who made an object, and identifiers that follow from its content.

Equal results of one series have equal identifiers, so that an archive keeps one of them; another
series, other weights, settings or voxels give others. Dates and times are those of writing.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import volumediff
from volumediff.storage.digests import sha256

__all__ = ["LONGEST", "NOTICE", "Maker", "settled"]

NOTICE = "Research use, not for diagnosis."
LONGEST = 64  # characters of a string of the kind LO

Object = TypeVar("Object", bound=Dataset)


@dataclass(frozen=True)
class Maker:
    """What made a result.

    Arguments:
        series: UID of the series that was given
        method: its name
        settings: what the result depends on beside the series, as text
    """

    series: str
    method: str
    settings: str
    version: str = volumediff.__version__

    def uid(self, what: str, *content: np.ndarray) -> str:
        """The identifier of an object, or of a part of one.

        Arguments:
            what: a name that is its own among those of the result
            content: its voxels
        """
        digests = [sha256(np.ascontiguousarray(array).tobytes()) for array in content]
        sources = [self.series, self.settings, self.version, what, *digests]
        return str(generate_uid(entropy_srcs=sources))

    def equipment(self) -> dict[str, Any]:
        """Arguments of every image object of highdicom."""
        return {
            "manufacturer": "volumediff",
            "manufacturer_model_name": self.method[:LONGEST],
            "software_versions": self.version,
            "device_serial_number": self.version,
        }


def settled(made: Object, maker: Maker, title: str) -> Object:
    """The object with a description of its series, and no identifier left to chance.

    Arguments:
        made: the object
        maker: of it
        title: of its series
    """
    made.SeriesDescription = f"{title}, {maker.method}, research use"[:LONGEST]
    dimensions = maker.uid(f"dimensions of {title}")
    for element in made.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimensions
    return made
