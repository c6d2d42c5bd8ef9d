"""Names of the files of one segmented volume, as they are written, read and brought home.

<case>_dseg.nii.gz                              most probable label at each voxel
<case>_label-<value>_probseg.nii.gz             probability of a label; label-0 is the background
<case>_desc-sample<i>_dseg.nii.gz               label map of one draw
<case>_label-<value>_desc-variance_map.nii.gz   variance of the samples
<case>_label-<value>_desc-votes_map.nii.gz      share of the samples with the label
<case>_desc-entropy_map.nii.gz                  entropy of the label, in nats
<case>_dseg.json                                method, weights, inputs, volumes, network calls
<case>_desc-label_findings.json                 the parts of every label; see findings/schema.py
"""

import re
from pathlib import Path

from volumediff.outputs.case_files import CaseFiles, by_case, written

__all__ = [
    "DSEG",
    "ENTROPY",
    "LABEL_FINDINGS",
    "files_beside",
    "label_maps_in",
    "probabilities_of",
    "sample_of",
    "samples_of",
]

DSEG, ENTROPY = "dseg", "desc-entropy_map"
LABEL_FINDINGS = "desc-label_findings"
SAMPLE = re.compile(r"_desc-sample(\d+)_dseg\.nii\.gz")
PROBABILITY = re.compile(r"_label-(\d+)_probseg\.nii\.gz")


def sample_of(number: int) -> str:
    """What the label map of a draw is called, after the case."""
    return f"desc-sample{number}_{DSEG}"


def label_maps_in(folder: Path) -> dict[str, Path]:
    """The label map of each case in a folder, without those of the draws.

    Raises:
        DataError: two label maps of one case
    """
    tail = f"_{DSEG}.nii.gz"
    maps = [path for path in written(folder, f"*{tail}") if SAMPLE.search(path.name) is None]
    return by_case(folder, maps, tail)


def files_beside(label_map: Path) -> CaseFiles:
    """The outputs that belong to the label map of a case."""
    return CaseFiles(label_map.parent, label_map.name.removesuffix(f"_{DSEG}.nii.gz"))


def samples_of(files: CaseFiles) -> list[Path]:
    """The label maps of the draws of a case, in their order."""
    found = _numbered(files, SAMPLE)
    return [found[i] for i in sorted(found)]


def probabilities_of(files: CaseFiles) -> dict[int, Path]:
    """Label value -> its probability map; 0 is the background."""
    return dict(sorted(_numbered(files, PROBABILITY).items()))


def _numbered(files: CaseFiles, name: re.Pattern[str]) -> dict[int, Path]:
    """The number in the name -> the file, of the outputs of a case."""
    found = {}
    for path in files.folder.glob("*.nii.gz"):
        match = name.fullmatch(path.name.removeprefix(files.stem))
        if match is not None and path.name.startswith(f"{files.stem}_"):
            found[int(match[1])] = path
    return found
