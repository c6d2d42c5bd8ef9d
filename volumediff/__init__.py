"""volumediff: memory-efficient 3D diffusion for medical volumes.

Four native pipelines (patch, wavelet, latent, pseudo-3D) share one anomaly-localization and one
segmentation head. A pipeline is a choice of space (what is diffused), network and training crop;
nothing else in the code knows which of the four it is running. Importing the package does nothing.
"""

__version__ = "0.1.0"
