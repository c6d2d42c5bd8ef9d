"""Comparers: (x̂ - x, x) -> the logit that a voxel is abnormal, x̂ a reconstruction of x."""

from volumediff.comparers._base import Comparer

__all__ = ["Comparer"]
