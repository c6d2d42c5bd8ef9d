r"""Bias field correction of MRI by N4.

.. math:: v(x) = u(x)\,b(x), \qquad \log b = \text{B-spline}

N4 sharpens the histogram of log v and smooths the difference back to a field, coarse to fine. It
runs on 4 mm voxels; the field varies over centimetres, so it is brought back by interpolation.
b has a geometric mean of one inside the mask, so that intensities keep their level.

References:
    Tustison et al. (2010), N4ITK: improved N3 bias correction
    Sled et al. (1998), A nonparametric method for automatic correction of intensity
        nonuniformity in MRI data
"""

import numpy as np
import torch
from jaxtyping import Bool, Float

from volumediff.data.alignment_template import coarsened
from volumediff.data.grid import Grid
from volumediff.data.itk import from_itk, to_itk
from volumediff.data.resampling import axis_weights, resample
from volumediff.errors import DataError

__all__ = ["bias_field"]

WORKING_MM = 4.0
# Iterations of each fitting level. The mesh doubles from one to four spans per axis, about 50 mm
# for a head: a finer mesh (ITK's default has four levels) follows large lesions and takes them
# out.
ITERATIONS = (50, 50, 50)
CONVERGENCE = 1e-3  # of N4's relative change, ITK's own default
# Interpolation leaves some values below zero at edges; more is CT, a z-score or a difference.
MOST_NEGATIVE = 0.01


def bias_field(
    x: Float[np.ndarray, "d h w"], grid: Grid, *, mask: Bool[np.ndarray, "d h w"]
) -> Float[np.ndarray, "d h w"]:
    """The field b, positive everywhere; x / b is corrected.

    Arguments:
        x: intensities of one channel
        grid: its geometry
        mask: voxels to look at, such as the brain

    Raises:
        DataError: the mask is empty, or the intensities are not those of MRI: N4 takes logarithms
    """
    if not mask.any():
        raise DataError("N4 found an empty mask; check the foreground, or leave N4 out.")
    negative = float((x[mask] < 0).mean())
    if negative > MOST_NEGATIVE:
        raise DataError(
            f"N4 takes positive intensities, {negative:.0%} of the foreground are negative (CT or "
            "normalised before); leave N4 out."
        )
    import SimpleITK as sitk

    d, h, w = (max(s, WORKING_MM) for s in grid.spacing_mm)
    # the logarithm of a mean of tissue and nothing is no tissue: masked voxels alone count
    inside = (mask & (x > 0)).astype(np.float32)
    share, coarse = coarsened(inside, grid, spacing_mm=(d, h, w))
    total, _ = coarsened(x * inside, grid, spacing_mm=(d, h, w))
    kept = share >= 0.5
    if not kept.any():
        raise DataError("N4 found no positive intensities in the mask; leave N4 out.")
    mean = np.where(kept, total / np.maximum(share, 0.5), 0).astype(np.float32)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # sums depend on the number of threads
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    n4.SetConvergenceThreshold(CONVERGENCE)
    image = to_itk(mean, coarse)
    try:
        n4.Execute(image, to_itk(kept.astype(np.uint8), coarse))
        log = from_itk(n4.GetLogBiasFieldAsImage(image)).astype(np.float32)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"N4 cannot correct it ({reason}); leave N4 out.") from None
    log -= float(log[kept].mean())
    return np.exp(_onto(log, coarse, grid))


def _onto(
    log: Float[np.ndarray, "od oh ow"], coarse: Grid, grid: Grid
) -> Float[np.ndarray, "d h w"]:
    """Linear interpolation on the finer grid; both have one centre and one orientation."""
    matrices = []
    pairs = zip(coarse.shape, grid.shape, coarse.spacing_mm, grid.spacing_mm, strict=True)
    for size, out, has, wanted in pairs:
        step = wanted / has
        origin = (size - 1) / 2 - (out - 1) / 2 * step
        matrices.append(axis_weights(size, out, step=step, origin=origin))
    first, second, third = matrices
    return resample(torch.from_numpy(log)[None], (first, second, third), fill=0.0)[0].numpy()
