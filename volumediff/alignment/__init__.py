"""Alignment: volumes from the grids of scanners to a template, and results back."""
