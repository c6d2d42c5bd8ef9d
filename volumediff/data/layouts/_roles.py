"""What the name of a file says that it is: the image of a channel, a label, or neither.

Programs name their results after their input, word by word: `T1w_bet_mask`, `brain_mask_T1w` and
`T1w_brain_mask_bin` are masks of the head, `T1w_brain` is a copy of `T1w` without its skull, and
`brain_lesion_mask` is a label all the same. So all words that stand together decide, not the last.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "ASSOCIATED_WORD",
    "AUXILIARY_WORDS",
    "IMAGE_WORDS",
    "LABEL_WORDS",
    "LESION_WORDS",
    "Name",
    "Role",
    "in_order",
    "is_auxiliary",
    "marked",
    "parsed",
    "role_of",
    "split_name",
    "split_reader",
    "without_copy_words",
]

Role = Literal["image", "label", "associated", "auxiliary"]

# Words in lower case. An image's name ends with one of these, or it is the channel `image`.
IMAGE_WORDS = frozenset(
    "t1w t1 t1c t1ce t1gd t1n t2w t2 t2f t2star t2starw flair pd pdw dwi adc b0 b1000 swi bold "
    "cbf mra tof ct cta cbct pet suv us mr mri image img volume".split()
)
LABEL_WORDS = frozenset(
    "mask masks label labels seg segm segmentation dseg lesion lesions roi gt truth tumor tumour "
    "organs annotation".split()
)
# The label of what goes with lesions and is none: oedema, mass effect, atrophy.
ASSOCIATED_WORD = "associated"
# Helpers that are neither image nor truth; votes are a count of readers, and no label map.
AUXILIARY_WORDS = frozenset(
    "brainmask brain_mask headmask bodymask skullmask foreground bet votes".split()
)
# Whose mask is that of the whole object and never a lesion's.
OBJECT_WORDS = frozenset(
    "brain bet hdbet synthstrip bse head body skull scalp skullstrip skullstripped icv tiv "
    "foreground fov air".split()
)
BINARY = "bin"
# These make a label of whatever stands beside them.
LESION_WORDS = frozenset(
    "lesion lesions tumor tumors tumour tumours wmh infarct stroke haemorrhage hemorrhage bleed "
    "metastasis metastases oedema edema gtv nodule anomaly pathology gt truth annotation".split()
)
# An image of the same channel whose background has been emptied.
COPY_WORDS = frozenset("brain bet hdbet stripped skullstripped synthstrip".split())
COMPOUND = re.compile(r"(brain|head|body|skull|scalp|bet)masks?$")
# Words of entities that may stand between the others: desc-brain_mask.
FILLER = frozenset("desc label space".split())
# One of several people who labelled an examination: `reader-1`, `rater2`.
READER = re.compile(
    r"(?:^|[_-])(?:reader|rater|annotator|observer)(?:-([A-Za-z0-9]+)|(\d+))(?=[_-]|$)", re.I
)
KNOWN = IMAGE_WORDS | LABEL_WORDS | LESION_WORDS | OBJECT_WORDS | FILLER | {BINARY}


@dataclass(frozen=True)
class Name:
    """What the stem of a file says.

    Arguments:
        role: what the file is
        owners: whose it may be, the most likely last; of a label `p1_pre-T1_mask`, the image
            `p1_pre-T1` if there is one, or else `p1_pre`. Empty text where the name has nothing
            but words for roles and channels
        channel: last word, as it is written; `image` for images without a word for the channel
        is_copy: whether it is an image without its skull
        reader: who labelled
    """

    role: Role
    owners: tuple[str, ...]
    channel: str = "image"
    is_copy: bool = False
    reader: str | None = None

    @property
    def owner(self) -> str:
        """Whose it is if no other file says more."""
        return self.owners[-1]


def parsed(stem: str) -> Name:
    """The parts of a name: `ms_p07_T1w` is the channel T1w of `ms_p07`."""
    role = role_of(stem)
    if role == "image":
        rest, is_copy = without_copy_words(stem)
        case, _, word = rest.rpartition("_")
        known = word.lower() in IMAGE_WORDS
        return Name(role, (case if known else rest,), word if known else "image", is_copy)
    return marked(stem, role)


def marked(stem: str, role: Role = "label") -> Name:
    """The parts of the name of a label, such as `p7_reader-1_mask`."""
    name, reader = split_reader(stem)
    last = re.split(r"[_-]", name)[-1]
    return Name(role, tuple(_shortened(name)), last, reader=reader)


def is_auxiliary(name: str) -> bool:
    """Whether a name is that of a mask of the brain, the head or the body, or of votes."""
    return role_of(name) == "auxiliary"


def split_name(stem: str) -> tuple[str, str]:
    """Case and word of a name: `ms_p07_T1w` -> (`ms_p07`, `T1w`), `T1w` -> (``, `T1w`).

    A last word that is none of ours stays in the id, and the channel is `image`.
    """
    name = parsed(stem)
    return name.owner, name.channel


def split_reader(name: str) -> tuple[str, str | None]:
    """The name without its reader, and the reader: `p7_reader-1_mask` -> (`p7_mask`, `1`)."""
    match = READER.search(name)
    if match is None:
        return name, None
    rest = (name[: match.start()] + name[match.end() :]).lstrip("_-")
    return rest, match[1] or match[2]


def in_order(readers: Mapping[str, Path]) -> dict[str, Path]:
    """Readers by name, numbers by size."""
    names = sorted(readers, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    return {name: readers[name] for name in names}


def role_of(stem: str) -> Role:
    """What a file is, by the words of its name that stand together."""
    words = re.split(r"[_\-. ]+", split_reader(stem.lower())[0])
    last = words[-1]
    if last == ASSOCIATED_WORD:
        return "associated"
    runs = _together(words)
    if not any(run & LESION_WORDS for run in runs) and any(map(_of_the_object, runs)):
        return "auxiliary"
    if last in LABEL_WORDS or (last == BINARY and runs[-1] & (LABEL_WORDS | LESION_WORDS)):
        return "label"
    copy = last in COPY_WORDS and not (set(words[-2:-1]) & (IMAGE_WORDS | COPY_WORDS))
    if last in AUXILIARY_WORDS - COPY_WORDS or (last == "bet" and copy) or last == BINARY:
        return "auxiliary"
    return "image"


def without_copy_words(stem: str) -> tuple[str, bool]:
    """The name of an image without the words that say that its skull is gone, and whether it had
    some: `T1w_brain` -> (`T1w`, True)."""
    rest, found = stem, False
    while (cut := re.search(r"[_-]([A-Za-z]+)$", rest)) and cut[1].lower() in COPY_WORDS:
        rest, found = rest[: cut.start()], True
    return rest, found


def _together(words: Sequence[str]) -> list[set[str]]:
    """Runs of known words; unknown ones, such as the name of a patient, stand between them."""
    runs: list[set[str]] = [set()]
    for word in words:
        if word in KNOWN or COMPOUND.search(word):
            runs[-1].add(word)
        elif runs[-1]:
            runs.append(set())
    return [run for run in runs if run]


def _of_the_object(run: set[str]) -> bool:
    """Whether words say that a mask is that of the brain, the head or the body."""
    if any(COMPOUND.search(word) for word in run):
        return True
    labels = run & LABEL_WORDS
    return bool(labels and run & OBJECT_WORDS) or (BINARY in run and labels <= {"mask", "masks"})


def _shortened(name: str) -> Iterator[str]:
    """The name without one, two, ... of the words for roles and channels at its end."""
    parts = re.split(r"([_.-])", name)
    known = KNOWN | AUXILIARY_WORDS | {ASSOCIATED_WORD}
    shorter = False
    while parts and (parts[-1].lower() in known or COMPOUND.search(parts[-1].lower())):
        parts, shorter = parts[:-2], True
        yield "".join(parts)
    if not shorter:
        yield name
