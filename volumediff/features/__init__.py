"""Features of a trained model: what its layers make of a volume.

autoencoder  levels of the encoder of an autoencoder, or of that of a latent space
denoiser     levels of the denoiser of any diffusion run, encoder and decoder, at any times
grids        from a level's own grid to voxels and to points
taps         the named places of a network, watched while it runs

A level stays on its own grid until points ask for it. All levels at all voxels of a volume are
never held: 8448 channels at 128³ voxels would be 35 GB in half precision.
"""
