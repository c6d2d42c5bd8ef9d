"""An output folder as a BIDS derivative data set.

OUT/dataset_description.json   what made it, from which data sets
OUT/README                     what the files are
OUT/.bidsignore                files of a kind that BIDS has no name for: maps, findings, records

They are written where a case lies as BIDS wants it (see `case_files`); the validator of BIDS
passes on the folder then. The keys beside every mask and label map are those of BIDS 1.10,
"Imaging data types: Masks, Segmentations".
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import volumediff
from volumediff.data.cases import Case
from volumediff.outputs.case_files import CaseFiles, case_files
from volumediff.outputs.ledger import fingerprint
from volumediff.storage.atomic import write_text

__all__ = ["DESCRIPTION", "describe_dataset", "image_keys"]

DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
IGNORED = (
    *("ledger.jsonl", ".lock", ".session", ".claims", "errors", "seen-*.json", "findings"),
    *("*.html", "*_cases", "*.png", "*.label", "*.ctbl", "evaluation.json"),
    *("*_map.nii.gz", "*_map.json", "*_image.nii.gz", "*_findings.json"),
    *("*_desc-translated.json", "*_desc-deviation_*"),
)
README = """Results of `volumediff {task}` as a BIDS derivative data set.

Research software, not for diagnosis. The command that made them, the weights and the inputs are
in the JSON beside each result; ledger.jsonl has the SHA-256 of every file.
"""
# What BIDS calls a kind of output, by what its name looks like: description, and keys beside it.
# Label maps of samples inherit those of the label map.
KINDS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    (
        "desc-anomaly_mask",
        "Voxels where the anomaly map is above its threshold",
        {"Type": "Lesion"},
    ),
    ("desc-foreground_mask", "Voxels that were looked at", {"Type": "ROI"}),
    (r"desc-.+_mask", "Mask of a component of the method", {"Type": "ROI"}),
    ("dseg", "The most probable label of each voxel", {"Manual": False}),
    (r"label-\d+_probseg", "Probability of a label", {"Manual": False}),
    (r"desc-translated_.+", "Synthetic image, translated from the sources", {}),
)


def image_keys(files: CaseFiles, name: str) -> dict[str, Any]:
    """The keys of BIDS beside an output; nothing for a case outside of BIDS, and for a kind that
    BIDS has no name for.

    Arguments:
        files: the outputs of the case
        name: of the output, such as `dseg`
    """
    known = next((kind for kind in KINDS if re.fullmatch(kind[0], name)), None)
    if known is None or not files.sources:
        return {}
    _, description, keys = known
    about = {"Description": f"{description}.", "Sources": list(files.sources)}
    return {**about, "SpatialReference": files.sources[0], **keys}


def describe_dataset(out: Path, cases: Iterable[Case], settings: Mapping[str, Any]) -> None:
    """Makes an output folder a BIDS derivative data set, if a case comes from one.

    Data sets that an earlier call named as sources stay.

    Arguments:
        out: output folder
        cases: whose results go there
        settings: of the results; see `ledger`

    Raises:
        DataError: the folder cannot be written
    """
    links = {}
    for case in cases:
        files = case_files(out, case)
        if files.sources:
            links |= files.links
    if not links:
        return
    path = out / DESCRIPTION
    if path.is_file():
        links = {**json.loads(path.read_bytes()).get("DatasetLinks", {}), **links}
    task = str(settings["task"])
    about = f"{task}, settings {fingerprint(settings)[:12]}"
    if "weights" in settings:
        about += f", weights {settings['weights']}"
    content = {
        "Name": f"volumediff {task}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "volumediff", "Version": volumediff.__version__, "Description": about}
        ],
        "SourceDatasets": [{"URL": url} for url in sorted(set(links.values()))],
        "DatasetLinks": dict(sorted(links.items())),
    }
    write_text(path, json.dumps(content, indent=1))
    write_text(out / "README", README.format(task=task))
    write_text(out / ".bidsignore", "\n".join(IGNORED) + "\n")
