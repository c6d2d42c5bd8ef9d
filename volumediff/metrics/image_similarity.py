r"""How alike two images of one object are, inside of a mask: PSNR and SSIM.

MR intensities have no unit, so that both images are first brought to [0, 1] by their own
quantiles, as challenges of image synthesis do,

.. math:: u = \operatorname{clip}\left(\frac{x - q_{0.005}}{q_{0.995} - q_{0.005}}, 0, 1\right),

quantiles of the mask; outside of it u = 0. The range of the data is then 1:

.. math:: \mathrm{PSNR} = -10 \log_{10} \frac{1}{|M|} \sum_{v \in M} (u_v - w_v)^2,

and SSIM is the mean over M of the local similarity with Gaussian windows of 1.5 voxels.

References:
    Wang et al. (2004), Image quality assessment, IEEE TIP 13:600, eq. 13, K1 = 0.01, K2 = 0.03
    Li et al. (2023), The Brain Tumor Segmentation Challenge 2023: Brain MR Image Synthesis for
    Tumor Segmentation (BraSyn), arXiv:2305.09011
"""

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["psnr", "ssim_map", "unit_range"]

QUANTILES = (0.005, 0.995)
SIGMA = 1.5  # of the window, in voxels
TRUNCATE = 3.5  # deviations: 11 voxels
C1, C2 = 0.01**2, 0.03**2
Image = Float[np.ndarray, "d h w"]
Mask = Bool[np.ndarray, "d h w"]


def unit_range(x: Image, inside: Mask) -> Image:
    """The image in [0, 1] by its quantiles inside of the mask, 0 outside; a constant one is 0.

    Raises:
        ValueError: the mask is empty
    """
    if not inside.any():
        raise ValueError("expected a mask with a voxel inside, got an empty one.")
    low, high = np.quantile(x[inside].astype(np.float64), QUANTILES)
    if not high > low:
        return np.zeros_like(x)
    u = np.clip((x.astype(np.float64) - low) / (high - low), 0, 1)
    return np.where(inside, u, 0).astype(x.dtype)


def psnr(u: Image, w: Image, inside: Mask) -> float:
    """Peak signal-to-noise ratio in dB, for images in [0, 1]; infinite for equal ones."""
    error = (u[inside].astype(np.float64) - w[inside].astype(np.float64)) ** 2
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(error.mean()))


def ssim_map(u: Image, w: Image) -> Image:
    """Local structural similarity in [-1, 1] at every voxel, for images in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    def mean(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, SIGMA, truncate=TRUNCATE)

    u, w = u.astype(np.float64), w.astype(np.float64)
    mean_u, mean_w = mean(u), mean(w)
    var_u, var_w = mean(u * u) - mean_u**2, mean(w * w) - mean_w**2
    both = mean(u * w) - mean_u * mean_w
    found = (2 * mean_u * mean_w + C1) * (2 * both + C2)
    return found / ((mean_u**2 + mean_w**2 + C1) * (var_u + var_w + C2))
