r"""Keyed sampling: the sample number alone decides everything that is drawn for it.

Sample number n of a run (n counts over the whole run, over all processes) belongs to

.. math:: \text{epoch} = \lfloor n / N \rfloor, \qquad
          \text{index} = \operatorname{permutation}(\text{seed}, \text{epoch})[n \bmod N]

and its augmentation, crop, t and noise come from key(seed, epoch, index). So resuming, loader
workers and processes never change a sample, and no generator state is ever stored.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from volumediff import tiling
from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.data.augmentation import Augmentation
from volumediff.data.foreground_crops import ForegroundCrops
from volumediff.data.lesion_free import LesionFree
from volumediff.model import positions
from volumediff.randomness import generator, key, uniform
from volumediff.recipes._base import Recipe, Subject
from volumediff.samples.distances import surface_distances_mm
from volumediff.samples.drawn import DrawnVolumes
from volumediff.samples.loss_noise import LossNoise
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace
from volumediff.system.stop_signals import outlive_stop_signals

__all__ = ["Crop", "Keyed", "Order", "Sample", "Samples", "collate", "crop_of", "stream"]

# Positions, in strides, where crops may begin along some of the axes; anywhere along the others.
Starts = Mapping[int, Sequence[int]]
ANYWHERE: Starts = {}
# Seconds after which a silent loader worker counts as dead.
PATIENCE = 1800


@dataclass(frozen=True)
class Sample:
    """One keyed training sample, cropped; see `volumediff.batch.Batch`."""

    key: int
    x: Tensor
    images: tuple[Tensor, ...]
    label: int | None
    scalars: Tensor | None
    coordinates: Tensor | None
    mask: Tensor | None = None
    region: Tensor | None = None
    end: Tensor | None = None
    distance_mm: Tensor | None = None
    noise: Tensor | None = None
    hidden: Tensor | None = None


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(n, generator=generator(seed, epoch, "order")).tolist()


@dataclass(frozen=True)
class Order:
    """Which volume sample number n is.

    Arguments:
        volumes: N, number of training volumes
        seed: of the run
    """

    volumes: int
    seed: int

    def place(self, number: int) -> tuple[int, int]:
        """(epoch, index of the volume) of a sample number."""
        epoch, position = divmod(number, self.volumes)
        return epoch, _permutation(self.volumes, self.seed, epoch)[position]

    def batches(
        self, first: int, steps: int, *, batch_size: int, accumulate: int, rank: int, world: int
    ) -> Iterator[list[tuple[int, int]]]:
        """This process's micro-batches of the steps first..steps-1, as (epoch, index).

        A global batch is cut into `world` runs of samples, each into `accumulate` micro-batches.
        """
        micro = batch_size // (world * accumulate)
        for step in range(first, steps):
            start = step * batch_size + rank * micro * accumulate
            for part in range(accumulate):
                numbers = range(start + part * micro, start + (part + 1) * micro)
                yield [self.place(n) for n in numbers]


@dataclass(frozen=True)
class Crop:
    """Training crops at keyed positions of the state grid.

    Arguments:
        shape: voxels of the crop, multiples of the stride
        stride: voxels per state voxel along d, h, w
        axes: axis of the volume that is axis i of the state
    """

    shape: Shape
    stride: Shape
    axes: Shape = (0, 1, 2)

    def __post_init__(self) -> None:
        if any(n % s for n, s in zip(self.shape, self.stride, strict=True)):
            raise ValueError(
                f"crop {list(self.shape)}: expected multiples of the stride {list(self.stride)}."
            )

    def windows(
        self, size: Shape, key: int, starts: Starts = ANYWHERE
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Slices of the padded volume and of the state grid, before its axes are reordered.

        Arguments:
            size: of the volume
            key: of the sample
            starts: positions that are allowed along some axes, in strides
        """
        voxels, states = [], []
        for axis, (n, s, m) in enumerate(zip(self.shape, self.stride, size, strict=True)):
            choices = -(-m // s) - n // s + 1
            if axis in starts:
                allowed = starts[axis]
                first = allowed[int(uniform(key, "crop", axis) * len(allowed))]
            else:
                first = int(uniform(key, "crop", axis) * choices)
            voxels.append(slice(first * s, first * s + n))
            states.append(slice(first, first + n // s))
        return tuple(voxels), tuple(states)

    def around(self, centre: Shape, size: Shape) -> Starts:
        """Where a crop begins that is centred on a voxel, as far as the border allows."""
        found = {}
        sizes = zip(centre, self.shape, self.stride, size, strict=True)
        for axis, (middle, n, s, m) in enumerate(sizes):
            last = -(-m // s) - n // s
            found[axis] = [min(max((middle - n // 2) // s, 0), max(last, 0))]
        return found

    def cut(
        self, x: Float[Tensor, "c d h w"], key: int, starts: Starts = ANYWHERE
    ) -> Float[Tensor, "c _ _ _"]:
        """The crop of a volume, which is first padded as the space pads it."""
        size = tuple(x.shape[1:])
        whole = tiling.pad(x[None], tiling.padded_shape(size, self.stride))[0]
        return whole[(slice(None), *self.windows(size, key, starts)[0])].clone()

    def coordinates(
        self, size: Shape, key: int, starts: Starts = ANYWHERE
    ) -> Float[Tensor, "3 _ _ _"]:
        """Position of the crop's state voxels in the whole volume, as in `full_coordinates`."""
        grid = [-(-m // s) for m, s in zip(size, self.stride, strict=True)]
        states = self.windows(size, key, starts)[1]
        lines = [positions(grid[axis])[states[axis]] for axis in self.axes]
        return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def crop_of(space: StateSpace, shape: Shape) -> Crop:
    """Crops of a volume that are windows of its state.

    Raises:
        ValueError: the shape is no multiple of the stride
    """
    return Crop(shape, space.stride, space.axis_order)


@dataclass(frozen=True, eq=False)
class Keyed(Dataset):  # type: ignore[type-arg]
    """Samples by (epoch, index); plain data only, so that spawned workers can have it.

    Arguments:
        volumes: of one split
        recipe: what is diffused
        seed: of the run
        statistics: of the training split
        crop: how training crops are taken; None takes whole volumes
        located: whether samples carry the coordinates of their crop
        augment: keyed augmentation of training samples
        drawn: volumes that some training samples are drawn from instead
        lesion_free: which planes of volumes with lesions train; needs crops
        foreground: which crops are centred on a label
        distances: whether samples bring the distance from the surface of what is marked
        noise: what the loss would draw, where samples bring it
    """

    volumes: Sequence[TrainingVolume]
    recipe: Recipe
    seed: int
    statistics: Statistics
    crop: Crop | None = None
    located: bool = False
    augment: Augmentation | None = None
    drawn: DrawnVolumes | None = None
    lesion_free: LesionFree | None = None
    foreground: ForegroundCrops | None = None
    distances: bool = False
    noise: LossNoise | None = None

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        return self.sample(index, key=key(self.seed, epoch, index))

    def sample(self, index: int, *, key: int) -> Sample:
        """Volume number `index` under a key."""
        with _one_thread():
            subject = self._subject(index, key)
            starts = self._starts(subject, key)
            if not all(starts.values()):
                subject = replace(self, augment=None)._subject(index, key)
                starts = self._starts(subject, key)
            target = self.recipe.target(subject, atlas=self.statistics.atlas, key=key)
            d, h, w = target.x.shape[1:]
            place = None
            if self.crop is not None and self.located:
                place = self.crop.coordinates((d, h, w), key, starts)
            distance = None
            if self.distances:
                masks = self.recipe.shares(target.x[None])[0] > 0.5
                distance = surface_distances_mm(masks, spacing_mm=subject.spacing_mm)
            x = self._cut(target.x, key, starts)
            drawn = self.noise is not None and target.end is None
            return Sample(
                key,
                x,
                tuple(self._cut(image, key, starts) for image in target.images),
                target.label,
                _scalars(self.statistics.standardised(subject.attributes), target.scalar),
                place,
                *(
                    None if a is None else self._cut(a, key, starts)
                    for a in (target.mask, target.region, target.end, distance)
                ),
                self.noise.draw(x, key) if drawn else None,
                None if target.hidden is None else self._cut(target.hidden, key, starts),
            )

    def _cut(self, x: Tensor, key: int, starts: Starts = ANYWHERE) -> Tensor:
        return x if self.crop is None else self.crop.cut(x, key, starts)

    def _starts(self, subject: Subject, key: int) -> Starts:
        """Where the crop of a sample may begin."""
        rule, crop, label = self.lesion_free, self.crop, subject.label
        if crop is None or label is None:
            return ANYWHERE
        if self.foreground is not None:
            centre = self.foreground.centre(label, key)
            d, h, w = label.shape[1:]
            return ANYWHERE if centre is None else crop.around(centre, (d, h, w))
        if rule is None or not label.any():
            return ANYWHERE
        free, axis = rule.free(label, spacing_mm=subject.spacing_mm), rule.axis
        return {axis: rule.starts(free, size=crop.shape[axis], stride=crop.stride[axis])}

    def _subject(self, index: int, key: int) -> Subject:
        volume = self.volumes[index]
        wanted = self.recipe.needs_foreground
        donor = partial(self._donor, index) if wanted else None
        if self.drawn is not None and self.drawn.chosen(key):
            x, foreground, spacing = self.drawn.draw(key, augment=self.augment)
            return Subject(
                x, None, foreground if wanted else None, volume.attributes, spacing, donor
            )
        x, label, readers = volume.x, volume.array("label"), volume.array("readers")
        foreground = volume.foreground if wanted else None
        if self.augment is not None:
            changed = self.augment(
                x,
                key,
                spacing_mm=volume.spacing_mm,
                label=label,
                foreground=foreground,
                readers=readers,
            )
            x, label, foreground = changed.x, changed.label, changed.foreground
            readers = changed.readers
        return Subject(
            x,
            label,
            foreground,
            volume.attributes,
            volume.spacing_mm,
            donor,
            readers,
        )

    def _donor(self, index: int, key: int) -> Tensor:
        """Another volume of the same size; the volume itself where there is none."""
        others = [
            i
            for i, v in enumerate(self.volumes)
            if i != index and v.shape == self.volumes[index].shape
        ]
        chosen = others[int(uniform(key, "donor") * len(others))] if others else index
        return self.volumes[chosen].x


def _scalars(attributes: Tensor | None, own: float | None) -> Tensor | None:
    """What the network is told: the attributes of a case, then the scalar of its target."""
    if own is None:
        return attributes
    told = torch.tensor([own])
    return told if attributes is None else torch.cat([attributes, told])


@dataclass(frozen=True)
class Samples:
    """What a run trains and validates on.

    Arguments:
        dataset: training samples
        held: validation samples in the same form
        scans: validation volumes, whole and in voxels, the healthy ones where that matters
        sound: healthy validation volumes
        lesions: healthy validation volumes with a lesion each, if checkpoints are selected by them
    """

    dataset: Keyed
    held: Keyed
    scans: Keyed
    sound: Sequence[TrainingVolume] = ()
    lesions: Sequence[TrainingVolume] = ()


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch."""

    def stacked(name: str) -> Tensor | None:
        values = [getattr(s, name) for s in samples]
        return None if values[0] is None else torch.stack(values)

    images = tuple(torch.stack(each) for each in zip(*(s.images for s in samples), strict=True))

    labels = [s.label for s in samples]
    condition = Condition(
        label=None if labels[0] is None else torch.tensor(labels),
        scalars=stacked("scalars"),
        coordinates=stacked("coordinates"),
    )
    x = torch.stack([s.x for s in samples])
    names = ("mask", "region", "hidden", "end", "distance_mm", "noise")
    others = {name: stacked(name) for name in names}
    return Batch(x, tuple(s.key for s in samples), condition, images, **others)


def stream(
    dataset: Keyed,
    batches: Iterator[list[tuple[int, int]]],
    *,
    workers: int,
    device: torch.device | str = "cpu",
) -> Generator[Batch, None, None]:
    """Batches in order on a device, prepared by any number of worker processes.

    On a GPU they arrive by a stream of their own, while the batch before is computed on.

    A generator, so that closing it ends the workers at once: an iterator of DataLoader that
    outlives its loop keeps them, and the program, alive.
    """
    device = torch.device(device)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        timeout=PATIENCE if workers else 0,
        pin_memory=device.type == "cuda",
    )
    if device.type != "cuda":
        yield from (batch.to(device) for batch in loader)
        return
    copies = torch.cuda.Stream(device)
    for batch in loader:
        with torch.cuda.stream(copies):
            there = batch.to(device, non_blocking=True)
        here = torch.cuda.current_stream(device)
        here.wait_stream(copies)
        there.record_stream(here)
        yield there


def _start_worker(number: int) -> None:
    outlive_stop_signals()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and loader workers have one: so has everybody."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)
