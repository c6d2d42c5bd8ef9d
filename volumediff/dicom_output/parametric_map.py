"""An anomaly map -> DICOM Parametric Map: its numbers as they are, in the space of the series."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from pydicom.sr.codedict import codes

from volumediff.dicom_output.identity import NOTICE, Maker, settled
from volumediff.dicom_output.segments import SCORE
from volumediff.dicom_output.series import SourceSeries

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap

__all__ = ["parametric_map"]

SERIES = 9003  # number in the study


def parametric_map(
    series: SourceSeries, anomaly: Float[np.ndarray, "d h w"], maker: Maker
) -> "ParametricMap":
    """The map in float32; a fractional segmentation would cut it to steps between 0 and 1.

    Arguments:
        series: that the voxels belong to
        anomaly: higher is more abnormal, along R, A, S
        maker: of the result
    """
    from highdicom.content import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping

    values = series.frames(anomaly).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    width = max(high - low, 1e-6)
    mapping = RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Higher is more abnormal",
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=SCORE,
    )
    made = ParametricMap(
        series.images,
        values,
        series_instance_uid=maker.uid("map series", values),
        series_number=SERIES,
        sop_instance_uid=maker.uid("map", values),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[
            VOILUTTransformation(window_center=(low + high) / 2, window_width=width)
        ],
        content_label="ANOMALY",
        content_description=NOTICE,
        **maker.equipment(),
    )
    return settled(made, maker, "Anomaly map")
