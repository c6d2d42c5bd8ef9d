"""Adapters: few trained parameters that correct the frozen weights of another run.

lora  a correction of low rank of every kernel and matrix

`adapter: {name: lora, rank: 8}` in a configuration trains the adapter of the run that `start_from`
names. Checkpoints hold the adapter alone; whoever loads the run gets the corrected weights.
"""
