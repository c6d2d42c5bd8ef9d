r"""Editing strategies: what the reverse chain may change, and what stays the patient's own.

A strategy prepares the volume to be corrupted, edits the time grid, hooks into the sampler, blends
the result and weighs the map. Masks live in the volume and reach the state by `space.mask`; each
strategy leaves its masks in the trace.
"""
