r"""Routes: from a volume to a noisy state and back to pseudo-healthy volumes.

    diffuse    z_t = α_t z_0 + σ_t ε, then the sampler's reverse chain
    inversion  z_t by integrating the probability flow up to t, then back down with guidance
    scan       E[z_0 | z_t] at several t, no chain
    flow_scan  the same along the inversion, while the class changes more and more
    grid       diffuse, box by box
    masks      diffuse, region by random region
    cycle      from one channel to another and back, region by region
    shrink     diffuse, inside a mask that shrinks
    fuse       diffuse and inversion side by side, the former inside a mask
    kl         divergence of the model's transitions from the volume's, no chain
    saliency   gradient of a classifier, no chain
    external   a map from elsewhere
    restore    E(x) itself as a state of a cold kernel, restored
    selective  no noise is added: what the network takes for noise is denoised
    identity   D(E(x)): what the space alone loses

The level is a time t, or better a log-SNR: the same t is another corruption under another
schedule, the same log(α²/σ²) is the same one in every space of unit variance.
"""
