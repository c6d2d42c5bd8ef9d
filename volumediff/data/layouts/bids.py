"""BIDS: subjects, sessions, entities in file names, truth beside the images or in derivatives."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._files import ASIDE, stem, walk
from volumediff.data.layouts._label_tables import LABEL_TABLES, names_of_labels
from volumediff.data.layouts._participants import PARTICIPANTS, with_participants
from volumediff.data.layouts._roles import (
    ASSOCIATED_WORD,
    LABEL_WORDS,
    in_order,
    is_auxiliary,
    split_reader,
    without_copy_words,
)

__all__ = ["BIDS"]

# Unprocessed files, and derivatives that are looked at on their own.
NAME = re.compile(r"(sub-[A-Za-z0-9+]+)(_ses-[A-Za-z0-9+]+)?(?:_(.+))?")
SUBJECT = re.compile(r"sub-.+")
SESSION = re.compile(r"ses-.+")
SPACE = re.compile(r"(?:^|_)space-([A-Za-z0-9+]+)")
# Spaces that are those of an image of the subject.
OWN_SPACES = frozenset("orig individual native scanner t1w t2w flair pd dwi ct".split())


@dataclass
class _Session:
    """The files of one case, by what their names say beyond subject and session."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: list[Path] = field(default_factory=list)
    associated: Path | None = None
    readers: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class BIDS(Layout):
    """`sub-<id>[/ses-<id>]/<anat|...>/sub-..._<suffix>.nii.gz`, one case per session.

    Two files with one suffix (runs, acquisitions) keep their entities in the channel's name, such
    as `run-1_T1w`. Labels are files with suffix mask, dseg or roi that name a lesion or no other
    structure, beside the images or below `derivatives/`; one that names `associated`, such as
    `desc-associated_mask`, is the label of associated changes, and those that name a `reader-<n>`
    are the labels of several readers; one without is then their consensus.

    Results of this program below `derivatives/` are no labels.

    Files whose names and folders name two subjects or sessions are refused: one of them is wrong.
    """

    rank: ClassVar[int] = CONVENTION
    tables: ClassVar[tuple[str, ...]] = (
        PARTICIPANTS,
        "*_sessions.tsv",
        "*_scans.tsv",
        "participants.json",
        "dataset_description.json",
        *LABEL_TABLES,
    )

    def recognises(self, root: Path) -> bool:
        return any(p.is_dir() for p in root.glob("sub-*"))

    def read(self, root: Path) -> Found:
        sessions: dict[str, _Session] = defaultdict(_Session)
        problems: list[Problem] = []
        own = _own_results(root / "derivatives")
        for base in (root, root / "derivatives"):
            for path in walk(base, hidden=ASIDE if base == root else ASIDE - {"derivatives"}):
                if not own.isdisjoint(path.parents):
                    continue
                match = NAME.fullmatch(stem(path))
                wrong = _misplaced(path, base, match)
                if wrong is not None:
                    problems.append(wrong)
                elif match is not None:
                    case, rest = match[1] + (match[2] or ""), match[3] or "image"
                    found = _take(sessions[case], path, rest, raw=base == root)
                    if found is not None:
                        problems.append(Problem(case, found, files=(path,)))
        refused = {problem.id for problem in problems if problem.severity == "error"}
        cases = []
        for name in sorted(sessions):
            case, more = _case(name, sessions[name], root)
            problems += more
            if case is not None and name not in refused:
                cases.append(case)
        described, unmatched = with_participants(root, cases)
        return described, [*problems, *unmatched]


def _own_results(derivatives: Path) -> set[Path]:
    """Folders of results of this program: what it finds is no truth."""
    found = set()
    for path in derivatives.glob("*/dataset_description.json"):
        try:
            made = json.loads(path.read_bytes())["GeneratedBy"]
            names = {str(one["Name"]) for one in made}
        except (OSError, ValueError, LookupError, TypeError):
            continue  # of another program, which is free to describe it otherwise
        if "volumediff" in names:
            found.add(path.parent)
    return found


