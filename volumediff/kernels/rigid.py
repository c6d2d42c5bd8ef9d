r"""Rigid kernel: shapes drift away from their place, and towards a ball, instead of getting noisy,

.. math:: z_t = D(z_0, t) = M_{\tau g} \big((1 - \tau)\, z_0 + \tau B\big), \qquad
          \tau = 1 - \alpha_t,

with B a ball at the centre, g a random shift and rotation of the sample, and M their action on a
volume: at t = 1 there is a ball somewhere near the centre, which needs no label to draw. The
network gives z_0, and a step is that of cold diffusion for any degradation,

.. math:: z_s = z_t - D(\hat z_0, t) + D(\hat z_0, s),

with the move of the whole chain in both terms: what the network gets wrong in the same way at
both severities cancels.

An interpretation, in 3D and on signed distances, of a method on contours in 2D whose schedule is
not published.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction, check_fading
from volumediff.schedules._base import per_sample

__all__ = ["Rigid"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]
MOVES = 6  # three shifts, three components of a rotation


@dataclass(frozen=True)
class Rigid(Kernel):
    """Shift, rotation and the loss of shape, of signed distance maps above all.

    Noise comes in as a white field, as for every kernel; six sums over it are the numbers that a
    sample's move is made of, so that one field is one move. All channels move together. Voxels
    are taken for cubes, and what comes in from outside repeats the border.

    Arguments:
        schedule: of alpha; 1 - alpha is the severity
        shift: largest shift at t = 1 along each axis, as a share of its length
        degrees: largest component of the rotation vector at t = 1
        radius: of the ball, as a share of half the shortest side
        margin: width of the ball's ramp from -1 to 1, as a share of the same

    References:
        Zhang et al. (2023), Surf-CDM, arXiv:2312.12649, for shift and rotation as the forward
        process; Bansal et al. (2022), Cold Diffusion, arXiv:2208.09392, algorithm 2
    """

    path: ClassVar[str] = "rigid"
    predicts: ClassVar[tuple[str, ...]] = ("x0",)
    valued: ClassVar[bool] = True
    tied: ClassVar[bool] = True
    shift: float = 0.15
    degrees: float = 30.0
    radius: float = 0.5
    margin: float = 0.8

    def __post_init__(self) -> None:
        check_fading(self.schedule)
        if not (0 <= self.shift < 1 and 0 <= self.degrees <= 180):
            raise ValueError(
                "expected shift in [0, 1) and degrees in [0, 180], got "
                f"{self.shift} and {self.degrees}."
            )
        if not (self.radius > 0 and self.margin > 0):
            raise ValueError(
                f"expected radius and margin above 0, got {self.radius} and {self.margin}."
            )

    def prior(self, noise: State, start: float = 1.0) -> State:
        """The ball, moved."""
        one = noise.new_ones(len(noise))
        return _moved(self._ball(noise), self._move(noise, one))

    def degraded(self, z_0: State, t: Level, noise: State) -> State:
        """D(z_0, t); exactly z_0 at t = 0."""
        severity = self._severity(t, z_0)
        shape = torch.lerp(z_0, self._ball(z_0), per_sample(severity, z_0))
        moved = _moved(shape, self._move(noise, severity))
        return torch.where(per_sample(severity, z_0) > 0, moved, z_0)

    def corrupt(self, z_0: State, t: Level, noise: State) -> State:
        return self.degraded(z_0, t, noise)

    def renoise(self, z_s: State, s: Level, t: Level, noise: State) -> State:
        """Back to its place, further towards the ball, and to the place of t."""
        low, high = self._severity(s, z_s), self._severity(t, z_s)
        still = _moved(z_s, _inverse(self._move(noise, low)))
        kept = per_sample((1 - high) / (1 - low), z_s)
        return _moved(torch.lerp(self._ball(z_s), still, kept), self._move(noise, high))

    def predict(self, output: State, z_t: State, t: Level) -> Prediction:
        undefined = output.new_full((), float("nan")).expand_as(output)
        return Prediction(output, undefined, undefined)

    def step(self, prediction: Prediction, z_t: State, t: Level, s: Level, noise: State) -> State:
        """Algorithm 2; `noise` is the field that the chain began with."""
        x0 = prediction.x0
        below = z_t - self.degraded(x0, t, noise) + self.degraded(x0, s, noise)
        return torch.where(per_sample(s, z_t) > 0, below, x0)

    def loss(self, output: State, z_0: State, z_t: State, t: Level, noise: State) -> Level:
        dtype = torch.promote_types(output.dtype, torch.float32)
        return (output.to(dtype) - z_0.to(dtype)).square().flatten(1).mean(1)

    def _severity(self, t: Level, z: State) -> Level:
        return (1 - self.schedule(t)[0]).to(z)

    def _ball(self, like: State) -> Float[Tensor, "b k d h w"]:
        sizes = like.shape[2:]
        half = max(min(sizes) / 2, 1)
        axes = [
            (torch.arange(n, device=like.device, dtype=like.dtype) - (n - 1) / 2) / half
            for n in sizes
        ]
        away = sum(a.square() for a in torch.meshgrid(*axes, indexing="ij")).sqrt()
        ball = ((self.radius - away) * (2 / self.margin)).clamp(-1, 1)
        return ball.expand(like.shape)

    def _move(self, noise: State, severity: Level) -> Float[Tensor, "b 3 4"]:
        """Where the value at a voxel comes from: a rotation about the centre and a shift, both in
        half sides along w, h, d, as `affine_grid` takes them."""
        field = noise.flatten(1)
        field = F.pad(field, (0, max(MOVES - field.shape[1], 0)))
        sums = torch.stack(
            [part.sum(1) / math.sqrt(part.shape[1]) for part in _interleaved(field)], 1
        )
        numbers = severity[:, None] * (2 * torch.special.ndtr(sums) - 1)  # uniform in [-1, 1]
        turn = _rotation(numbers[:, 3:] * math.radians(self.degrees))
        # in voxels the rotation is one; half sides differ by axis
        sides = noise.new_tensor(noise.shape[:1:-1])
        turn = turn * sides[None, None, :] / sides[None, :, None]
        return torch.cat([turn, 2 * self.shift * numbers[:, :3, None]], dim=2)


def _interleaved(field: Float[Tensor, "b n"]) -> list[Float[Tensor, "b _"]]:
    return [field[:, i::MOVES] for i in range(MOVES)]


def _rotation(vector: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """The rotation about an axis by its length in radians."""
    x, y, z = vector.unbind(1)
    o = torch.zeros_like(x)
    cross = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(cross)


def _inverse(move: Float[Tensor, "b 3 4"]) -> Float[Tensor, "b 3 4"]:
    turn = torch.linalg.inv(move[:, :, :3])
    return torch.cat([turn, -turn @ move[:, :, 3:]], dim=2)


def _moved(z: State, move: Float[Tensor, "b 3 4"]) -> State:
    b, k, d, h, w = z.shape
    grid = F.affine_grid(move.to(z), [b, k, d, h, w], align_corners=False)
    return F.grid_sample(z, grid, padding_mode="border", align_corners=False)
