"""Autoencoders, volume <-> latent. The file name is the name in configurations."""

from volumediff.autoencoders._base import Autoencoder, Reconstructor

__all__ = ["Autoencoder", "Reconstructor"]
