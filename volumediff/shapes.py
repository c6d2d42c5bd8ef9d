"""Shapes and symbols: one meaning for every axis letter and symbol, in names and annotations.

Axes. Tensors are always (b, c, d, h, w); for volumes from files d, h, w run towards the patient's
right, anterior and superior (R, A, S), and `spacing_mm` lists millimetres in that order.

    b  samples of a batch          d, h, w  voxels, or state voxels where a state is meant
    c  channels of a volume        k        channels of a state
    l  labels                      n        any other count, such as scalars of a condition

Symbols.

    x        a volume; intensities live roughly in [-1, 1], background -1
    z        a state, z = encode(x): what is diffused, zero mean and unit variance per channel
    t        time in [0, 1]: 0 is clean, 1 is noisiest; step k = 0..T-1 of a paper is (k + 1) / T
    s        the next time of a sampler, s < t
    z_t      the noisy state, z_t = alpha_t z + sigma_t eps with alpha_t^2 + sigma_t^2 = 1
    eps      white noise of unit variance
    log_snr  log(alpha_t^2 / sigma_t^2)
    v        alpha_t eps - sigma_t z
    y        labels                m        a mask in [0, 1]
    x0       a prediction of the clean state

A higher value of a map means more abnormal; class 0 is healthy. Sizes of volumes and of states are
tuples in the order d, h, w.
"""

__all__ = ["Shape"]

Shape = tuple[int, int, int]
"""Sizes along d, h, w."""