def _misplaced(path: Path, base: Path, match: re.Match[str] | None) -> Problem | None:
    """Why a file is in no case: no name of BIDS, or another subject or session than its folder's.

    Files that lie in no folder of a subject, and derivatives of other names, are only named by the
    account of all files.
    """
    above = path.relative_to(base).parts[:-1]
    subject = next((part for part in above if SUBJECT.fullmatch(part)), None)
    session = next((part for part in above if SESSION.fullmatch(part)), None)
    if subject is None:
        return None
    if match is None:
        text = f"{path.name}: expected a name that begins with {subject}_, as BIDS has it."
        return Problem(subject, text, "warning", (path,))
    if match[1] != subject:
        text = (
            f"{path.name} names {match[1]}, and its folder {subject}; give both one name (of "
            "letters, digits and plus)."
        )
        return Problem(subject, text, files=(path,))
    own = (match[2] or "").removeprefix("_")
    if session is not None and own != session:
        text = (
            f"{path.name} names {own or 'no session'}, and its folder {session}; give both one "
            "name."
        )
        return Problem(f"{subject}_{session}", text, files=(path,))
    return None


def _take(found: _Session, path: Path, rest: str, *, raw: bool) -> str | None:
    """Adds a file to its case; why the case cannot be used then."""
    word = rest.rsplit("_", 1)[-1].lower()
    if is_auxiliary(rest):
        return None
    if word in LABEL_WORDS:
        if ASSOCIATED_WORD in rest:
            found.associated = path
        elif "lesion" in rest or not re.search(r"(desc|label|atlas)-", rest):
            reader = split_reader(rest)[1]
            (found.labels if reader is None else found.readers[reader]).append(path)
    elif raw and rest in found.images:
        return f"{path} and {found.images[rest]} are both its {rest}; keep one, or rename it."
    elif raw:
        found.images[rest] = path
    return None


def _case(name: str, found: _Session, root: Path) -> tuple[Case | None, list[Problem]]:
    """The case, and what of its files is not used."""
    problems = []
    images = {}
    for rest, path in found.images.items():
        original, is_copy = without_copy_words(rest)
        if is_copy and original in found.images:
            text = f"{path.name} is a copy of {found.images[original].name} and is not used."
            problems.append(Problem(name, text, "info", (path,)))
        else:
            images[original] = path
    labels = [*found.labels, *(p for paths in found.readers.values() for p in paths)]
    if not images:
        if labels:
            text = f"has a label ({labels[0].name}) but no image; add the image."
            problems.append(Problem(name, text, "warning", tuple(labels)))
        return None, problems
    apart = [path for path in labels if not _shares_space(path, images)]
    if apart:
        text = f"{apart[0].name} is in another space than every image; give it in theirs."
        problems.append(Problem(name, text, "warning", tuple(apart)))
    truth = sorted(path for path in found.labels if path not in apart)
    readers = {n: [p for p in paths if p not in apart] for n, paths in found.readers.items()}
    double = next((sorted(p) for p in (truth, *readers.values()) if len(p) > 1), None)
    if double is not None:
        text = f"{len(double)} labels fit ({double[0]}, {double[1]}); keep one."
        files = (*labels, *found.images.values())
        problems.append(Problem(name, text, files=files))
        return None, problems
    suffixes = [rest.rsplit("_", 1)[-1] for rest in images]
    named = {
        (suffix if suffixes.count(suffix) == 1 else rest): path
        for suffix, (rest, path) in zip(suffixes, images.items(), strict=True)
    }
    case = Case(
        name,
        patient_of(name),
        named,
        truth[0] if truth else None,
        associated=found.associated,
        labels=in_order({n: paths[0] for n, paths in readers.items() if paths}),
        names=_names((*truth, *(path for paths in readers.values() for path in paths)), root),
    )
    return case, problems


def _names(labels: Iterable[Path], root: Path) -> dict[int, str]:
    """What the first label map with a look-up table says of its values; masks have none."""
    tables = (names_of_labels(p, root) for p in labels if stem(p).rpartition("_")[2] == "dseg")
    return next((names for names in tables if names), {})


def _shares_space(label: Path, images: dict[str, Path]) -> bool:
    """Whether a label may lie on the grid of an image, by the space that its name tells."""
    match = SPACE.search(stem(label))
    if match is None or match[1].lower() in OWN_SPACES:
        return True
    return any((s := SPACE.search(rest)) and s[1] == match[1] for rest in images)
