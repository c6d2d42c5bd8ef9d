"""Volumes of the shift benchmark: two scanners, impure training sets, held-out lesions.

Site A is the simulated population as it is; site B sees the same kind of subjects through another
scanner. Test lesions are of the test family. The impure sets hold lesions of that family too: it
is the worst case of a healthy set, the very lesions that are to be found. Nothing is chosen on
them. Volumes that are called sick have lesions of the training family, another generator: what a
class teaches must carry over.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch

from volumediff.anomaly.method_input import Example
from volumediff.data._fields import smooth_noise
from volumediff.data.anomalies import TEST, TRAINING, GeneratorFamily, insert
from volumediff.data.grid import Grid
from volumediff.data.population import Population
from volumediff.data.volume import write
from volumediff.randomness import key, normal, uniform
from volumediff.runs.trained import Trained
from volumediff.storage.atomic import atomic

__all__ = ["SITES", "Item", "Scanner", "healthy_of", "items", "population_of", "write_training"]

# Files hold 1 to 1001 in the foreground and 0 outside, so that the mask survives in the file.
UNITS, OFFSET = 500.0, 1.0
EXTENT_MM = (160, 192, 160)
# First subject of each set; training subjects have the numbers below.
CALIBRATION, TESTED, DONORS = 20_000, 10_000, 30_000
BRIGHT, LEVEL = 0.98, 0.75  # quantile of the foreground, and where the population puts it
BIAS_MM = 40.0  # correlation length of a receive field


@dataclass(frozen=True)
class Scanner:
    """What another scanner does to intensities in [0, 1].

    Arguments:
        gamma: exponent of the tone curve, another contrast of the tissues
        bias: deviation of the logarithm of the field; half of it is the site's, half the subject's
        noise: added noise
    """

    gamma: float = 1.0
    bias: float = 0.0
    noise: float = 0.0

    def __call__(
        self,
        x: torch.Tensor,
        foreground: torch.Tensor,
        *,
        spacing_mm: tuple[float, float, float],
        site: int,
        subject: int,
    ) -> torch.Tensor:
        """The volume in [-1, 1] as the scanner gives it; all randomness is of the two keys."""
        d, h, w = (BIAS_MM / s for s in spacing_mm)
        shape = tuple(x.shape)
        fields = [smooth_noise(shape, (d, h, w), site, "bias")]
        fields.append(smooth_noise(shape, (d, h, w), site, "bias", subject))
        y = ((x + 1) / 2).clamp(min=0) ** self.gamma
        y = y * torch.exp(self.bias * (fields[0] + fields[1]) / 2**0.5)
        y = y + self.noise * normal(shape, site, "noise", subject)
        inside = y[foreground]
        bright = inside.kthvalue(max(1, round(BRIGHT * inside.numel()))).values
        y = (2 * LEVEL / bright * y - 1).clamp(-1, 1)
        return torch.where(foreground, y, -1.0)


SITES: dict[str, Scanner | None] = {
    "A": None,
    "B": Scanner(gamma=0.8, bias=0.15, noise=0.03),
    "B-contrast": Scanner(gamma=0.8),
    "B-bias": Scanner(bias=0.15),
    "B-noise": Scanner(noise=0.03),
}


@dataclass(frozen=True, eq=False)
class Item:
    """A test volume, with and without its lesion.

    Arguments:
        subject: number
        kind: of the lesion
        healthy, sick: the same volume without and with it
    """

    subject: int
    kind: str
    healthy: Example
    sick: Example


@cache
def population_of(seed: int, spacing: float) -> Population:
    """The population on a grid that holds the brain."""
    d, h, w = (round(mm / spacing) for mm in EXTENT_MM)
    return Population(seed, (d, h, w), (spacing, spacing, spacing))


@lru_cache(maxsize=64)
def scanned(population: Population, site: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A subject at a site, and its foreground."""
    subject = population.subject(number)
    scanner = SITES[site]
    if scanner is None:
        return subject.x, subject.foreground
    x = scanner(
        subject.x,
        subject.foreground,
        spacing_mm=population.spacing_mm,
        site=key(population.seed, "site"),
        subject=number,
    )
    return x, subject.foreground


