"""Files in, files out: how all uses of a run find their cases and write their results.

sources ─ find_cases ─▶ cases, and those that cannot be read ─ work_through ─▶ outputs, ledger
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from volumediff.data.cases import Case
from volumediff.data.survey import AUTO, Spec
from volumediff.inference.dicom_inputs import check_series
from volumediff.outputs.batch import Result, Summary, process
from volumediff.runs.inputs import Examination, examination_of
from volumediff.runs.trained import Trained

__all__ = ["FoundCases", "find_cases", "work_through"]

Sources = Path | str | Sequence[Path | str]
Find = Callable[..., tuple[list[Case], dict[str, str]]]
Read = Callable[[Case, Mapping[str, str]], Examination]
Work = Callable[[Examination, Path], Result]


@dataclass(frozen=True)
class FoundCases:
    """What lies below the sources.

    Arguments:
        cases: those that can be worked on
        problems: case -> reason, for all others
    """

    cases: list[Case]
    problems: dict[str, str]


def find_cases(
    trained: Trained, sources: Sources, find: Find, *, layout: Spec = AUTO, dicom: bool = False
) -> FoundCases:
    """The cases of the sources, of the patients that the run's rule names.

    Arguments:
        find: `find_inputs` with the channels of a case, or `Filling.find`
        layout: of the folders
        dicom: whether every case must be a DICOM series

    Raises:
        UsageError: a case is no DICOM series and has to be
        DataError: a source has no cases
    """
    cases, problems = find(sources, layout=layout, patients=trained.config.data.patients)
    if dicom:
        check_series(cases)
    return FoundCases(cases, problems)


def work_through(
    trained: Trained,
    found: FoundCases,
    out: Path | str,
    work: Work,
    *,
    settings: Mapping[str, Any],
    read: Read | None = None,
    also: Mapping[str, Mapping[str, Path]] = MappingProxyType({}),
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Reads, works on and writes the cases that the output folder does not have yet.

    Arguments:
        work: (examination, output folder) -> what it wrote
        settings: everything beside the inputs that shapes the outputs, as JSON
        read: (case, SHA-256 of its files) -> examination; None reads its images
        also: case -> further input files by name, which count like its images
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: the output folder holds results of other settings
        DataError: the disk is full
    """
    examine = read or partial(examination_of, policy=trained.preprocessing.policy)

    def one(case: Case, digests: Mapping[str, str], folder: Path) -> Result:
        return work(examine(case, digests), folder)

    return process(
        found.cases,
        out,
        settings=settings,
        work=one,
        also=also,
        problems=found.problems,
        overwrite=overwrite,
        report=report,
    )
