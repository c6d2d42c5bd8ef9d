"""Images alone with the channel numbers of nnU-Net, as it takes them for inference.

case_001_0000.nii.gz, case_001_0001.nii.gz, case_002_0000.nii.gz, ...
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._descriptions import channel_names, described_by, read_object
from volumediff.data.layouts._files import stem, volumes
from volumediff.data.layouts.nnunet import NUMBERED, numbered

__all__ = ["Numbered"]

FOLDERS = ("imagesTr", "imagesTs", "imagesVal")


@dataclass(frozen=True)
class Numbered(Layout):
    """`<case>_0000.nii.gz`, `<case>_0001.nii.gz`, ...: every case has all channels.

    The names of the channels stand in the `dataset.json` beside a folder such as `imagesTs`.
    Without it channels are called 0, 1, ..., and channels that are asked for are taken in this
    order.
    """

    rank: ClassVar[int] = CONVENTION

    def recognises(self, root: Path) -> bool:
        """Numbers of patients end like that, too: there must be two cases of the same channels, or
        two channels in a folder that nnU-Net names."""
        found = _numbers(root)
        channels = {frozenset(numbers) for numbers in found.values()}
        if len(channels) != 1 or not _whole(root):
            return False
        (count,) = map(len, channels)
        complete = channels == {frozenset(range(count))}
        return complete and (len(found) > 1 or root.absolute().name in FOLDERS)

    def read(self, root: Path) -> Found:
        description = root.absolute().parent / "dataset.json"
        if root.absolute().name in FOLDERS and description.is_file():
            names = channel_names(described_by(read_object(description), description), description)
        else:
            every = {number for numbers in _numbers(root).values() for number in numbers}
            names = [str(number) for number in range(max(every, default=0) + 1)]
        images, problems = numbered(volumes(root), names)
        part = {"split": "test"} if root.absolute().name == "imagesTs" else {}
        cases = [Case(case, patient_of(case), files, None, part) for case, files in images.items()]
        return cases, problems


def _numbers(root: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for path in volumes(root):
        if match := NUMBERED.fullmatch(stem(path)):
            found[match[1]].add(int(match[2]))
    return found


def _whole(root: Path) -> bool:
    """Whether all volumes of a folder have numbers."""
    return all(NUMBERED.fullmatch(stem(path)) for path in volumes(root))
