"""Residual segmenters: (x̂ - x, x) -> logit that a voxel is abnormal, x̂ reconstructs x."""

from volumediff.residual_segmenters._base import ResidualSegmenter

__all__ = ["ResidualSegmenter"]
