r"""Which affine map takes one volume onto another: the one that maximises mutual information,

.. math:: \hat T = \arg\max_T \; I\bigl(r(y),\, x(T^{-1} y)\bigr),

over the voxels y of the reference r that show its object, with a rim of background where x shows
nothing else. Contrasts may differ, so a FLAIR is aligned with a T1 template as well as a T1 is.

The search goes from coarse to fine (8, 4, 2 mm) by L-BFGS. A volume with skull and neck has its
centre of mass elsewhere than a template without, so the coarsest level starts from several places
and keeps the best. Scales and shears are bounded: a search that runs away ends at a bound, outside
of what the check of the quality accepts.

Both volumes are compared at one sharpness (`volumediff.data.sharpness`): the blurrier one would
come out too large, by 1 to 4 % of its volume at voxels of 2 to 4 mm. What is left, half a percent,
is the mask's: what its voxels leave of the object beyond them is lost.

References:
    Mattes et al. (2003), PET-CT image registration in the chest using free-form deformations
    Jenkinson et al. (2002), Improved optimization for the robust and accurate linear registration
        and motion correction of brain images (coarse-to-fine search with several starts)
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.grid import Grid
from volumediff.data.mutual_information import BINS, CLIP, Information
from volumediff.data.sharpness import blurred, own_variance, strides
from volumediff.errors import DataError

__all__ = ["RegistrationVolume", "align_affine", "align_rigid"]

LEVELS_MM = (8.0, 4.0, 2.0)
# Variance of both volumes over the square of the spacing: a standard deviation of 0.6 samples.
BLUR = 1 / 3
STEPS = 60  # of the optimiser; it converges in 10 to 40
# Voxels that are looked at per level; 60 000 at 2 mm is every fourth one of a brain.
SAMPLES = 60_000
# Background around an object without skull is looked at, too: it holds the border. Around a brain
# in its head is the head, and a rim of 12 mm made its scalp fit the brain's border.
RIM_MM = 6.0
# Where the field of view ends at the object, background is added, or it would not be seen.
PAD_MM = 16.0
# Heads without neck are about this high; a template's centre of mass is compared with theirs.
HEAD_MM = 160.0
# The centre of a brain is about this far below the top of the head.
CROWN_MM = 80.0
# Starts about the left-right axis, along which heads are tilted most, in degrees.
PITCHES = (-20.0, 0.0, 20.0)
FINALISTS = 3  # starts whose scales and shears are searched, too
LEAST_SEEN = 0.3  # of the sampled voxels; less than a slab of a brain tells too little
# Rotations, logarithms of scales and shears move a brain's border by about this many mm per unit.
RADIUS_MM = 60.0
# Wider than what the check of the quality accepts, so that a wrong optimum shows there.
MOST_LOG_SCALE, MOST_SHEAR = float(np.log(1.6)), 0.4


@dataclass(frozen=True, eq=False)
class RegistrationVolume:
    """A volume to be registered.

    Arguments:
        x: intensities
        object: its foreground
        grid: canonical
    """

    x: Float[np.ndarray, "d h w"]
    object: Bool[np.ndarray, "d h w"]
    grid: Grid

    def masked(self) -> "RegistrationVolume":
        """The object alone, with background around it."""
        low = float(self.x[self.object].min())
        x = np.where(self.object, self.x, np.float32(min(low, 0.0)))
        pad = [int(np.ceil(PAD_MM / s)) for s in self.grid.spacing_mm]
        widths = [(p, p) for p in pad]
        affine = self.grid.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ pad
        d, h, w = (n + 2 * p for n, p in zip(self.grid.shape, pad, strict=True))
        padded = np.pad(x, widths, constant_values=min(low, 0.0))
        return RegistrationVolume(padded, np.pad(self.object, widths), Grid((d, h, w), affine))

    def clipped(self) -> "RegistrationVolume":
        """Without the extremes of the object's intensities."""
        low, high = np.percentile(self.x[self.object], CLIP).astype(np.float32)
        floor = min(low, self.x.min())  # the background stays apart from the object
        return RegistrationVolume(np.clip(self.x, floor, high), self.object, self.grid)

    def centre_mm(self) -> Float[np.ndarray, "3"]:
        """Centre of mass of the object."""
        total = self.object.sum()
        index = [
            np.arange(n) @ self.object.sum(tuple({0, 1, 2} - {axis})) / total
            for axis, n in enumerate(self.grid.shape)
        ]
        return self.grid.affine[:3, :3] @ index + self.grid.affine[:3, 3]

    def head_centres_mm(self) -> list[Float[np.ndarray, "3"]]:
        """Centre of mass without neck and shoulders, and the place where a brain would be."""
        points = np.argwhere(self.object) @ self.grid.affine[:3, :3].T + self.grid.affine[:3, 3]
        top = np.percentile(points[:, 2], 99.9)
        head = points[points[:, 2] > top - HEAD_MM].mean(axis=0)
        crown = points[points[:, 2] > top - CROWN_MM].mean(axis=0)
        return [head, np.array([crown[0], crown[1], top - CROWN_MM])]


