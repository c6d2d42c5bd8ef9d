"""Metrics of detection by voxel, lesion, box, volume and subgroup, and of calibration."""
