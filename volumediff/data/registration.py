r"""Which affine map takes one volume onto another: the one that maximises mutual information,

.. math:: \hat T = \arg\max_T \; I\bigl(r(y),\, x(T^{-1} y)\bigr),

over the voxels y of the reference r that show its object. Contrasts may differ, so a FLAIR is
aligned with a T1 template as well as a T1 is.

The search goes from coarse to fine (8, 4, 2 mm). A volume with skull and neck has its centre of
mass elsewhere than a template without, so the coarsest level starts from several places and keeps
the best. One thread and a sampling on a fixed lattice make equal inputs give equal bytes.

References:
    Mattes et al. (2003), PET-CT image registration in the chest using free-form deformations
    Jenkinson et al. (2002), Improved optimization for the robust and accurate linear registration
        and motion correction of brain images (coarse-to-fine search with several starts)
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.grid import Grid
from volumediff.data.itk import matrix_of, to_itk, transform_of
from volumediff.data.templates import coarsened
from volumediff.errors import DataError

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["Scan", "align_affine", "align_rigid", "mutual_information"]

LEVELS_MM = (8.0, 4.0, 2.0)
BINS = 32
STEPS = 60  # of the optimiser; it converges in 10 to 30
# Voxels that the metric looks at per level; 60 000 at 2 mm is every fourth one of a brain.
SAMPLES = 60_000
SEED = 1  # of the jitter of ITK's sampling lattice
# A skull-stripped volume ends at its brain: the metric sees some of the background around it.
RIM_MM = 6.0
# Where the field of view ends at the object, background is added, or it would not be seen.
PAD_MM = 16.0
# Heads without neck are about this high; a template's centre of mass is compared with theirs.
HEAD_MM = 160.0
# Starts about the left-right axis, along which heads are tilted most, in degrees.
PITCHES = (-20.0, 0.0, 20.0)
# Bright fat, vessels and metal would take most of the bins.
CLIP = (0.5, 99.5)


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume to be registered.

    Arguments:
        x: intensities
        object: its foreground
        grid: canonical
    """

    x: Float[np.ndarray, "d h w"]
    object: Bool[np.ndarray, "d h w"]
    grid: Grid

    def at(self, spacing_mm: float) -> "Scan":
        """The same at a coarser spacing; axes that are coarser already stay."""
        d, h, w = (max(s, spacing_mm) for s in self.grid.spacing_mm)
        x, grid = coarsened(self.x, self.grid, spacing_mm=(d, h, w))
        share, _ = coarsened(self.object.astype(np.float32), self.grid, spacing_mm=(d, h, w))
        return Scan(x, share >= 0.5, grid)

    def masked(self) -> "Scan":
        """The object alone, with background around it."""
        low = float(self.x[self.object].min())
        x = np.where(self.object, self.x, np.float32(min(low, 0.0)))
        pad = [int(np.ceil(PAD_MM / s)) for s in self.grid.spacing_mm]
        widths = [(p, p) for p in pad]
        affine = self.grid.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ pad
        d, h, w = (n + 2 * p for n, p in zip(self.grid.shape, pad, strict=True))
        padded = np.pad(x, widths, constant_values=min(low, 0.0))
        return Scan(padded, np.pad(self.object, widths), Grid((d, h, w), affine))

    def clipped(self) -> "Scan":
        """Without the extremes of the object's intensities."""
        low, high = np.percentile(self.x[self.object], CLIP).astype(np.float32)
        floor = min(low, self.x.min())  # the background stays apart from the object
        return Scan(np.clip(self.x, floor, high), self.object, self.grid)

    def centre_mm(self) -> Float[np.ndarray, "3"]:
        """Centre of mass of the object."""
        index = np.argwhere(self.object).mean(axis=0)
        return self.grid.affine[:3, :3] @ index + self.grid.affine[:3, 3]

    def head_centre_mm(self) -> Float[np.ndarray, "3"]:
        """Centre of mass of the object's upper part, without neck and shoulders."""
        points = np.argwhere(self.object) @ self.grid.affine[:3, :3].T + self.grid.affine[:3, 3]
        top = np.percentile(points[:, 2], 99.9)
        return points[points[:, 2] > top - HEAD_MM].mean(axis=0)


def align_affine(moving: Scan, reference: Scan, *, skull: bool) -> Float[np.ndarray, "4 4"]:
    """The affine map from the millimetres of `moving` to those of `reference`.

    Arguments:
        moving: a scan; its object is its foreground
        reference: a template; its object is what is compared
        skull: whether `moving` shows more than the object of the reference, such as the skull
            around the brain; else the background around the object is compared too. The first
            is the harder problem and can end in a wrong optimum: give a mask where there is one

    Raises:
        DataError: one of them is empty, or they never overlap
    """
    moving, reference = _usable(moving, reference)
    if not skull:
        moving, reference = moving.masked(), reference.masked()
    rim = 0.0 if skull else RIM_MM
    finest = max(LEVELS_MM[-1], min(reference.grid.spacing_mm))
    levels = [s for s in LEVELS_MM if s > finest] + [finest]
    coarse = _Pair.at(moving, reference, levels[0], rim)
    centre = reference.centre_mm()
    matrix = _best(coarse, _starts(moving, reference), centre)
    for spacing in levels:
        pair = _Pair.at(moving, reference, spacing, rim)
        matrix, _ = pair.refined(matrix, centre, rigid=False)
    return np.linalg.inv(matrix)


