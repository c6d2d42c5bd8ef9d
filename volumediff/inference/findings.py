"""Findings of a folder of results, measured again on what was written.

Of a folder with anomaly maps those of the maps, else those of the segmentations.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volumediff.data.survey import AUTO, Spec
from volumediff.errors import DataError, UsageError
from volumediff.findings.components import case_findings
from volumediff.findings.schema import CaseFindings
from volumediff.findings.written import Written, read_segmented, read_written
from volumediff.outputs.case_files import CaseFiles, by_case, written
from volumediff.outputs.export import FINDINGS, MAP, write_json
from volumediff.outputs.segmentation_files import DSEG, LABEL_FINDINGS
from volumediff.outputs.sidecar import read_facts
from volumediff.reporting.packet import write_packets
from volumediff.runs.inputs import find_inputs

__all__ = ["MOST", "Work", "find_in_folder"]

# Packets of a case: a mask without post-processing may fall into hundreds of specks.
MOST = 10


@dataclass(frozen=True)
class Work:
    """What was done in a folder.

    Arguments:
        done: findings by case
        packets: folders of the packets
        failed: case -> reason
    """

    done: dict[str, CaseFindings] = field(default_factory=dict)
    packets: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def find_in_folder(
    folder: Path,
    source: Path | str | Sequence[Path | str],
    *,
    channels: Sequence[str] | None = None,
    layout: Spec = AUTO,
    packets: bool = False,
    most: int = MOST,
    look: Callable[[Written, CaseFindings], None] = lambda written, found: None,
    report: Callable[[str], None] = lambda line: None,
) -> Work:
    """Findings, and on request packets, of every case of a folder of results.

    Arguments:
        folder: of the results of a localization, or of a segmentation
        source: what was localized or segmented: file, folder or manifest, or several of them
        channels: names of the images; None takes those that the results name
        layout: of the folders that were localized
        packets: whether pictures and prompts are written too
        most: packets of a case, of its most urgent findings
        look: is shown every case
        report: receives a line per case

    Raises:
        UsageError: no results in the folder, or none of the source's cases
    """
    records = {
        word: by_case(folder, written(folder, f"*_{word}.json"), f"_{word}.json")
        for word in (MAP, DSEG)
    }
    suffix = next((word for word, found in records.items() if found), None)
    if suffix is None:
        raise UsageError(
            f"{folder}: expected results of a localization or segmentation, found none."
        )
    segmented = suffix == DSEG
    named = sorted(records[suffix])
    if channels is None:
        channels = _channels(records[suffix][named[0]])
    cases, _ = find_inputs(source, channels=channels, layout=layout)
    known = {case.id: case for case in cases}
    work = Work()
    shared = [name for name in named if name in known]
    if not shared:
        given = [source] if isinstance(source, str | Path) else source
        raise UsageError(
            f"{', '.join(map(str, given))}: expected the images that {folder} was made of, such "
            f"as {named[0]}, found {next(iter(known))}."
        )
    if len(shared) < len(named):
        report(f"{len(named) - len(shared)} other cases of {folder} are not given")
    for name in shared:
        try:
            stem = records[suffix][name].name.removesuffix(f"_{suffix}.json")
            files = CaseFiles(records[suffix][name].parent, stem)
            content = (read_segmented if segmented else read_written)(files, known[name])
            found = case_findings(content)
            kind = LABEL_FINDINGS if segmented else FINDINGS
            _write_once(files.path(kind, ".json"), found)
            if packets:
                work.packets.extend(write_packets(folder, content, found, most=most))
        except DataError as error:
            work.failed[name] = str(error)
            continue
        work.done[name] = found
        look(content, found)
        report(f"{name}: {found.statement}")
    return work


def _write_once(path: Path, found: CaseFindings) -> None:
    """Writes the findings, unless the file has them already."""
    if path.is_file() and json.loads(path.read_bytes()) == json.loads(json.dumps(found.to_json())):
        return
    write_json(path, found.to_json())


def _channels(sidecar: Path) -> tuple[str, ...] | None:
    """Names of the images that were used; None for a single file, whose name says nothing."""
    names = tuple(read_facts(sidecar).get("inputs", {}))
    return None if names == ("image",) else names
