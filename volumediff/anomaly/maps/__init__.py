r"""Maps: how far a volume x is from its pseudo-healthy version x̂, voxel by voxel.

    l1, l2         absolute and squared residual
    ssim           structural dissimilarity
    ssim_ensemble  the same over windows of several widths
    perceptual     distance of the features of the model's own encoder
    posterior      probability by a residual segmentation network of the model, and another map
    product        of several maps
    saturated      a map in units of its own quantile
    asymmetric     what one side has more of than the other
    deformed       a map after the pseudo-healthy volume was bent onto the volume

Higher means more abnormal; channels are averaged; the map is zero outside the foreground.
"""
