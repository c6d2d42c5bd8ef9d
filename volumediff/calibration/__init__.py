"""Calibrations: normalization and thresholds of a method, from healthy volumes of a run or site."""
