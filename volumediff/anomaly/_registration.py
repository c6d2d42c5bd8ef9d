r"""Smooth displacement between two volumes, by demons.

Thirion's demons move every voxel of the moving volume m along its own gradient, as far as the
intensities of the fixed volume f ask for,

.. math:: Δu = \frac{(f - m∘φ)\, ∇(m∘φ)}{|∇(m∘φ)|^2 + (f - m∘φ)^2 / κ},

and smooth u after every step. Forces come from the gradient of the moving volume alone: where the
pseudo-healthy volume is flat, a lesion of the fixed volume pulls at nothing.

References:
    Thirion (1998), Image matching as a diffusion process: an analogy with Maxwell's demons
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.data._fields import warp

__all__ = ["bent_onto", "displacement_mm"]

SHRINK = 2  # of the coarse resolution
SMALLEST = 8  # voxels along an axis, below which there is one resolution


def bent_onto(
    moving: Float[Tensor, "b c d h w"],
    fixed: Float[Tensor, "b c d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    smooth_mm: float,
    limit_mm: float,
    iterations: int,
) -> Float[Tensor, "b c d h w"]:
    """The moving volumes, each bent onto its fixed one by the mean over channels; on the CPU.

    Arguments: see `displacement_mm`
    """
    unit = torch.tensor(spacing_mm).view(3, 1, 1, 1)
    bent = []
    for source, target in zip(moving.float().cpu(), fixed.float().cpu(), strict=True):
        u = displacement_mm(
            source.mean(0),
            target.mean(0),
            spacing_mm=spacing_mm,
            smooth_mm=smooth_mm,
            limit_mm=limit_mm,
            iterations=iterations,
        )
        bent.append(warp(source, u / unit))
    return torch.stack(bent).to(moving)


def displacement_mm(
    moving: Float[Tensor, "d h w"],
    fixed: Float[Tensor, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    smooth_mm: float,
    limit_mm: float,
    iterations: int,
) -> Float[Tensor, "3 d h w"]:
    """u in millimetres along d, h, w, such that moving(p + u(p)) is like fixed(p).

    Arguments:
        moving: volume that is bent
        fixed: volume that it is bent onto
        spacing_mm: voxel size along d, h, w
        smooth_mm: standard deviation of the Gaussian that smooths u
        limit_mm: |u| is at most this
        iterations: on each of two resolutions, the coarse one first
    """
    import SimpleITK as sitk  # heavy import

    still, bent = _image(fixed, spacing_mm), _image(moving, spacing_mm)
    found = None
    for shrink in (SHRINK, 1) if min(fixed.shape) >= SHRINK * SMALLEST else (1,):
        demons = sitk.DemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        # Stops by a mean over threads otherwise: then their number would change the result.
        demons.SetMaximumRMSError(0.0)
        demons.SetUseMovingImageGradient(True)
        demons.SetSmoothDisplacementField(True)
        a, b = (sitk.BinShrink(v, [shrink] * 3) if shrink > 1 else v for v in (still, bent))
        demons.SetStandardDeviations([smooth_mm / s for s in a.GetSpacing()])
        if found is None:
            found = demons.Execute(a, b)
        else:
            finer = sitk.Resample(found, a, useNearestNeighborExtrapolator=True)
            found = demons.Execute(a, b, finer)
    # vectors along x, y, z = w, h, d
    u = torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(found)[..., ::-1]))
    u = u.movedim(-1, 0).float()
    length = u.square().sum(0, keepdim=True).sqrt()
    return u * (limit_mm / length.clamp(min=limit_mm))


def _image(x: Tensor, spacing_mm: tuple[float, float, float]) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(x.contiguous().numpy())
    image.SetSpacing(spacing_mm[::-1])
    return image
