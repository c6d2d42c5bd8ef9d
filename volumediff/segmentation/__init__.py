"""The segmentation head: label maps sampled given an image, and what their spread says."""
