"""Attributes that every volume of a run has by its preprocessing, whatever its table says."""

from collections.abc import Mapping

__all__ = ["SPACING", "with_spacing"]

SPACING = ("spacing_r_mm", "spacing_a_mm", "spacing_s_mm")
"""Names of the voxel sizes along R, A and S, in millimetres."""


def with_spacing(
    attributes: Mapping[str, str | float], spacing_mm: tuple[float, float, float] | None
) -> dict[str, str | float]:
    """The attributes of a case and the voxel size of its prepared volume.

    Arguments:
        attributes: of the case; they cannot name another voxel size
        spacing_mm: along d, h, w; None where volumes keep that of their file, which is then to be
            said in the table
    """
    if spacing_mm is None:
        return dict(attributes)
    return {**attributes, **dict(zip(SPACING, spacing_mm, strict=True))}
