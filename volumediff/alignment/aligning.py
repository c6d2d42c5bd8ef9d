r"""Alignment of one case, from the files of a scanner to the grid of a template.

    image ─ read ─ N4 ─▶ first channel ─ affine ─▶ T ─┐
    other channels ─ rigid to the first ─▶ T R ───────┴─ one resampling each ─▶ template grid

Channels are treated one by one: each has a bias field and a background of its own, and one that
N4 cannot take, such as a map with negative values, stays as it is, which is said. The first
channel alone is registered with the template.

Where the brain is, a mask file says, or the template's brain brought back by T and fitted to the
head (`data.brain_extraction`), or the volume itself, which then shows nothing else. T is found on
the first channel after a bias correction over its foreground; what is written is corrected inside
the brain mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import Template
from volumediff.data.bias_field import bias_field
from volumediff.data.brain_extraction import extracted_brain
from volumediff.data.cases import Case
from volumediff.data.foreground import background_of, foreground
from volumediff.data.grid import Grid, agree
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.registration import RegistrationVolume, align_affine, align_rigid
from volumediff.data.remarks import Remark
from volumediff.data.truth import label_map
from volumediff.data.volume import Volume, check_grids, read
from volumediff.errors import DataError

__all__ = ["QUANTITATIVE", "Aligned", "BrainMask", "Steps", "align_case", "align_volumes"]

# Channels whose numbers have a unit: dividing by a field would change what they say.
QUANTITATIVE = frozenset("adc cbf cbv ct cta cbct pet suv t1map t2map".split())
# Scanner coordinates of one examination agree up to the patient's motion between two scans.
MOST_MOTION_MM = 30.0
# Ventricles and sulci, dark in some contrasts, are up to about twice this wide.
FLUID_MM = 8.0


class BrainMask(StrEnum):
    """Where the object that is aligned comes from."""

    given = "given"
    template = "template"
    none = "none"


@dataclass(frozen=True)
class Steps:
    """What is done to a case.

    Arguments:
        mask: `given` reads the mask beside the images; `template` brings the template's object
            back, for volumes with skull; `none` is for volumes that show the object alone
        strip: whether everything outside the mask is emptied
        n4: whether the bias field is divided out
        read: decisions on ambiguous files
    """

    mask: BrainMask = BrainMask.template
    strip: bool = False
    n4: bool = True
    read: ReadPolicy = field(default_factory=ReadPolicy)


@dataclass(frozen=True, eq=False)
class Aligned:
    """A case on the template's grid.

    Arguments:
        images: channel -> corrected intensities
        label: of the case, if it has one
        brain: the mask
        alignments: channel -> its way to the template; `label` and the mask have those of
            `label_of` and of the first channel
        label_of: channel on whose grid the label was drawn
        bias: channel -> smallest and largest value of its field in the mask; None: not corrected
        head: voxels of the template's grid that show the first channel's foreground, dark fluid
            in it included
        before: the first channel on the template's grid if nothing had been registered
        native, native_brain: the first channel and the mask on its own voxels
        findings: what was noticed on the way
        readers: label maps of several readers, by name
        associated: label of associated changes, if the case has one
    """

    images: Mapping[str, Float[np.ndarray, "d h w"]]
    label: UInt8[np.ndarray, "d h w"] | None
    brain: Bool[np.ndarray, "d h w"]
    alignments: Mapping[str, Alignment]
    label_of: str | None
    bias: Mapping[str, tuple[float, float] | None]
    head: Bool[np.ndarray, "d h w"]
    before: Float[np.ndarray, "d h w"]
    native: Volume
    native_brain: Bool[np.ndarray, "a b c"]
    findings: list[Remark] = field(default_factory=list)
    readers: Mapping[str, UInt8[np.ndarray, "d h w"]] = field(default_factory=dict)
    associated: UInt8[np.ndarray, "d h w"] | None = None


def align_case(
    case: Case, mask: Path | None, *, template: Template, target: Template, steps: Steps
) -> Aligned:
    """Reads and aligns a case.

    Arguments:
        case: with at least one image
        mask: of the brain, on the grid of the first image; for `BrainMask.given`
        template: what it is registered with, as sharp as it is
        target: the same on the grid of the outputs
        steps: what is done

    Raises:
        DataError: a file is refused, or cannot be corrected or registered
    """
    volumes = {name: read(path, policy=steps.read) for name, path in case.images.items()}
    given = None
    if steps.mask is BrainMask.given:
        given = _given(mask, next(iter(volumes.values())), steps.read)
    found = align_volumes(volumes, given, template=template, target=target, steps=steps)
    label, label_of = None, None
    if case.label is not None:
        label, label_of = _label(case.label, volumes, found.alignments, steps.read)
    readers = {}
    for reader, path in case.labels.items():
        readers[reader], channel = _label(path, volumes, found.alignments, steps.read)
        label_of = label_of or channel
    associated = None
    if case.associated is not None:
        associated, channel = _label(case.associated, volumes, found.alignments, steps.read)
        label_of = label_of or channel
    return replace(found, label=label, label_of=label_of, readers=readers, associated=associated)


def align_volumes(
    volumes: Mapping[str, Volume],
    given: Bool[np.ndarray, "d h w"] | None,
    *,
    template: Template,
    target: Template,
    steps: Steps,
) -> Aligned:
    """Aligns images that are in memory.

    Arguments:
        volumes: channel -> one volume, at least one of them
        given: mask of the brain on the grid of the first; for `BrainMask.given`
        template, target, steps: as for `align_case`

    Raises:
        DataError: an image cannot be corrected or registered
    """
    findings = [f for v in volumes.values() for f in _named(_single(v))]
    name, first = next(iter(volumes.items()))
    whole = foreground(first.array[0], "auto")
    matrix = _to_template(first, given, whole, template, steps, name=name)
    leading = Alignment(first.native, target.grid, matrix)
    brain = _brain(leading, template, first, given, whole, steps)
    alignments = _alignments(volumes, brain, leading)
    images, bias, empty = {}, {}, {}
    for channel, volume in volumes.items():
        try:
            x, bias[channel] = _corrected(volume, brain, first.grid, channel, steps)
        except DataError as error:
            if volume is first:
                raise
            x, bias[channel] = volume.array[0], None
            findings.append(Remark("warning", "not_corrected", f"{error} It stays as it is."))
        empty[channel] = _background(volume)
        images[channel] = alignments[channel].apply(x[None], fill=empty[channel])[0]
    aligned = leading.apply_labels(brain[None].astype(np.uint8))[0] > 0
    if steps.strip:
        for channel, x in images.items():
            x[~aligned] = empty[channel]
    unmoved = Alignment(first.native, target.grid, np.eye(4))
    return Aligned(
        images,
        None,
        aligned,
        alignments,
        None,
        bias,
        _closed(leading.apply_labels(whole[None].astype(np.uint8))[0] > 0, target.grid),
        unmoved.apply(first.array, fill=_background(first))[0],
        first,
        brain,
        findings,
    )


def _closed(mask: Bool[np.ndarray, "d h w"], grid: Grid) -> Bool[np.ndarray, "d h w"]:
    """Without dark fluid's holes and sulci, which are seen, too."""
    from scipy import ndimage

    if not mask.any():
        return mask
    spacing = grid.spacing_mm
    wide = ndimage.distance_transform_edt(~mask, sampling=spacing) <= FLUID_MM
    if wide.all():
        return wide
    closed = ndimage.distance_transform_edt(wide, sampling=spacing) > FLUID_MM
    return ndimage.binary_fill_holes(closed | mask)


