"""Samplers: from a noisy state to a clean one, and back."""
