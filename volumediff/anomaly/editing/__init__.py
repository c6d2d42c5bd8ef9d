r"""Policies: what may change on the way down, and what stays the patient's own.

A policy prepares the volume to be corrupted, edits the time grid, hooks into the sampler, blends
the result and weighs the map. Masks live in the volume and reach the state by `space.mask`; each
policy leaves its masks in the trace.
"""