def align_rigid(moving: Scan, reference: Scan) -> Float[np.ndarray, "4 4"]:
    """The rotation and shift from `moving` to `reference`, both of one examination.

    Scanner coordinates say where both lie, so the search starts there and stays close.
    """
    moving, reference = _usable(moving, reference)
    matrix = np.eye(4)
    for spacing in LEVELS_MM[1:]:
        pair = _Pair.at(moving, reference, spacing, 0.0)
        matrix, _ = pair.refined(matrix, reference.centre_mm(), rigid=True)
    return np.linalg.inv(matrix)


def _best(
    coarse: "_Pair", starts: list[Float[np.ndarray, "4 4"]], centre: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """The start that leads to the highest mutual information; some may lead nowhere."""
    found, refused = [], DataError("has no start of its registration.")
    for start in starts:
        try:
            found.append(coarse.refined(start, centre, rigid=True))
        except DataError as error:
            refused = error
    if not found:
        raise refused
    return max(found, key=lambda pair: pair[1])[0]


def _usable(*scans: Scan) -> list[Scan]:
    for scan in scans:
        if not scan.object.any():
            raise DataError("shows no foreground to register; check that it is not empty.")
    return [scan.clipped() for scan in scans]


def _starts(moving: Scan, reference: Scan) -> list[Float[np.ndarray, "4 4"]]:
    """Maps from reference to moving: two ways to match the centres, three pitches each."""
    centre, goals = reference.centre_mm(), [moving.centre_mm()]
    head = moving.head_centre_mm()
    if np.linalg.norm(head - goals[0]) > LEVELS_MM[0]:
        goals.append(head)
    starts = []
    for goal, pitch in product(goals, PITCHES):
        a = np.radians(pitch)
        turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        start = np.eye(4)
        start[:3, :3], start[:3, 3] = turn, goal - turn @ centre
        starts.append(start)
    return starts


@dataclass(frozen=True, eq=False)
class _Pair:
    """Both volumes at one level, as ITK has them."""

    moving: "SimpleITK.Image"
    fixed: "SimpleITK.Image"
    mask: "SimpleITK.Image"
    share: float  # of the fixed voxels that are sampled
    spacing_mm: float

    @classmethod
    def at(cls, moving: Scan, reference: Scan, spacing_mm: float, rim_mm: float) -> "_Pair":
        from scipy import ndimage

        moving, reference = moving.at(spacing_mm), reference.at(spacing_mm)
        mask = reference.object
        if rim_mm:
            away = ndimage.distance_transform_edt(~mask, sampling=reference.grid.spacing_mm)
            mask = away <= rim_mm
        return cls(
            to_itk(moving.x, moving.grid),
            to_itk(reference.x, reference.grid),
            to_itk(mask.astype(np.uint8), reference.grid),
            min(1.0, SAMPLES / max(int(mask.sum()), 1)),
            spacing_mm,
        )

    def refined(
        self,
        start: Float[np.ndarray, "4 4"],
        centre: Float[np.ndarray, "3"],
        *,
        rigid: bool,
    ) -> tuple[Float[np.ndarray, "4 4"], float]:
        """The best map from reference to moving close to `start`, and its mutual information."""
        import SimpleITK as sitk

        transform = transform_of(start, centre_mm=centre)
        if rigid:
            turn = sitk.Euler3DTransform()
            turn.SetCenter(transform.GetCenter())
            # rounding of the inverse must not look like a scale
            turn.SetMatrix(transform.GetMatrix(), 1e-6)
            turn.SetTranslation(transform.GetTranslation())
            transform = turn
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(self.mask)
        if self.share < 1:
            method.SetMetricSamplingStrategy(method.REGULAR)
            method.SetMetricSamplingPercentage(self.share, SEED)
        # A step must gain: without line search, steps of fixed length ran away to mirror images
        method.SetOptimizerAsConjugateGradientLineSearch(
            learningRate=1.0,
            numberOfIterations=STEPS,
            convergenceMinimumValue=1e-5,
            convergenceWindowSize=5,
            estimateLearningRate=method.EachIteration,
            maximumStepSizeInPhysicalUnits=self.spacing_mm / 2,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.fixed, self.moving)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise DataError(
                "cannot be registered: the volumes do not overlap; check that it shows the "
                f"template's object, and its affine (ITK: {reason})."
            ) from None
        return matrix_of(transform), -float(method.GetMetricValue())


def mutual_information(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    r"""Normalised mutual information of paired values, from 0 (independent) to 1 (a bijection),

    .. math:: 2\,\frac{H(a) + H(b) - H(a, b)}{H(a) + H(b)},

    over a histogram of 32 x 32 bins between the 0.5th and 99.5th percentiles.

    References:
        Studholme et al. (1999), An overlap invariant entropy measure of 3D medical image alignment
        (their measure is 1 / (1 - value / 2))
    """
    if a.size == 0:
        return 0.0
    codes = []
    for values in (a, b):
        low, high = np.percentile(values, CLIP)
        unit = (values - low) / max(float(high - low), 1e-12)
        codes.append(np.clip((unit * BINS).astype(np.int64), 0, BINS - 1))
    joint = np.bincount(codes[0] * BINS + codes[1], minlength=BINS**2).reshape(BINS, BINS)
    joint = joint / joint.sum()
    single = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
    return 2 * (single - _entropy(joint)) / single if single > 0 else 0.0


def _entropy(p: np.ndarray) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
