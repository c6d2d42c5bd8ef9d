"""Quality of label maps by sampler and number of steps, with perfect networks: seconds of CPU.

    python benchmarks/label_samplers.py [--size 12] [--samples 400]

What a sampler costs is not what a network has learnt: here the network's answer is exact, so that
all that is lost is the sampler's. Two laws of label maps in 3D:

voxels   independent, each in the label with a chance of 1 %: T9 of the reference
shapes   one of many maps: a ball somewhere, and in one of ten a small satellite beside it. The
         exact answer is the mean over all maps that the state leaves possible, voxel by voxel
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from volumediff.condition import Condition
from volumediff.kernels._base import Kernel, Prediction
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.randomness import normal
from volumediff.samplers._base import Sampler
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.discrete_ddim import DiscreteDDIM
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.heun import Heun
from volumediff.samplers.plms import PLMS
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine

STEPS = (2, 5, 10, 20, 50)
RARE = 0.01
SATELLITE = 0.1
SCHEDULE = Cosine(zero_terminal_snr=True)
GAUSSIAN, BITS = Gaussian(SCHEDULE), Discrete(SCHEDULE)
SAMPLERS: dict[str, tuple[Kernel, Callable[[int], Sampler]]] = {
    "ancestral (DDPM)": (GAUSSIAN, Ancestral),
    "ddim": (GAUSSIAN, DDIM),
    "heun (2 calls a step)": (GAUSSIAN, Heun),
    "plms": (GAUSSIAN, PLMS),
    "dpmpp": (GAUSSIAN, DPMSolverPP),
    "bits, ancestral, likeliest": (BITS, Ancestral),
    "bits, ancestral, mean": (BITS, lambda n: Ancestral(n, mean=True)),
    "bits, discrete_ddim, mean": (BITS, lambda n: DiscreteDDIM(n, mean=True)),
    "bits, discrete_ddim, share 0, mean": (BITS, lambda n: DiscreteDDIM(n, share=0.0, mean=True)),
}


@dataclass(frozen=True)
class Quality:
    """What came out of a sampler, of an exact network.

    Arguments:
        rare: what is rare, relative to the truth: mean membership of voxels, or share of the maps
            with a satellite
        dice: mean Dice with the nearest possible map; 1 where voxels are independent
        undecided: share of voxels further than 0.1 from either code, of their distance
    """

    rare: float
    dice: float
    undecided: float


def evidence(kernel: Kernel, t: Tensor, z: Tensor) -> Tensor:
    """Log-odds that a state voxel of value 1 gives for the label: they are linear in the state."""
    alpha, sigma = (per_sample(level, z) for level in kernel.schedule(t))
    if kernel.classes is None:
        return 2 * alpha / sigma.square()
    kept = alpha.square()
    return torch.log((1 + kept) / (1 - kept).clamp(min=1e-12))


def read(kernel: Kernel, p: Tensor, z: Tensor, t: Tensor) -> Prediction:
    """A network that gives the probabilities p of the label."""
    if kernel.classes is None:
        return Prediction.from_x0(2 * p - 1, z, *kernel.schedule(t))
    return kernel.predict(torch.logit(p.clamp(1e-12, 1 - 1e-12)), z, t)


def independent(kernel: Kernel) -> Callable[[Tensor, Tensor, Condition], Prediction]:
    """The exact answer for voxels that are apart."""
    odds = math.log(RARE / (1 - RARE))

    def denoise(z: Tensor, t: Tensor, condition: Condition) -> Prediction:
        return read(kernel, torch.sigmoid(odds + evidence(kernel, t, z) * z), z, t)

    return denoise


def shapes(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """All possible maps (n, size³) in -1 and 1, their chances, and which have a satellite."""
    line = torch.arange(size).double()
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    radius, small = 0.24 * size, 0.1 * size
    places = [size * f for f in (0.36, 0.5, 0.64)]
    maps, sick = [], []
    for centre in ((a, b, c) for a in places for b in places for c in places):
        away = (points - torch.tensor(centre).view(3, 1, 1, 1)).square().sum(0).sqrt()
        beside = [
            c + s * (radius + small) / 3**0.5 for c, s in zip(centre, (1, -1, 1), strict=True)
        ]
        near = (points - torch.tensor(beside).view(3, 1, 1, 1)).square().sum(0).sqrt()
        ball, satellite = away <= radius, near <= small
        maps += [ball, ball | satellite]
        sick += [False, True]
    chance = torch.tensor([SATELLITE if s else 1 - SATELLITE for s in sick]).double()
    masks = torch.stack(maps).flatten(1).double() * 2 - 1
    return masks, chance / chance.sum(), torch.tensor(sick)


def possible(
    kernel: Kernel, masks: Tensor, chance: Tensor
) -> Callable[[Tensor, Tensor, Condition], Prediction]:
    """The exact answer where one of some maps is true: their mean, weighted by the state."""

    def denoise(z: Tensor, t: Tensor, condition: Condition) -> Prediction:
        fit = (evidence(kernel, t, z) / 2 * z).flatten(1) @ masks.T
        weights = torch.softmax(fit + chance.log(), dim=1)
        p = (weights @ ((masks + 1) / 2)).view(z.shape)
        return read(kernel, p, z, t)

    return denoise


def drawn(sampler: Sampler, kernel: Kernel, denoise: Callable, shape: tuple[int, ...]) -> Tensor:
    """Samples of a chain, in float64."""

    def noise(step: int) -> Tensor:
        return normal(shape, "label samplers", step, dtype=torch.float64)

    return sampler.sample(
        denoise, kernel, kernel.prior(noise(-1)), sampler.times(SCHEDULE), noise=noise
    )


def of_voxels(name: str, steps: int, size: int) -> Quality:
    """Independent voxels, as one volume four times as long as it is wide."""
    kernel, make = SAMPLERS[name]
    z = drawn(make(steps), kernel, independent(kernel), (1, 1, 4 * size, 2 * size, 2 * size))
    share = float(((z + 1) / 2).clamp(0, 1).mean()) / RARE
    return Quality(share, 1.0, float((z.abs() - 1).abs().gt(0.2).double().mean()))


def of_shapes(name: str, steps: int, size: int, samples: int) -> Quality:
    """Samples of a ball that may have a satellite."""
    kernel, make = SAMPLERS[name]
    masks, chance, sick = shapes(size)
    z = drawn(
        make(steps), kernel, possible(kernel, masks, chance), (samples, 1, size, size, size)
    ).flatten(1)
    found, known = (z > 0).double(), (masks > 0).double()
    dice = 2 * found @ known.T / (found.sum(1)[:, None] + known.sum(1)[None]).clamp(min=1)
    best, nearest = dice.max(1)
    rate = float(sick[nearest].double().mean()) / SATELLITE
    undecided = (z.abs() - 1).abs().gt(0.2).double().mean()
    return Quality(rate, float(best.mean()), float(undecided))


def rows(size: int, samples: int, steps: tuple[int, ...] = STEPS) -> Iterator[str]:
    """A table in Markdown: rare voxels %, satellites %, Dice with the nearest possible map."""
    yield "| sampler | " + " | ".join(f"{n} steps" for n in steps) + " |"
    yield "|---" * (len(steps) + 1) + "|"
    for name in SAMPLERS:
        cells = []
        for n in steps:
            voxels, maps = of_voxels(name, n, size), of_shapes(name, n, size, samples)
            cells.append(f"{voxels.rare:.2f} · {maps.rare:.2f} · {maps.dice:.3f}")
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=12, help="voxels along each axis")
    parser.add_argument("--samples", type=int, default=400, help="label maps per cell")
    given = parser.parse_args()
    print("rare voxels · maps with a satellite (both relative to the truth) · Dice")
    for row in rows(given.size, given.samples):
        print(row, flush=True)


if __name__ == "__main__":
    main()
