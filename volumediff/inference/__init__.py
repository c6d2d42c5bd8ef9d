"""Inference with trained runs: localization, segmentation and samples of new volumes."""