def _background(volume: Volume) -> float:
    """What is around the object: the value that most of the faces have, else the smallest."""
    found = background_of(volume.array[0])
    return min(0.0, float(volume.array.min())) if found is None else found


def _single(volume: Volume) -> Volume:
    if len(volume.array) != 1:
        raise DataError(
            f"{volume.path}: expected one volume, got {len(volume.array)} frames; give one file "
            "per channel."
        )
    return volume


def _named(volume: Volume) -> list[Remark]:
    name = volume.path.name if volume.path else "volume"
    return [Remark(f.severity, f.code, f"{name}: {f.message}") for f in volume.findings]


def _given(mask: Path | None, first: Volume, policy: ReadPolicy) -> Bool[np.ndarray, "d h w"]:
    if mask is None:
        raise DataError(
            "has no mask of the brain beside its images; add <case>_brainmask.nii.gz, or choose "
            "the mask of the template."
        )
    volume = read(mask, kind="label", policy=policy)
    check_grids(first, volume)
    if not volume.array.any():
        raise DataError(f"{mask}: the mask is empty.")
    return volume.array[0] > 0


def _to_template(
    first: Volume,
    given: Bool[np.ndarray, "d h w"] | None,
    whole: Bool[np.ndarray, "d h w"],
    template: Template,
    steps: Steps,
    *,
    name: str,
) -> Float[np.ndarray, "4 4"]:
    """T of the first channel, without its bias."""
    shown = whole if given is None else given
    x, _ = _corrected(first, shown, first.grid, name, steps)
    reference = RegistrationVolume(template.x, template.object, template.grid)
    skull = steps.mask is BrainMask.template
    return align_affine(RegistrationVolume(x, shown, first.grid), reference, skull=skull)