def healthy_of(
    trained: Trained, population: Population, site: str, *, count: int
) -> Iterator[Example]:
    """Healthy volumes of a site to calibrate on."""
    for number in range(CALIBRATION, CALIBRATION + count):
        x, foreground = scanned(population, site, number)
        yield placed(trained, population, x, foreground, None)


def items(
    trained: Trained,
    population: Population,
    site: str,
    *,
    count: int,
    kinds: tuple[str, ...],
    wanted: Callable[[int, str], bool],
) -> Iterator[Item]:
    """Wanted test volumes of a site; the lesion is inserted in what the scanner gave."""
    for number in range(TESTED, TESTED + count):
        missing = [kind for kind in kinds if wanted(number, kind)]
        if not missing:
            continue
        x, foreground = scanned(population, site, number)
        donor, _ = scanned(population, site, number - TESTED + DONORS)
        healthy = placed(trained, population, x, foreground, None)
        for kind in missing:
            sick, truth = lesioned(population, x, foreground, kind, number, donor)
            yield Item(number, kind, healthy, placed(trained, population, sick, foreground, truth))


def lesioned(
    population: Population,
    x: torch.Tensor,
    foreground: torch.Tensor,
    kind: str,
    number: int,
    donor: torch.Tensor,
    family: GeneratorFamily = TEST,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume with a lesion, the same one at every site."""
    return insert(
        x,
        foreground,
        kind=kind,
        key=key(population.seed, "shift lesion", number, kind),
        spacing_mm=population.spacing_mm,
        family=family,
        donor=donor,
    )


def stored_of(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """The numbers in a file of a volume in [-1, 1]."""
    return ((x + 1) * UNITS + OFFSET) * foreground


def placed(
    trained: Trained,
    population: Population,
    x: torch.Tensor,
    foreground: torch.Tensor,
    truth: torch.Tensor | None,
) -> Example:
    # as the run reads it from a file
    rule, mask = trained.preprocessing.intensity, foreground[0].numpy()
    stored = stored_of(x, foreground)[0].numpy()
    y = rule.apply(stored, mask, limits=rule.limits(stored, mask))
    return trained.placed(
        torch.from_numpy(y)[None],
        foreground,
        population.spacing_mm,
        condition=trained.condition({}),
        truth=None if truth is None else truth[None],
    )


def write_training(
    folder: Path,
    population: Population,
    *,
    subjects: int,
    impure: float,
    sick: float,
    flipped: float,
    kinds: tuple[str, ...],
) -> Path:
    """Subjects of site A as files, with parts and classes in participants.tsv, written last.

    Arguments:
        impure: share of the training volumes with a lesion that are called healthy
        sick: share of the training volumes with a lesion that are called so
        flipped: share of the training volumes whose class is exchanged
    """
    if (folder / "participants.tsv").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tenths = {0: "validation", 1: "calibration", 6: "calibration"}
    parts = [tenths.get(i % 10, "train") for i in range(subjects)]
    training = [i for i, part in enumerate(parts) if part == "train"]

    def chosen(share: float, name: str) -> set[int]:
        # by rank: a larger share holds the smaller one
        order = sorted(training, key=lambda i: uniform(population.seed, name, i))
        return set(order[: round(share * len(order))])

    hidden, marked = chosen(impure, "impure"), chosen(sick, "sick")
    called_sick = marked ^ chosen(flipped, "flipped")
    lines = ["participant_id\tsplit\tgroup"]
    grid = Grid(population.shape, population.affine)
    for i in range(subjects):
        subject = population.subject(i)
        x = subject.x
        if i in hidden | marked:
            donor = population.subject((i + 1) % subjects).x
            kind, family = kinds[i % len(kinds)], TRAINING if i in marked else TEST
            x, _ = lesioned(population, x, subject.foreground, kind, i, donor, family)
        stored = stored_of(x, subject.foreground).numpy()
        write(folder / f"sub-{i:04d}_T1w.nii.gz", stored, like=grid, kind="image")
        lines.append(f"sub-{i:04d}\t{parts[i]}\t{'sick' if i in called_sick else 'healthy'}")
    with atomic(folder / "participants.tsv") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return folder
