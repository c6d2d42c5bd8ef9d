"""Label maps of whole brains, aligned with the template that volumes are aligned with.

No image belongs to them. For the search of the affine map one is made of the tissues' usual
brightness in T1w; labels are then resampled through their shares, as all labels are.

References:
    Billot et al. (2023), SynthSeg, whose training label maps have FreeSurfer's numbers
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from volumediff.data.alignment_template import Template
from volumediff.data.freesurfer import Structure, structure
from volumediff.data.grid import Grid
from volumediff.data.layouts._files import volumes
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.registration import RegistrationVolume, align_affine
from volumediff.data.resampling import nearest_onto
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError

__all__ = ["find_label_maps", "prepare_label_map", "structures_of"]

# Signal by tissue of the image that is aligned: the order of T1w.
_BRIGHTNESS = {"csf": 0.2, "grey": 0.6, "deep": 0.75, "white": 0.9}


def find_label_maps(folder: Path) -> list[Path]:
    """All NIfTI files of a folder, by name.

    Raises:
        DataError: there are none
    """
    found = volumes(folder)
    if not found:
        raise DataError(
            f"{folder}: expected label maps (*.nii.gz with FreeSurfer's numbers), found none."
        )
    return found


def structures_of(numbers: Int[np.ndarray, "n"], where: Path | str) -> list[Structure | None]:
    """The structure of each number; None for background and what is outside of the brain.

    Raises:
        DataError: a number is not one of FreeSurfer's, or no brain is there
    """
    found = []
    for number in numbers.tolist():
        try:
            found.append(structure(number))
        except KeyError:
            raise DataError(
                f"{where}: label {number} is none of FreeSurfer's numbers; map it to one of them, "
                "or to 0."
            ) from None
    if not any(found):
        raise DataError(
            f"{where}: expected labels of a brain with FreeSurfer's numbers, got none."
        )
    return found


def prepare_label_map(
    path: Path, template: Template, preprocessing: Preprocessing
) -> tuple[dict[str, np.ndarray], tuple[float, float, float], Grid]:
    """Indices of the structures on the grid of a run, their numbers and the brain.

    `structures` (1, d, h, w) counts into `numbers`, whose first is 0, the background.

    Arguments:
        path: a label map with FreeSurfer's numbers
        template: what the volumes of the run are aligned with
        preprocessing: spacing and shape of the run

    Returns:
        arrays, the voxel size along d, h, w, and the grid

    Raises:
        DataError: the file is refused, has other numbers, or cannot be aligned
    """
    volume = read(path)
    whole = np.rint(volume.array[0]).astype(np.int64)
    if not np.array_equal(whole, volume.array[0]):
        raise DataError(f"{path}: expected whole numbers, as label maps have; give a label map.")
    numbers = np.unique(np.append(whole, 0))
    if len(numbers) > 256 or numbers[0] < 0:
        raise DataError(f"{path}: expected up to 256 labels of at least 0, got {len(numbers)}.")
    structures = structures_of(numbers, path)
    indices = np.searchsorted(numbers, whole).astype(np.uint8)
    table = [0.0 if s is None else _BRIGHTNESS[s.tissue] for s in structures]
    brightness = np.array(table, np.float32)
    image = brightness[indices]
    moving = RegistrationVolume(image, image > 0, volume.grid)
    reference = RegistrationVolume(template.x, template.object, template.grid)
    matrix = align_affine(moving, reference, skull=False)
    onto_template = Grid(volume.grid.shape, matrix @ volume.grid.affine)
    found = nearest_onto(torch.from_numpy(indices)[None], onto_template, template.grid)
    aligned = found[0].numpy()
    grid = template.grid
    label = Volume(aligned[None], grid.affine, "label", grid, path)
    drawn = Volume(
        np.array(brightness, np.float32)[aligned][None], grid.affine, "image", grid, path
    )
    prepared = preprocessing.prepare_volumes([drawn], label)
    assert prepared.label is not None, "given"
    known = np.array([s is not None for s in structures])
    arrays = {
        "structures": prepared.label.numpy(),
        "numbers": numbers,
        "foreground": known[prepared.label.numpy()],
    }
    return arrays, prepared.spacing_mm, prepared.record.grid