def _brain(
    leading: Alignment,
    template: Template,
    first: Volume,
    given: Bool[np.ndarray, "d h w"] | None,
    whole: Bool[np.ndarray, "d h w"],
    steps: Steps,
) -> Bool[np.ndarray, "d h w"]:
    if given is not None:
        return given
    if steps.mask is BrainMask.none:
        return whole
    brain = extracted_brain(first.array[0], first.grid, matrix=leading.matrix, template=template)
    if not brain.any():
        raise DataError("the template's brain is mapped outside the image; check its affine.")
    return brain


def _alignments(
    volumes: Mapping[str, Volume], brain: Bool[np.ndarray, "d h w"], leading: Alignment
) -> dict[str, Alignment]:
    """Channels on one grid lie on each other; those on another are registered to the first."""
    name, first = next(iter(volumes.items()))
    reference = RegistrationVolume(first.array[0], brain, first.grid)
    known = [(first.grid, np.eye(4))]
    found = {name: leading}
    for channel, volume in list(volumes.items())[1:]:
        rigid = next((m for grid, m in known if agree(grid, volume.grid) is None), None)
        if rigid is None:
            shown = foreground(volume.array[0], "auto")
            try:
                rigid = align_rigid(
                    RegistrationVolume(volume.array[0], shown, volume.grid), reference
                )
            except DataError as error:
                raise DataError(f"channel {channel} {error}") from None
            _near(rigid, reference.centre_mm(), channel=channel, first=name)
            known.append((volume.grid, rigid))
        found[channel] = Alignment(volume.native, leading.template, leading.matrix @ rigid)
    return found


def _near(rigid: np.ndarray, centre: np.ndarray, *, channel: str, first: str) -> None:
    distance = float(np.linalg.norm(rigid[:3, :3] @ centre + rigid[:3, 3] - centre))
    if distance > MOST_MOTION_MM:
        raise DataError(
            f"channel {channel}: registration moves it by {distance:.0f} mm against {first}; "
            "check that both belong to one examination, or leave it out of the channels."
        )


def _corrected(
    volume: Volume, brain: Bool[np.ndarray, "..."], grid: Grid, channel: str, steps: Steps
) -> tuple[Float[np.ndarray, "d h w"], tuple[float, float] | None]:
    """A channel without its bias field, and the field's range inside the mask."""
    x = volume.array[0]
    if not steps.n4 or channel.lower() in QUANTITATIVE:
        return x, None
    if agree(grid, volume.grid) is None:
        mask = brain
    else:
        same_world = Alignment(grid_as_native(grid), volume.grid, np.eye(4))
        mask = same_world.apply_labels(brain[None].astype(np.uint8))[0] > 0
    try:
        b = bias_field(x, volume.grid, mask=mask)
    except DataError as error:
        raise DataError(f"channel {channel}: {error}") from None
    return x / b, (float(b[mask].min()), float(b[mask].max()))


def grid_as_native(grid: Grid) -> Grid:
    """A canonical grid is its own file grid."""
    return Grid(grid.shape, grid.affine)


def _label(
    path: Path,
    volumes: Mapping[str, Volume],
    alignments: Mapping[str, Alignment],
    policy: ReadPolicy,
) -> tuple[UInt8[np.ndarray, "d h w"], str]:
    """A label map on the template's grid, and the channel on whose grid it was drawn."""
    label = label_map(path, policy)
    for channel, volume in volumes.items():
        if agree(volume.grid, label.grid) is None:
            return alignments[channel].apply_labels(label.array)[0], channel
    raise DataError(
        f"{path}: lies on the grid of no channel ({', '.join(volumes)}); add the image that it "
        "was drawn on to the channels, or resample it."
    )
