"""Kernels, the forward processes: how states are corrupted, and how a network's output is read."""
