r"""The model: a state space, a kernel and a network,

.. math:: z = E(x), \qquad z_t \sim q(z_t | z), \qquad
          (z_t, t, c) \mapsto (\hat z_0, \hat\epsilon, \hat v),

with per-sample losses and noise that depend on a sample's key alone, so that batches may be cut
and ordered in any way.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch, NoisyBatch
from volumediff.chain_noise import ChainNoise
from volumediff.component import Component
from volumediff.condition import Condition
from volumediff.kernels._base import UNCONDITIONAL, Kernel, Prediction
from volumediff.losses._base import LossContext, LossTerm
from volumediff.networks._base import Network
from volumediff.noise import GaussianNoise, Noise
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe
from volumediff.recipes.healthy import Healthy
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace
from volumediff.times._base import TimeDensity
from volumediff.times.uniform import Uniform
from volumediff.transfer import sent

__all__ = [
    "LOSS",
    "LabelProbabilities",
    "Model",
    "full_coordinates",
    "positions",
    "state_noise",
]

Volume = Float[Tensor, "b c d h w"]
State = Float[Tensor, "b k d2 h2 w2"]
LOSS = "loss"  # part of the keys of the noise that the loss draws
TINY = 1e-6  # share of a region that a crop may miss; its loss is then 0
# Least probability in the law of a voxel: a segmentation network may be sure, and wrong.
LEAST = 1e-3


class LabelProbabilities(nn.Module):
    """What gives probabilities of labels, such as a supervised segmentation network."""

    @property
    @abstractmethod
    def labels(self) -> tuple[int, ...]:
        """Label values in the order of its channels, without the background."""

    @abstractmethod
    def probabilities(
        self, x: Volume, condition: Condition = UNCONDITIONAL
    ) -> Float[Tensor, "b _ d h w"]:
        """Of background and labels, in this order; they sum to 1.

        Arguments:
            condition: of the volumes, with the coordinates of crops
        """


class Model(nn.Module):
    """p(x | c), as a state space, a kernel and a network.

    Arguments:
        space: volumes <-> states
        kernel: how states are corrupted, and how outputs are read
        network: (z_t, t, c) -> output
        dtype: in which the network computes; states, times and losses stay in float32
        time_density: of the training times
        noise_field: what volumes are corrupted with; the network knows no other noise
        recipe: what it was trained on
        transform: space in which the network computes, where that is not the one of the states:
            the network is then z -> inverse transform (network (transform (z)))
        losses: terms beside the kernel's own loss
        kernel_weight: of the kernel's own loss
        sides: networks of the terms, by their place in `losses`
        prior: gives the law that labels end in, per voxel
        walk: the sampler that the network was distilled for, of a student; None for any
        guided: least and largest weight of the guidance that the network is told; None for a
            network that is told none. It is told 1, which is none, where a condition says nothing
    """

    diffuses: ClassVar[bool] = True

    def __init__(
        self,
        space: StateSpace,
        kernel: Kernel,
        network: Network,
        *,
        dtype: torch.dtype = torch.float32,
        time_density: TimeDensity = Uniform(),  # noqa: B008 - frozen
        noise_field: Noise = GaussianNoise(),  # noqa: B008 - frozen
        recipe: Recipe = Healthy(),  # noqa: B008 - frozen
        transform: StateSpace | None = None,
        losses: Sequence[LossTerm] = (),
        kernel_weight: float = 1.0,
        sides: Mapping[int, nn.Module] | None = None,
        prior: LabelProbabilities | None = None,
        walk: Component | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.transform = transform
        self.losses = tuple(losses)
        self.kernel_weight = kernel_weight
        self.sides = nn.ModuleDict({str(i): side for i, side in (sides or {}).items()})
        self.prior = prior
        self.kernel = kernel
        self.network = network
        self.dtype = dtype
        self.time_density = time_density
        self.noise_field = noise_field
        self.recipe = recipe
        self.walk = walk
        self.guided: tuple[float, float] | None = None

    def take_guidance(self, low: float, high: float) -> None:
        """Makes the model one that is told the weight of a guidance, and may be told all of an
        interval."""
        self.network.take_guidance()
        self.guided = (low, high)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        first = next(chain(self.network.parameters(), self.space.buffers()), torch.empty(0))
        return first.device

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs."""
        return self.network

    @property
    def network_space(self) -> StateSpace:
        """The space in which the network computes, and where its image conditions are."""
        return self.space if self.transform is None else self.transform

    def encode(self, x: Volume) -> State:
        """The state of a volume."""
        return self.space.encode(x)

    def encode_image(self, image: Volume) -> State:
        """An image condition on the grid of the network."""
        frame = self.network_space
        codec = frame.image_codec
        # What is trained with the network computes as the network does.
        dtype = self.dtype if codec is not None and codec.trained else image.dtype
        return frame.encode_image(image.to(dtype)).to(image.dtype)

    def decode(self, z: State, shape: Shape | None = None) -> Volume:
        """The volume of a state, cropped to `shape` if given."""
        return self.space.decode(z, shape)

    def denoise(
        self, z_t: State, t: Float[Tensor, "b"], condition: Condition = UNCONDITIONAL
    ) -> Prediction:
        """What a noisy state says about the clean one; a `Denoiser`."""
        # Of networks of trajectories the clean end, which is the last state of each.
        last = self._output(z_t, t, condition).unflatten(0, (len(z_t), -1))[:, -1]
        output, noisy = self._parts(last)
        prediction = self.kernel.predict(output, z_t, t)
        return prediction if noisy is None else replace(prediction, noisy=noisy)

    def trajectory(
        self,
        z_1: State,
        times: Float[Tensor, "m"],
        condition: Condition = UNCONDITIONAL,
    ) -> Float[Tensor, "b m k d2 h2 w2"]:
        """States at all times of a network of trajectories, by one call.

        An output is read as a prediction from z_1, along which a first-order step leads to its
        time.

        Arguments:
            z_1: noise at t = 1
            times: of the network, as the schedule reads them
        """
        b, m = len(z_1), len(times)
        one = z_1.new_ones(b * m, dtype=torch.float64)
        output = self._output(z_1, one[:b], condition)
        said = self.kernel.predict(output, z_1.repeat_interleave(m, dim=0), one)
        states = self.kernel.corrupt(said.x0, times.to(one).repeat(b), said.eps)
        return states.unflatten(0, (b, m))

    def kernel_of(self, condition: Condition) -> Kernel:
        """The kernel of volumes with this condition: with their law, where it has one.

        Raises:
            ValueError: the model's states end in a law, and the condition has none; see `told`
        """
        if self.prior is not None and condition.law is None:
            raise ValueError(
                "expected a condition with the law of its volumes, got none: pass their images to "
                "Model.told."
            )
        return self.kernel if condition.law is None else self.kernel.given(condition.law)

    def noise(self, keys: Sequence[int], shape: tuple[int, ...]) -> ChainNoise:
        """step -> noise in state space; sample i depends on keys[i] and the step alone.

        Samplers ask for the steps 0, 1, ...; other numbers, such as -1 for the state that a chain
        starts from, give noise that is independent of all of theirs.

        Arguments:
            keys: one per sample
            shape: (c, d, h, w) of the volumes
        """
        return ChainNoise(
            tuple(keys),
            lambda step: self._noise(keys, tuple(shape), "noise", step),
            length=self.network.latent_length,
            device=self.device,
        )

    def told(
        self,
        condition: Condition,
        images: Sequence[Float[Tensor, "b _ d h w"]] = (),
        mask: Float[Tensor, "b 1 d h w"] | None = None,
    ) -> Condition:
        """The condition with volumes and a mask added to its image, on the network's grid.

        Where there is a prior, its probabilities are the law of the states and one more image.
        """
        frame = self.network_space
        parts = [] if condition.image is None else [condition.image]
        parts += [self.encode_image(image) for image in images]
        if mask is not None:
            parts.append(frame.mask(mask))
        if self.prior is not None and images:
            law = self._law(images[0], condition)
            parts.append(frame.encode(law))
            condition = condition.replace(law=self.encode(law))
        return condition.replace(image=torch.cat(parts, dim=1)) if parts else condition

    @torch.no_grad()
    def _law(self, image: Volume, condition: Condition) -> Float[Tensor, "b _ d h w"]:
        """What the labels of a volume end in, coded as they are, in voxels."""
        assert self.prior is not None, "told"
        p = self.prior.probabilities(image, condition).float()
        p = (1 - LEAST * p.shape[1]) * p + LEAST
        # bits have no background, and classes have one
        p = p if self.recipe.grouped else p[:, 1:]
        return (2 * p - 1).to(image)

    def prepared(self, condition: Condition) -> Condition:
        """The condition after what the network does to images alone: once for all calls."""
        image = condition.image
        if image is not None:
            condition = condition.replace(image=image.to(self.dtype))
        return self.network.prepare(condition)

    def referred(self, condition: Condition, z: State) -> Condition:
        """The condition, with the state of the volume itself where the model takes it."""
        return condition.replace(reference=z) if self.recipe.reference else condition

    def with_network(self, network: Network) -> "Model":
        """The same model with another network, which need not be told a guidance."""
        other = Model(
            self.space,
            self.kernel,
            network,
            dtype=self.dtype,
            time_density=self.time_density,
            noise_field=self.noise_field,
            recipe=self.recipe,
            transform=self.transform,
            walk=self.walk,
        )
        other.guided = None if network.guidance is None else self.guided
        return other

    def corrupted(self, batch: Batch) -> NoisyBatch:
        """What the network is shown of a batch: everything follows from the keys."""
        with torch.no_grad():
            z_0 = self.encode(batch.x)
        # Codecs without weights of their own to train leave nothing for the backward pass.
        condition = self.told(batch.condition, batch.images, batch.mask)
        condition = self.referred(condition, z_0)
        if self.guided is not None:
            drawn = [uniform(key, "guidance") for key in batch.keys]
            weight = torch.lerp(*torch.tensor(self.guided), torch.tensor(drawn))
            condition = condition.replace(guidance=sent(weight, z_0.device))
        if any(term.prepared for term in self.losses):
            condition = self.prepared(condition)
        t = self.time_density.draw(batch.keys, self.kernel.schedule, device=z_0.device)
        if batch.end is not None:
            with torch.no_grad():
                noise = self.encode(batch.end)
        elif batch.noise is not None:
            noise = self.space.noise(batch.noise).to(z_0)
        else:
            noise = self._noise(batch.keys, tuple(batch.x.shape[1:]), LOSS).to(z_0)
        kernel = self.kernel_of(condition)
        z_t = kernel.corrupt(z_0, t, noise)
        m = None
        if batch.region is not None:
            m = self.space.mask(batch.region)
            z_t = torch.lerp(z_0, z_t, m)
        if batch.hidden is not None:
            seen = 1 - self.space.mask(batch.hidden)
            m = seen if m is None else m * seen
        return NoisyBatch(kernel, condition, z_0, z_t, t, noise, m)

    def kernel_loss(self, seen: NoisyBatch) -> Float[Tensor, "b"]:
        """The kernel's own loss of samples with noise and loss everywhere."""
        output, _ = self._parts(self._output(seen.z_t, seen.t, seen.condition))
        return seen.kernel.loss(output, seen.z_0, seen.z_t, seen.t, seen.noise)

    def loss(self, batch: Batch) -> Float[Tensor, "b"]:
        """One loss per sample; its mean is what training minimises.

        Where noise or loss is in a region alone, there are of the terms beside the kernel's only
        those that can leave voxels out.

        Networks that predict where noise is are asked for the region itself, everywhere.
        """
        seen = self.corrupted(batch)
        kernel, condition, m = seen.kernel, seen.condition, seen.m
        z_0, z_t, t, noise = seen.z_0, seen.z_t, seen.t, seen.noise
        output, noisy = self._parts(self._output(z_t, t, condition))
        if m is None:
            loss = kernel.loss(output, z_0, z_t, t, noise)
        else:
            # Errors are linear in output, state and noise: the masked ones have the masked error.
            loss = kernel.loss(m * output, m * z_0, z_t, t, m * noise)
            loss = loss / m.flatten(1).mean(1).clamp(min=TINY)
        if noisy is not None and m is not None:
            found = F.binary_cross_entropy_with_logits(noisy.to(m), m, reduction="none")
            loss = loss + self.recipe.mask_loss * found.flatten(1).mean(1)
        terms = {i: t for i, t in enumerate(self.losses) if m is None or t.leaves_out}
        if m is not None and (not terms or batch.region is not None):
            return loss
        loss = self.kernel_weight * loss
        if not terms:
            return loss
        context = LossContext(
            space=self.space,
            frame=self.network_space,
            kernel=kernel,
            network=self.network,
            recipe=self.recipe,
            x=batch.x,
            images=batch.images,
            distance_mm=batch.distance_mm,
            condition=condition,
            output=output,
            z_0=z_0,
            z_t=z_t,
            t=t,
            noise=noise,
            prediction=kernel.predict(output, z_t, t),
            hidden=batch.hidden,
        )
        return self._terms(loss, terms, context)

    def _terms(
        self, loss: Float[Tensor, "b"], terms: Mapping[int, LossTerm], context: LossContext
    ) -> Float[Tensor, "b"]:
        """The kernel's loss with terms by number, which share what they compute of the context."""
        for i, term in terms.items():
            name = str(i)
            if name in self.sides:
                found = term(replace(context, side=self.sides[name]))
            else:
                found = term(context)
            loss = loss + term.weight * found
        return loss

    def _parts(
        self, output: Float[Tensor, "b o d2 h2 w2"]
    ) -> tuple[State, Float[Tensor, "b 1 d2 h2 w2"] | None]:
        """What is the kernel's of the network's output, and the log-odds of noise."""
        return (output[:, :-1], output[:, -1:]) if self.recipe.mask_loss else (output, None)

    def _output(
        self, z_t: State, t: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "_ o d2 h2 w2"]:
        """The network in its own dtype, between tensors of the state's dtype."""
        z_t, t = self.kernel.shown(z_t, t)
        if self.transform is not None:
            inner = self._inner(self.transform.encode(z_t), t, condition)
            d, h, w = z_t.shape[2:]
            return self.transform.decode(inner, (d, h, w))
        return self._inner(z_t, t, condition)

    def _inner(
        self, z_t: State, t: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "_ o d2 h2 w2"]:
        """The network where it computes."""
        if self.guided is not None and condition.guidance is None:
            condition = condition.replace(guidance=z_t.new_ones(len(z_t)))
        place = condition.coordinates
        if place is None and self.network.coordinates:
            place = full_coordinates(z_t).expand(len(z_t), -1, -1, -1, -1)
        if condition.prepared is None and condition.image is not None:
            condition = condition.replace(image=condition.image.to(self.dtype))
        # Time and scalars go to the embedding, which needs their precision.
        told = condition.replace(
            scalars=None if condition.scalars is None else condition.scalars.to(z_t.dtype),
            coordinates=None if place is None else place.to(self.dtype),
        )
        return self.network(z_t.to(self.dtype), t.to(z_t.dtype), told).to(z_t.dtype)

    def _noise(self, keys: Sequence[int], shape: tuple[int, ...], *parts: int | str) -> State:
        return state_noise(self.space, self.noise_field, keys, shape, *parts, device=self.device)


def state_noise(
    space: StateSpace,
    field: Noise,
    keys: Sequence[int],
    shape: tuple[int, ...],
    *parts: int | str,
    device: torch.device | str = "cpu",
) -> State:
    """The noise of each key in state space, for volumes of shape (c, d, h, w)."""
    # Drawn on the padded volume: a space cannot make more white noise than the field has.
    c, d, h, w = shape
    size = (c, *space.padded((d, h, w)))
    return space.noise(torch.stack([field(size, key, *parts, device=device) for key in keys]))


def positions(n: int, *, device: torch.device | str = "cpu") -> Float[Tensor, "n"]:
    """Coordinates of n voxels along an axis, from -1 to 1; a single one is at 0."""
    return torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device)


def full_coordinates(z: State) -> Float[Tensor, "1 3 d2 h2 w2"]:
    """Position of every state voxel of a whole volume; the outer voxels are at -1 and 1."""
    axes = [positions(n, device=z.device) for n in z.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].to(z.dtype)
