"""Residual segmentation networks: (x̂ - x, x) -> logit of an anomaly per voxel."""

from volumediff.residual_segmenters._base import ResidualSegmenter

__all__ = ["ResidualSegmenter"]
