"""Image codecs: how image conditions reach the grid of states, beside the codec of the states.

frozen    the latents of an autoencoder of images
copied    the encoder of an autoencoder of images, which goes on learning with the network
strided   a small encoder that is trained from nothing

A latent space takes one where what is diffused is no image: masks have an autoencoder of their
own, which knows nothing of intensities.
"""

from volumediff.image_codecs._base import ImageCodec

__all__ = ["ImageCodec"]
