r"""The model: a state space, a kernel and a network,

.. math:: z = E(x), \qquad z_t \sim q(z_t | z), \qquad
          (z_t, t, c) \mapsto (\hat z_0, \hat\epsilon, \hat v),

with per-sample losses and noise that depend on a sample's key alone, so that batches may be cut
and ordered in any way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.kernels._base import UNCONDITIONAL, Kernel, Prediction
from volumediff.networks._base import Network
from volumediff.noise import Gaussian, Noise
from volumediff.randomness import uniform
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["Batch", "Model", "full_coordinates", "positions"]

Volume = Float[Tensor, "b c d h w"]
State = Float[Tensor, "b k d2 h2 w2"]


@dataclass(frozen=True)
class Batch:
    """Samples to train on.

    Arguments:
        x: volumes
        keys: one per sample; time and noise of the sample are drawn from it alone
        condition: what the denoiser is told, without the image
        image: volumes to condition on; they go through the state space as x does
    """

    x: Volume
    keys: tuple[int, ...]
    condition: Condition = UNCONDITIONAL
    image: Float[Tensor, "b i d h w"] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        image = None if self.image is None else move(self.image)
        return replace(self, x=move(self.x), condition=self.condition.map(move), image=image)


class Model(nn.Module):
    """p(x | c), as a state space, a kernel and a network.

    Arguments:
        space: volumes <-> states
        kernel: how states are corrupted, and how outputs are read
        network: (z_t, t, c) -> output
        dtype: in which the network computes; states, times and losses stay in float32
        times: (low, high), training times are uniform on (low, high]
        field: what volumes are corrupted with; the network knows no other noise
    """

    def __init__(
        self,
        space: StateSpace,
        kernel: Kernel,
        network: Network,
        *,
        dtype: torch.dtype = torch.float32,
        times: tuple[float, float] = (0.0, 1.0),
        field: Noise = Gaussian(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if not 0 <= times[0] < times[1] <= 1:
            raise ValueError(f"expected times (low, high) within [0, 1], got {times}.")
        self.space = space
        self.kernel = kernel
        self.network = network
        self.dtype = dtype
        self.times = times
        self.field = field

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        first = next(chain(self.network.parameters(), self.space.buffers()), torch.empty(0))
        return first.device

    def encode(self, x: Volume) -> State:
        """The state of a volume."""
        return self.space.encode(x)

    def decode(self, z: State, shape: Shape | None = None) -> Volume:
        """The volume of a state, cropped to `shape` if given."""
        return self.space.decode(z, shape)

    def denoise(
        self, z_t: State, t: Float[Tensor, "b"], condition: Condition = UNCONDITIONAL
    ) -> Prediction:
        """What a noisy state says about the clean one; a `Denoiser`."""
        return self.kernel.predict(self._output(z_t, t, condition), z_t, t)

    def noise(self, keys: Sequence[int], shape: tuple[int, ...]) -> Callable[[int], State]:
        """step -> noise in state space; sample i depends on keys[i] and the step alone.

        Samplers ask for the steps 0, 1, ...; other numbers, such as -1 for the state that a chain
        starts from, give noise that is independent of all of theirs.

        Arguments:
            keys: one per sample
            shape: (c, d, h, w) of the volumes
        """
        return lambda step: self._noise(keys, tuple(shape), "noise", step)

    def loss(self, batch: Batch) -> Float[Tensor, "b"]:
        """One loss per sample; its mean is what training minimises."""
        with torch.no_grad():
            z_0 = self.encode(batch.x)
            condition = batch.condition
            if batch.image is not None:
                condition = condition.replace(image=self.encode(batch.image))
        low, high = self.times
        # 1 - u lies in (0, 1]: t = 0 has no noise to remove.
        draws = [high - (high - low) * uniform(key, "t") for key in batch.keys]
        t = torch.tensor(draws, dtype=torch.float64, device=z_0.device)
        noise = self._noise(batch.keys, tuple(batch.x.shape[1:]), "loss").to(z_0)
        z_t = self.kernel.corrupt(z_0, t, noise)
        output = self._output(z_t, t, condition)
        return self.kernel.loss(output, z_0, z_t, t, noise)

    def _output(
        self, z_t: State, t: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        """The network in its own dtype, between tensors of the state's dtype."""
        place = condition.coordinates
        if place is None and self.network.coordinates:
            place = full_coordinates(z_t).expand(len(z_t), -1, -1, -1, -1)
        # Time and scalars go to the embedding, which needs their precision.
        told = condition.replace(
            image=None if condition.image is None else condition.image.to(self.dtype),
            scalars=None if condition.scalars is None else condition.scalars.to(z_t.dtype),
            coordinates=None if place is None else place.to(self.dtype),
        )
        return self.network(z_t.to(self.dtype), t.to(z_t.dtype), told).to(z_t.dtype)

    def _noise(self, keys: Sequence[int], shape: tuple[int, ...], *parts: int | str) -> State:
        # Drawn on the padded volume: a space cannot make more white noise than the field has.
        c, d, h, w = shape
        size = (c, *self.space.padded((d, h, w)))
        fields = [self.field(size, key, *parts, device=self.device) for key in keys]
        return self.space.noise(torch.stack(fields))


def positions(n: int, *, device: torch.device | str = "cpu") -> Float[Tensor, "n"]:
    """Coordinates of n voxels along an axis, from -1 to 1; a single one is at 0."""
    return torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device)


def full_coordinates(z: State) -> Float[Tensor, "1 3 d2 h2 w2"]:
    """Position of every state voxel of a whole volume; the outer voxels are at -1 and 1."""
    axes = [positions(n, device=z.device) for n in z.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].to(z.dtype)
