"""What a viewer shows of one case: volumes on one grid, outlines, labels, places to go to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8

from volumediff.colours import HEAT

__all__ = ["NamedPlace", "OutlinedMask", "Scene", "ScoreMap", "limits", "thinned"]

# Longest side in a page: 128³ voxels per volume; larger ones are shown at every n-th voxel.
LONGEST = 128
# The viewer's white and the top of a colour scale: the few brightest voxels would make everything
# else dark.
WHITE = 99.8

Volume = Float[np.ndarray, "d h w"]
Labels = UInt8[np.ndarray, "d h w"]


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Values that are shown in colours over an image.

    Arguments:
        array: values
        unit: of the values, such as "z" or "probability"; it stands beside the colour bar
        colours: the scale
    """

    array: Volume
    unit: str = "score"
    colours: str = HEAT


@dataclass(frozen=True, eq=False)
class OutlinedMask:
    """A mask, of which the edge is drawn.

    Arguments:
        mask: where it is; of a label map every label gets its own edge
        colour: CSS
        inside: what the read-out says of a voxel in it
        shown: whether it is drawn from the beginning
    """

    mask: Bool[np.ndarray, "d h w"] | Labels
    colour: str
    inside: str
    shown: bool = True


@dataclass(frozen=True)
class NamedPlace:
    """A place that the list of the viewer jumps to.

    Arguments:
        name: such as the number of a finding
        at_mm: RAS millimetres
        text: what there is to say about it
    """

    name: str
    at_mm: tuple[float, float, float]
    text: str = ""


@dataclass(frozen=True, eq=False)
class Scene:
    """One case to look at, all arrays on one grid with axes along R, A, S.

    Arguments:
        title: of the case
        images: grey images by name, such as channels and the pseudo-healthy volume; the first is
            shown first
        maps: score maps by name; the first is shown first
        outlines: masks by name, the first is drawn last
        labels: label maps by name, such as the truth, a method, or its samples
        label_names: label value -> what it is
        spacing_mm: voxel size
        affine: voxel index to RAS millimetres; None where it is not known
        start: the voxel to look at first
        places: where the list jumps to
        note: one line under the slices
        one_window: whether the images share black and white, being of one scale of intensities
    """

    title: str
    images: Mapping[str, Volume]
    maps: Mapping[str, ScoreMap] = field(default_factory=dict)
    outlines: Mapping[str, OutlinedMask] = field(default_factory=dict)
    labels: Mapping[str, Labels] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    affine: Float[np.ndarray, "4 4"] | None = None
    start: tuple[int, int, int] = (0, 0, 0)
    places: Sequence[NamedPlace] = ()
    note: str = ""
    one_window: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of every array."""
        d, h, w = next(iter(self.images.values())).shape
        return d, h, w

    def thinned(self) -> tuple["Scene", tuple[int, int, int]]:
        """The scene at every n-th voxel, so that no side is longer than `LONGEST`, and the n."""
        d, h, w = (-(-n // LONGEST) for n in self.shape)
        if (d, h, w) == (1, 1, 1):
            return self, (1, 1, 1)
        affine = None
        if self.affine is not None:
            affine = self.affine.copy()
            affine[:3, :3] = affine[:3, :3] * (d, h, w)
        a, b, c = self.spacing_mm
        i, j, k = self.start
        small = replace(
            self,
            images={name: thinned(x) for name, x in self.images.items()},
            maps={n: replace(m, array=thinned(m.array)) for n, m in self.maps.items()},
            outlines={n: replace(o, mask=thinned(o.mask)) for n, o in self.outlines.items()},
            labels={name: thinned(x) for name, x in self.labels.items()},
            spacing_mm=(a * d, b * h, c * w),
            affine=affine,
            start=(i // d, j // h, k // w),
        )
        return small, (d, h, w)


def thinned(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel along each axis, so that no side is longer than `LONGEST`."""
    d, h, w = (-(-n // LONGEST) for n in array.shape)
    return array[::d, ::h, ::w]


def limits(array: np.ndarray, *, floor: float | None = None) -> tuple[float, float]:
    """What becomes black and white."""
    low = float(array.min()) if floor is None else floor
    values = array[array > low]
    high = float(np.percentile(values, WHITE)) if values.size else low + 1.0
    return low, high
