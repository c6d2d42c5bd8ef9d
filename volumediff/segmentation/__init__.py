"""The segmentation head: one file per method, from a trained run and a volume to labels."""
