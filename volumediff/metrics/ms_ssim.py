r"""Multi-scale structural similarity of two volumes, and with it the diversity of many.

.. math:: \text{MS-SSIM}(x, y) = l_M^{w_M} \prod_{j=1}^{M} c_j^{w_j}

with the mean contrast and structure :math:`c_j` at scale j and the mean similarity :math:`l_M` at
the coarsest one, over windows that lie in the volume. From one scale to the next voxels are
averaged by two along every axis. Of the five scales of the paper a volume has as many as leave
room for the window of eleven voxels along its shortest axis, and weights that sum to one.

Volumes that a model draws are diverse where pairs of them are no more alike than pairs of real
ones (Kwon et al. 2019): a model that always draws the same volume has the value 1.

References:
    Wang et al. (2003), Multi-scale structural similarity for image quality assessment
    Kwon et al. (2019), Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial
    Networks, arXiv:1908.02498
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.shapes import Shape

__all__ = ["ms_ssim", "scales_of"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def scales_of(shape: Shape) -> int:
    """Number of scales for a volume of so many voxels; 0 where the window does not fit."""
    return sum(min(shape) // 2**j >= WINDOW for j in range(len(WEIGHTS)))


def ms_ssim(x: Float[Tensor, "c d h w"], y: Float[Tensor, "c d h w"], *, span: float) -> float:
    """Similarity in [0, 1], 1 for equal volumes; negative means count as 0.

    Arguments:
        x, y: volumes of equal shape
        span: difference between the highest and the lowest intensity that there can be

    Raises:
        ValueError: shapes differ, or are smaller than the window
    """
    scales = scales_of(tuple(x.shape[1:]))
    if x.shape != y.shape or not scales:
        raise ValueError(
            f"expected two volumes of one shape of at least {WINDOW} voxels along each axis, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    # In float32 the variance of a window is what cancellation leaves of two large numbers.
    a, b = x.double()[None], y.double()[None]
    weights = torch.tensor(WEIGHTS[:scales], dtype=torch.float64, device=x.device)
    weights = weights / weights.sum()
    found = []
    for scale in range(scales):
        if scale:
            a, b = F.avg_pool3d(a, 2), F.avg_pool3d(b, 2)
        similarity, structure = _similarity(a, b, span)
        found.append(similarity if scale == scales - 1 else structure)
    return float((torch.stack(found).clamp(min=0) ** weights).prod())


def _similarity(a: Tensor, b: Tensor, span: float) -> tuple[Tensor, Tensor]:
    """Mean similarity, and mean contrast and structure, over the windows of one scale."""
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    mean_a, mean_b = _mean(a), _mean(b)
    var_a, var_b = _mean(a * a) - mean_a**2, _mean(b * b) - mean_b**2
    both = _mean(a * b) - mean_a * mean_b
    structure = (2 * both + c2) / (var_a + var_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * structure).mean(), structure.mean()


def _mean(a: Float[Tensor, "1 c d h w"]) -> Tensor:
    """Gaussian means of the windows that lie in the volume."""
    at = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    weight = torch.exp(-(at**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    for axis in range(2, 5):
        n = a.shape[axis] - WINDOW + 1
        # A sum of shifted volumes: no windows are copied.
        a = sum(w * a.narrow(axis, i, n) for i, w in enumerate(weight.tolist()))
    return a
