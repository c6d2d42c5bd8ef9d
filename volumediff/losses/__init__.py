"""Losses: terms beside the loss of the kernel, one file per term.

dice            1 - soft Dice of the labels
cross_entropy   of the labels, weighted by class
vlb             variational bound, for kernels that learn the variance
boundary        errors near the surface of the labels count more
l1_noise        absolute error of the predicted noise
l1_state        absolute error of the predicted clean state
anchor          what the image branch predicts without noise and time
uncertainty     the kernel's own loss, with a learned weight per noise level
latent_kl       agreement of two encoders, of image with labels and of image with prediction

A configuration lists them, `losses: [{name: dice, weight: 1.0}]`; the kernel's own loss is the
first term, with `kernel_weight`.
"""
