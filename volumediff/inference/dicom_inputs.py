"""What DICOM output needs, checked before anything is computed."""

from collections.abc import Sequence

from volumediff.data.cases import Case
from volumediff.errors import UsageError
from volumediff.extras import optional

__all__ = ["check_series"]


def check_series(cases: Sequence[Case]) -> None:
    """Checks that the first image of every case is a DICOM series, and that highdicom is there.

    Raises:
        UsageError: an image of another format, or no highdicom
    """
    optional("highdicom", purpose="DICOM output")
    for case in cases:
        first = next(iter(case.images.values()))
        if not first.is_dir():
            raise UsageError(
                f"dicom: expected the folder of a DICOM series for {case.id}, got {first}; give "
                "the series, or leave dicom out."
            )
