"""Names of the files of one segmented volume, as they are written, read and brought home.

<case>_dseg.nii.gz                              most probable label at each voxel
<case>_label-<value>_probseg.nii.gz             probability of a label; label-0 is the background
<case>_sample-<i>_dseg.nii.gz                   label map of one draw
<case>_label-<value>_desc-variance_map.nii.gz   variance of the samples
<case>_label-<value>_desc-votes_map.nii.gz      share of the samples with the label
<case>_desc-entropy_map.nii.gz                  entropy of the label, in nats
<case>_dseg.json                                method, weights, inputs, volumes, network calls
<case>_desc-label_findings.json                 the parts of every label; see findings/schema.py
"""

import re
from pathlib import Path

__all__ = [
    "DSEG",
    "ENTROPY",
    "is_sample",
    "probabilities_of",
    "samples_of",
    "segmentation_sidecar",
]

DSEG, ENTROPY = "dseg", "desc-entropy_map"
LABEL_FINDINGS = "desc-label_findings"
SAMPLE = re.compile(r".+_sample-(\d+)_dseg\.nii\.gz")
PROBABILITY = re.compile(r"_label-(\d+)_probseg\.nii\.gz")


def segmentation_sidecar(folder: Path, case: str) -> Path:
    """The JSON beside the label map of a case."""
    return folder / f"{case}_{DSEG}.json"


def is_sample(path: Path) -> bool:
    """Whether a label map is that of one draw."""
    return SAMPLE.fullmatch(path.name) is not None


def samples_of(folder: Path, case: str) -> list[Path]:
    """The label maps of the draws of a case, in their order."""
    found = {}
    for path in folder.glob("*_sample-*_dseg.nii.gz"):
        match = SAMPLE.fullmatch(path.name)
        if match is not None and path.name == f"{case}_sample-{match[1]}_dseg.nii.gz":
            found[int(match[1])] = path
    return [found[i] for i in sorted(found)]


def probabilities_of(folder: Path, case: str) -> dict[int, Path]:
    """Label value -> its probability map; 0 is the background."""
    found = {}
    for path in folder.glob("*_probseg.nii.gz"):
        match = PROBABILITY.fullmatch(path.name.removeprefix(case))
        if match is not None and path.name.startswith(f"{case}_"):
            found[int(match[1])] = path
    return dict(sorted(found.items()))
