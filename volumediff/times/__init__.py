"""Densities of training times: how often each noise level is trained, one file per density."""
