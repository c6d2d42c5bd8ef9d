"""Predictors: what a trained run says about the labels of a volume, one member of an ensemble at
a time.

sampled     a whole reverse chain from noise to a label map
one_step    the mean of all label maps, from pure noise in a single call
direct      the labels that a supervised network gives in one pass
anchor      what the image branch of a diffusion model predicts by itself
"""
