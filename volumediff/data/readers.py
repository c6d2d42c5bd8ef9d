r"""Label maps of several readers of one examination, and what most of them say.

With :math:`m_r` the label map of reader r, the majority is, voxel by voxel,

.. math:: m = \operatorname{argmax}_v \#\{r : m_r = v\}.

Where values have equally many readers, a label wins over the background, and the smaller value
over the larger one: of one label it is what at least half of the readers have marked, the 50 %
consensus that is usual for LIDC-IDRI.

References:
    Armato et al. (2011), The Lung Image Database Consortium (LIDC) and Image Database Resource
    Initiative (IDRI), doi:10.1118/1.3528204
    Warfield et al. (2004), STAPLE, doi:10.1109/TMI.2004.828354, which a majority is the start of
"""

from itertools import combinations

import numpy as np
from jaxtyping import UInt8

__all__ = ["agreement", "majority"]


def majority(readers: UInt8[np.ndarray, "r d h w"]) -> UInt8[np.ndarray, "1 d h w"]:
    """The value that most readers gave; of one reader, the reader's own.

    Raises:
        ValueError: no reader
    """
    if len(readers) == 0:
        raise ValueError("expected the label map of at least one reader, got none.")
    if len(readers) == 1:
        return readers.copy()
    result = np.zeros(readers.shape[1:], np.uint8)
    most = np.zeros(readers.shape[1:], np.uint8)
    for value in np.unique(readers):
        if value > 0:
            votes = (readers == value).sum(0, dtype=np.uint8)
            wins = votes > most
            result[wins], most[wins] = value, votes[wins]
    result[(readers == 0).sum(0, dtype=np.uint8) > most] = 0
    return result[None]


def agreement(readers: UInt8[np.ndarray, "r d h w"]) -> float:
    """Mean IoU of all pairs of readers, of what is labelled at all; two empty maps agree fully."""
    marked = [reader > 0 for reader in readers]
    pairs = list(combinations(marked, 2))
    if not pairs:
        return 1.0
    shares = []
    for a, b in pairs:
        union = np.count_nonzero(a | b)
        shares.append(np.count_nonzero(a & b) / union if union else 1.0)
    return float(np.mean(shares))
