"""Calibrations: a method on healthy volumes of a run or a site gives normalization and thresholds."""
