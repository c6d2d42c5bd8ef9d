"""BIDS: subjects, sessions, entities in file names, truth beside the images or in derivatives."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._files import (
    ASSOCIATED_WORD,
    AUXILIARY_WORDS,
    LABEL_WORDS,
    in_order,
    split_reader,
    stem,
    walk,
)
from volumediff.data.layouts._tables import described, participants

__all__ = ["BIDS"]

# Unprocessed files, and derivatives that are looked at on their own.
ASIDE = frozenset({"sourcedata", "code", "derivatives"})


@dataclass(frozen=True)
class BIDS(Layout):
    """`sub-<id>[/ses-<id>]/<anat|...>/sub-..._<suffix>.nii.gz`, one case per session.

    Two files with one suffix (runs, acquisitions) keep their entities in the channel's name, such
    as `run-1_T1w`. Labels are files with suffix mask, dseg or roi that name a lesion or no other
    structure, beside the images or below `derivatives/`; one that names `associated`, such as
    `desc-associated_mask`, is the label of associated changes, and those that name a `reader-<n>`
    are the labels of several readers; one without is then their consensus.
    """

    rank: ClassVar[int] = CONVENTION

    def recognises(self, root: Path) -> bool:
        return any(p.is_dir() for p in root.glob("sub-*"))

    def read(self, root: Path) -> Found:
        images: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        labels: dict[str, list[Path]] = defaultdict(list)
        associated: dict[str, Path] = {}
        readers: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for base in (root, root / "derivatives"):
            for path in walk(base, hidden=ASIDE if base == root else ASIDE - {"derivatives"}):
                name = stem(path)
                match = re.match(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?(?:_(.*))?$", name)
                if match is None:
                    continue
                case, rest = match[1] + (match[2] or ""), match[3] or "image"
                word = rest.rsplit("_", 1)[-1].lower()
                if word in LABEL_WORDS:
                    if ASSOCIATED_WORD in rest:
                        associated[case] = path
                    elif "lesion" in rest or not re.search(r"(desc|label|atlas)-", rest):
                        reader = split_reader(rest)[1]
                        own = labels[case] if reader is None else readers[case][reader]
                        own.append(path)
                elif base == root and word not in AUXILIARY_WORDS:
                    images[case].append((rest, path))
        table = participants(root)
        cases, problems = [], []
        for case in sorted(images):
            suffixes = [rest.rsplit("_", 1)[-1] for rest, _ in images[case]]
            named = {
                (s if suffixes.count(s) == 1 else rest): path
                for s, (rest, path) in zip(suffixes, images[case], strict=True)
            }
            truth = sorted(labels.get(case, []))
            own = readers.get(case, {})
            double = next((sorted(p) for p in (truth, *own.values()) if len(p) > 1), None)
            if double is not None:
                text = f"{len(double)} labels fit ({double[0].name}, {double[1].name}); keep one."
                problems.append(Problem(case, text))
                continue
            label = truth[0] if truth else None
            found = Case(
                case,
                patient_of(case),
                named,
                label,
                associated=associated.get(case),
                labels=in_order({name: paths[0] for name, paths in own.items()}),
            )
            cases.append(described(found, table))
        return cases, problems
