"""Images of any library as volumes: paths, nibabel, (array, affine), TorchIO, SimpleITK, MONAI.

A library is imported only where an image of its own is given. World axes of SimpleITK run to L, P,
S and its arrays are indexed z, y, x; all others here are RAS and i, j, k.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from volumediff.data.cases import patient_of, safe_id
from volumediff.data.files import contents, digests, stem_of
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.single_case import case_of_file
from volumediff.data.survey import AUTO, Spec
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError, UsageError
from volumediff.inference.localize_case import REGION, SALIENCY
from volumediff.runs.inputs import Examination, examination_of, find_inputs

if TYPE_CHECKING:
    from volumediff.inference.fill import Filling
    from volumediff.runs.trained import Trained

__all__ = ["examined", "volume_of"]

Kind = Literal["image", "label"]
KINDS = (
    "expected a path, an image of nibabel, TorchIO, SimpleITK or MONAI, a Volume, "
    "(array, affine), or a list of these, one per channel"
)
# From RAS to the LPS of ITK and back.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Given:
    """One image with what records say of it."""

    volume: Volume
    file: str
    digest: str


def examined(
    trained: "Trained",
    image: Any,
    *,
    channels: Sequence[str] | None = None,
    of: Sequence[int] | None = None,
    fills: "Filling | None" = None,
    attributes: Mapping[str, str | float] | None = None,
    region: Any = None,
    saliency: Any = None,
    layout: Spec = AUTO,
) -> Examination:
    """What was given, as an examination that a run works on.

    Arguments:
        trained: the run
        image: see `KINDS`
        channels: names of the images; None takes those of the run
        of: numbers of the run's channels that the images are; None for all
        fills: draws channels that the images lack: then those that it needs will do
        attributes: age and the like, in place of what lies beside a file
        region: mask of what is to be redrawn, one image
        saliency: map in place of the method's first pass, one image
        layout: of a folder

    Raises:
        UsageError: no image, several cases, or other channels than the run's
        DataError: a file or image is refused
    """
    policy = trained.preprocessing.policy
    if fills is None:
        names = trained.image_names(channels, of=of)
    else:
        names = _given_names(image, channels, fills)
    if isinstance(image, str | Path):
        found = _case(Path(image), names, policy, layout, fills)
    else:
        found = _in_memory(image, names, policy)
    more: dict[str, Any] = {} if attributes is None else {"attributes": dict(attributes)}
    further = dict(found.digests)
    if region is not None:
        given = _given(region, "label", replace(policy, labels=None))
        more["region"], further[REGION] = given.volume, given.digest
    if saliency is not None:
        given = _given(saliency, "image", policy)
        more["saliency"], further[SALIENCY] = given.volume, given.digest
    return replace(found, digests=further, **more)


def volume_of(image: Any, *, kind: Kind = "image", policy: ReadPolicy | None = None) -> Volume:
    """One image of any library, or one file, as a volume.

    Raises:
        UsageError: no image
        DataError: an image that is refused
    """
    return _given(image, kind, policy or ReadPolicy()).volume


def _given_names(image: Any, channels: Sequence[str] | None, fills: "Filling") -> tuple[str, ...]:
    """Names of images that may lack what is filled in: as said, or by their number."""
    if channels is not None:
        if tuple(channels) not in (fills.names, fills.needed):
            raise UsageError(
                f"channels {','.join(channels)}: expected {','.join(fills.names)}, or "
                f"{','.join(fills.needed)}, of which the others are drawn."
            )
        return tuple(channels)
    several = isinstance(image, list | tuple) and not _is_pair(image)
    count = len(image) if several else 1
    return fills.needed if count != len(fills.names) else fills.names


def _case(
    path: Path,
    names: Sequence[str] | None,
    policy: ReadPolicy,
    layout: Spec,
    fills: "Filling | None",
) -> Examination:
    if fills is None:
        cases, problems = find_inputs(path, channels=names, layout=layout)
    else:
        cases, problems = fills.find(path, layout=layout)
    if len(cases) + len(problems) > 1:
        every = ", ".join([*(case.id for case in cases[:3]), "..."])
        raise UsageError(
            f"{path}: expected one case, found {len(cases) + len(problems)} ({every}); give one "
            "of them, or the folder to localize_files or segment_files."
        )
    (case,) = cases
    return examination_of(case, digests(case), policy=policy)


def _in_memory(image: Any, names: Sequence[str] | None, policy: ReadPolicy) -> Examination:
    several = isinstance(image, list | tuple) and not _is_pair(image)
    if several and not image:
        raise UsageError(f"image: {KINDS}, got none.")
    given = [_given(one, "image", policy) for one in (image if several else [image])]
    if names is None or len(names) != len(given):
        words = [f"image-{i + 1}" for i in range(len(given))]
        names = words if len(given) > 1 else ["image"]
    first = image[0] if several else image
    if isinstance(first, str | Path):
        of = case_of_file(Path(first))
        name, patient = of.id, of.patient
    else:
        name, patient = safe_id(given[0].file), patient_of(given[0].file)
    return Examination(
        id=name,
        patient=patient,
        images={n: g.volume for n, g in zip(names, given, strict=True)},
        files={n: g.file for n, g in zip(names, given, strict=True)},
        digests={n: g.digest for n, g in zip(names, given, strict=True)},
    )


def _given(image: Any, kind: Kind, policy: ReadPolicy) -> _Given:
    if isinstance(image, str | Path):
        return _file(Path(image), kind, policy)
    volume = image if isinstance(image, Volume) else _converted(image, kind, policy)
    # the voxels along R, A, S alone: the same image by another library is the same image
    shape = repr(volume.array.shape).encode()
    digest = hashlib.sha256(shape + np.ascontiguousarray(volume.array).tobytes())
    return _Given(volume, "image", digest.hexdigest())


def _file(path: Path, kind: Kind, policy: ReadPolicy) -> _Given:
    if not path.exists():
        raise UsageError(f"{path}: expected a volume, nothing there; correct the path.")
    digest = b"".join(contents(path))
    whole = hashlib.sha256(digest).digest() if path.is_dir() else digest
    return _Given(read(path, kind=kind, policy=policy), stem_of(path), whole.hex())


def _is_pair(image: Sequence[Any]) -> bool:
    """Whether this is (array, affine) and not two channels: an array alone is no channel."""
    pair = isinstance(image, tuple) and len(image) == 2
    return pair and _library(image[0]) in ("numpy", "torch")


def _library(image: Any) -> str:
    """The package that an image is of; of a sub-class of a user, that of its base."""
    roots = [base.__module__.partition(".")[0] for base in type(image).__mro__]
    for known in ("nibabel", "torchio", "SimpleITK", "monai", "numpy", "torch"):
        if known in roots:
            return known
    return roots[0]


def _converted(image: Any, kind: Kind, policy: ReadPolicy) -> Volume:
    if isinstance(image, tuple) and _is_pair(image):
        array, affine = image
        if np.ndim(array) != 3:
            raise DataError(
                f"array: expected (i, j, k), got the shape {tuple(np.shape(array))}; stack slices "
                "along a third axis, and give several channels as a list of (array, affine)."
            )
        return Volume.from_array(_numpy(array), _numpy(affine), kind=kind, policy=policy)
    convert = {
        "nibabel": _of_nibabel,
        "torchio": _of_torchio,
        "SimpleITK": _of_itk,
        "monai": _of_monai,
    }.get(_library(image))
    if convert is not None:
        return convert(image, kind, policy)
    if _library(image) in ("numpy", "torch"):
        raise UsageError(
            "image: an array alone does not say how it lies in the patient; give (array, affine), "
            "with the affine from voxels to RAS millimetres."
        )
    raise UsageError(f"image: {KINDS}; got {type(image).__name__}.")


def _numpy(array: Any) -> np.ndarray:
    """An array of numpy or torch as one of numpy, in host memory."""
    if _library(array) in ("torch", "monai"):
        return np.asarray(array.detach().cpu())
    return np.asarray(array)


def _of_nibabel(image: Any, kind: Kind, policy: ReadPolicy) -> Volume:
    import nibabel as nib

    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise UsageError(f"image: {KINDS}; got nibabel's {type(image).__name__}.")
    return Volume.from_nibabel(image, kind=kind, policy=policy)


def _of_torchio(image: Any, kind: Kind, policy: ReadPolicy) -> Volume:
    import torchio

    if not isinstance(image, torchio.Image):
        raise UsageError(
            f"image: expected one image of TorchIO, got {type(image).__name__}; give a list of "
            "its images, one per channel."
        )
    array = _numpy(image.data)  # (c, i, j, k)
    name = "TorchIO image"
    return Volume.from_array(array, image.affine, kind=kind, policy=policy, name=name)


def _of_itk(image: Any, kind: Kind, policy: ReadPolicy) -> Volume:
    import SimpleITK as sitk

    name = "SimpleITK image"
    if not isinstance(image, sitk.Image):
        raise UsageError(f"image: {KINDS}; got SimpleITK's {type(image).__name__}.")
    if image.GetDimension() != 3:
        raise DataError(
            f"{name}: expected 3 dimensions, got {image.GetDimension()}; stack slices with "
            "JoinSeries, and give the frames of a series one by one."
        )
    array = sitk.GetArrayFromImage(image)  # (k, j, i), or (k, j, i, c)
    several = array.ndim == 4
    array = array.transpose(3, 2, 1, 0) if several else array.transpose(2, 1, 0)
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return Volume.from_array(array, FLIP @ lps, kind=kind, policy=policy, name=name)


def _of_monai(image: Any, kind: Kind, policy: ReadPolicy) -> Volume:
    from monai.data import MetaTensor

    name = "MetaTensor"
    if not isinstance(image, MetaTensor):
        raise UsageError(f"image: {KINDS}; got MONAI's {type(image).__name__}.")
    affine = _numpy(image.affine)
    if str(image.meta.get("space", "RAS")).upper() == "LPS":
        affine = FLIP @ affine
    # (c, i, j, k), or (i, j, k) before a channel was added
    array = _numpy(image.as_tensor())
    return Volume.from_array(array, affine, kind=kind, policy=policy, name=name)