def align_affine(
    moving: RegistrationVolume, reference: RegistrationVolume, *, skull: bool
) -> Float[np.ndarray, "4 4"]:
    """The affine map from the millimetres of `moving` to those of `reference`.

    Arguments:
        moving: a scan; its object is its foreground
        reference: a template; its object is what is compared
        skull: whether `moving` shows more than the object of the reference, such as the skull
            around the brain; the harder problem

    Raises:
        DataError: one of them is empty, or they never overlap
    """
    moving, reference = _usable(moving, reference)
    if not skull:
        moving, reference = moving.masked(), reference.masked()
    rim = 0.0 if skull else RIM_MM
    coarse = _Pair.at(moving, reference, LEVELS_MM[0], rim_mm=rim, scale=1.0)
    found = [coarse.refined(start, SIMILAR) for start in _starts(moving, reference)]
    best = sorted(found, key=coarse.value, reverse=True)[:FINALISTS]
    theta = max((coarse.refined(start, AFFINE) for start in best), key=coarse.value)
    for spacing in LEVELS_MM[1:]:
        scale = float(np.linalg.det(coarse.matrix(theta)[:3, :3])) ** (-1 / 3)
        pair = _Pair.at(moving, reference, spacing, rim_mm=rim, scale=scale)
        theta = pair.refined(theta, AFFINE)
    coarse.check(theta)
    return np.linalg.inv(coarse.matrix(theta))


def align_rigid(
    moving: RegistrationVolume, reference: RegistrationVolume
) -> Float[np.ndarray, "4 4"]:
    """The rotation and shift from `moving` to `reference`, both of one examination.

    Scanner coordinates say where both lie, so the search starts there and stays close.
    """
    moving, reference = _usable(moving, reference)
    theta = np.zeros(12)
    for spacing in LEVELS_MM[1:]:
        pair = _Pair.at(moving, reference, spacing, rim_mm=RIM_MM, scale=1.0)
        theta = pair.refined(theta, RIGID)
        pair.check(theta)
    return np.linalg.inv(pair.matrix(theta))


def _usable(*scans: RegistrationVolume) -> list[RegistrationVolume]:
    for scan in scans:
        if not scan.object.any():
            raise DataError("shows no foreground to register; check that it is not empty.")
    return [scan.clipped() for scan in scans]


def _starts(
    moving: RegistrationVolume, reference: RegistrationVolume
) -> list[Float[np.ndarray, "12"]]:
    """Where the centre of the reference may lie in the other volume, in three pitches each."""
    centre, goals = reference.centre_mm(), [moving.centre_mm()]
    for goal in moving.head_centres_mm():
        if min(np.linalg.norm(goal - known) for known in goals) > LEVELS_MM[0]:
            goals.append(goal)
    starts = []
    for goal, pitch in product(goals, PITCHES):
        start = np.zeros(12)
        start[0], start[3:6] = RADIUS_MM * np.radians(pitch), goal - centre
        starts.append(start)
    return starts


