"""Calibrations: normalization and thresholds of methods, from healthy volumes of a run or site."""
