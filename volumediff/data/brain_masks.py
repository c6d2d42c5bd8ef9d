"""The mask of the brain that lies beside a case's images, which no layout counts as an image.

Names are `brainmask`, `<case>_brainmask`, `<case>_bet` and BIDS' `<case>_desc-brain_mask`.
"""

import re
from dataclasses import replace
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.data.layouts._files import VOLUME
from volumediff.data.layouts._roles import AUXILIARY_WORDS
from volumediff.errors import DataError

__all__ = ["brain_mask_of", "without_masks"]

WORDS = re.compile(rf"(?:desc-)?(?:{'|'.join(sorted(AUXILIARY_WORDS))})", re.I)


def without_masks(case: Case) -> Case:
    """The case without the channels that are masks by their names (BIDS lists every file)."""
    images = {n: p for n, p in case.images.items() if not WORDS.fullmatch(n)}
    return replace(case, images=images)


def brain_mask_of(case: Case) -> Path | None:
    """The mask beside the first image of a case; None where there is none.

    Raises:
        DataError: several fit
    """
    folder = next(iter(case.images.values())).parent
    prefixes = {case.id, case.patient}
    own = all(path.parent == folder and folder.name == case.id for path in case.images.values())
    found = []
    for path in sorted(folder.iterdir()):
        if not VOLUME.search(path.name) or path.name.startswith("."):
            continue
        stem = VOLUME.sub("", path.name)
        rests = [stem[len(p) + 1 :] for p in prefixes if stem.startswith((f"{p}_", f"{p}-"))]
        if own:
            rests.append(stem)
        if any(WORDS.fullmatch(rest) for rest in rests):
            found.append(path)
    if len(found) > 1:
        raise DataError(
            f"{found[0].name} and {found[1].name} are both masks of the brain; keep one."
        )
    return found[0] if found else None