# What may change: columns of rotation, shift, logarithms of scales and shears.
RIGID = np.eye(12)[:, :6]
SIMILAR = np.concatenate([RIGID, np.repeat([0.0, 0, 1, 0], 3)[:, None] / np.sqrt(3)], axis=1)
AFFINE = np.eye(12)
BOUNDS = np.repeat([np.inf, np.inf, MOST_LOG_SCALE * RADIUS_MM, MOST_SHEAR * RADIUS_MM], 3)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Both volumes at one level; maps are twelve numbers, all of them like millimetres."""

    information: Information
    centre: Float[np.ndarray, "3"]

    @classmethod
    def at(
        cls,
        moving: RegistrationVolume,
        reference: RegistrationVolume,
        spacing_mm: float,
        *,
        rim_mm: float,
        scale: float,
    ) -> "_Pair":
        """Samples at a spacing, of one sharpness when `moving` is enlarged by `scale`."""
        from scipy import ndimage

        moving_steps = strides(moving.grid, spacing_mm)
        steps = strides(reference.grid, spacing_mm)
        has = scale**2 * own_variance(moving.grid, moving_steps, interpolated=True)
        wants = own_variance(reference.grid, steps, interpolated=False)
        goal = max(BLUR * spacing_mm**2, has.max(), wants.max())
        x, grid = blurred(
            moving.x, moving.grid, added_mm2=(goal - has) / scale**2, steps=moving_steps
        )
        known, sampled = blurred(reference.x, reference.grid, added_mm2=goal - wants, steps=steps)
        inside, _ = blurred(
            reference.object.astype(np.float32), reference.grid, added_mm2=np.zeros(3), steps=steps
        )
        away = ndimage.distance_transform_edt(inside < 0.5, sampling=sampled.spacing_mm)
        index = np.argwhere(away <= rim_mm)
        index = index[:: max(1, len(index) // SAMPLES)]
        values = known[tuple(index.T)].astype(np.float64)
        low, high = float(values.min()), float(values.max())
        unit = (values - low) / max(high - low, 1e-12)
        codes = np.clip((unit * BINS).astype(np.int64), 0, BINS - 1)
        points = index @ sampled.affine[:3, :3].T + sampled.affine[:3, 3]
        x = x.astype(np.float64)
        span = float(x.min()), max(float(x.max()), float(x.min()) + 1e-12)
        return cls(Information(points, codes, x, grid, *span), reference.centre_mm())

    def matrix(self, theta: Float[np.ndarray, "12"]) -> Float[np.ndarray, "4 4"]:
        """Rotation, shears and scales about the reference's centre, and a shift."""
        from scipy.spatial.transform import Rotation

        turn, shift, log, shear = theta.reshape(4, 3)
        k = np.eye(3)
        k[0, 1], k[0, 2], k[1, 2] = shear / RADIUS_MM
        linear = Rotation.from_rotvec(turn / RADIUS_MM).as_matrix() @ k
        out = np.eye(4)
        out[:3, :3] = linear * np.exp(log / RADIUS_MM)
        out[:3, 3] = self.centre + shift - out[:3, :3] @ self.centre
        return out

    def check(self, theta: Float[np.ndarray, "12"]) -> None:
        """Refuses a map that takes the object out of the other volume."""
        if self.information.seen(self.matrix(theta)) < LEAST_SEEN:
            raise DataError(
                "cannot be registered: the volumes do not overlap; check that it shows the "
                "template's object, and its affine."
            )

    def value(self, theta: Float[np.ndarray, "12"]) -> float:
        """Mutual information; 0 where too little of the object would be seen."""
        matrix = self.matrix(theta)
        if self.information.seen(matrix) < LEAST_SEEN:
            return 0.0
        return self.information.at(matrix)[0]

    def refined(
        self, start: Float[np.ndarray, "12"], free: Float[np.ndarray, "12 k"]
    ) -> Float[np.ndarray, "12"]:
        """The best map close to a start."""
        from scipy.optimize import minimize

        def loss(change: np.ndarray) -> tuple[float, np.ndarray]:
            theta = start + free @ change
            value, by_matrix = self.information.at(self.matrix(theta))
            return -value, -np.einsum("kij,ij->k", self._tangents(theta, free), by_matrix)

        if self.information.seen(self.matrix(start)) < LEAST_SEEN:
            return start
        room = [
            (float(-limit - value), float(limit - value)) if np.isfinite(limit) else (None, None)
            for limit, value in zip(BOUNDS, start, strict=True)
        ]
        found = minimize(
            loss,
            np.zeros(free.shape[1]),
            jac=True,
            method="L-BFGS-B",
            bounds=room if free.shape[1] == 12 else None,
            options={"maxiter": STEPS, "ftol": 1e-7},
        )
        return start + free @ found.x

    def _tangents(
        self, theta: Float[np.ndarray, "12"], free: Float[np.ndarray, "12 k"]
    ) -> Float[np.ndarray, "k 3 4"]:
        """Change of the matrix with each number; central differences of a smooth function."""
        h = 1e-4
        both = [(self.matrix(theta + h * c), self.matrix(theta - h * c)) for c in free.T]
        return np.stack([(a - b)[:3] / (2 * h) for a, b in both])
