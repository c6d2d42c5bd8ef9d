"""Evaluation of maps and masks against truth: metrics with intervals over patients."""
