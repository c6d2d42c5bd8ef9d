"""Inputs are held against what a run was trained on, in the same words by every command.

    files ─ CT, named contrast, preparation, voxels ─┐
    prepared volume ─ crop, size, likeness to the ───┴─▶ sentences; the absurd is refused
                      mean, intensities

Every difference is one sentence with the numbers and what to do. Only what is beyond doubt is
refused, unless the caller forces it: CT for a run of MRI, a volume of which the run's shape cuts
away more than a small part, one that has nothing in common with the training volumes or does not
lie where they all lie, and one that shows three times as much, or a third. A run says only what it
knows: a small cohort tells no spread, and volumes that lie anywhere no place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data.files import stem_of
from volumediff.data.layouts._roles import split_name
from volumediff.data.preprocessing import MOST_CROPPED, Prepared
from volumediff.data.volume import Volume
from volumediff.errors import DataError
from volumediff.samples.input_measures import (
    LEVELS,
    Likeness,
    VolumeMeasures,
    coarse,
    foreground_of,
    likeness,
    measured,
)
from volumediff.samples.input_profile import InputProfile, LikenessRecord, Range
from volumediff.samples.preparation_record import (
    RunPreparation,
    recorded_preparation,
    told_preparation,
)

__all__ = ["Accepted", "Difference", "InputGuard", "accepted", "looks_like_ct"]

# Air is -1000 HU and the lung -700; MRI has no voxels of that sign and size, whatever its scale.
AIR_HU = -500.0
# Least share of voxels below: scans of the body and the head are surrounded by air.
LEAST_AIR = 0.05
# Contrasts of MRI as data sets write them, in lower case; those of one name are the same.
MRI = {
    **dict.fromkeys(("t1", "t1w", "t1n"), "T1w"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd"), "T1w with contrast agent"),
    **dict.fromkeys(("t2", "t2w"), "T2w"),
    **dict.fromkeys(("flair", "t2f"), "FLAIR"),
    **dict.fromkeys(("pd", "pdw"), "PDw"),
    **dict.fromkeys(("dwi", "b1000"), "DWI"),
    "adc": "ADC",
    "mr": "MR",
}
# Training volumes below this number tell no spread.
LEAST_VOLUMES = 5
# Voxels of about 3 mm; on fewer no anatomy is seen.
LEAST_VOXELS = 1000
# Correlation with the healthy mean, of 41 files: T1w of six scanners .39 and more, of five of them
# and aligned .54 and more (two gliomas .55 and .80); FLAIR .25 to .64; T2w, DWI, ADC and CT below
# .2. Other contrasts of one run of T1w are all that was looked at. Training volumes that have
# little in common with each other ask for as little: half of what the least of them has.
LEAST_CORRELATION = 0.22
LEAST_OF_COHORT = 0.5
# Of the brighter half alone: aligned T1w .15 and more, FLAIR up to .38 and half of them below.
LEAST_TISSUE = 0.12
LEAST_OVERLAP = 0.75
# Foregrounds that overlap less, where those of all training volumes do by the number above.
UNALIGNED = 0.45
# Times the largest and the smallest of the cohort that is said, and the median that is refused.
SIZE_SAID, SIZE_REFUSED = 1.25, 3.0
# Quantiles of intensities beyond those of the cohort, as a share of the whole range.
MOST_SHIFT = 0.1
# Times the coarsest voxel of the cohort.
COARSER = 2.0


@dataclass(frozen=True)
class Difference:
    """Something about an input that the run does not know.

    Arguments:
        text: one sentence, with the numbers and what to do
        absurd: whether the input is refused for it
    """

    text: str
    absurd: bool = False


@dataclass(frozen=True)
class Accepted:
    """Differences of an input that is taken.

    Arguments:
        warnings: all of them
        forced: those that are refused without force
    """

    warnings: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()

    def __add__(self, other: "Accepted") -> "Accepted":
        return Accepted(self.warnings + other.warnings, self.forced + other.forced)


def accepted(differences: Sequence[Difference], *, force: bool) -> Accepted:
    """The differences of an input that is taken.

    Raises:
        DataError: one of them is absurd, and not forced
    """
    absurd = tuple(d.text for d in differences if d.absurd)
    if absurd and not force:
        raise DataError(f"{absurd[0]} The option force takes it nevertheless.")
    return Accepted(tuple(d.text for d in differences), absurd)


@dataclass(frozen=True, eq=False)
class InputGuard:
    """What a run knows of its inputs.

    Arguments:
        channels: names of its images; None where nobody has named them
        profile: of its training volumes
        preparation: what was done to them before
    """

    channels: tuple[str, ...] | None
    profile: InputProfile | None
    preparation: RunPreparation | None

    @classmethod
    def of_run(cls, run: Path, channels: Sequence[str] | None) -> "InputGuard":
        """What is recorded in the folder of a run.

        Arguments:
            channels: of its configuration

        Raises:
            DataError: a record is damaged
        """
        profile = InputProfile.load(run)
        names = None if channels is None else tuple(channels)
        if names is None and profile is not None:
            names = profile.record.channels
        return cls(names, profile, recorded_preparation(run))

    def of_channels(self, numbers: Sequence[int]) -> "InputGuard":
        """The same for volumes that hold these channels alone, in this order."""
        names = None if self.channels is None else tuple(self.channels[i] for i in numbers)
        profile = None if self.profile is None else self.profile.of_channels(numbers)
        return InputGuard(names, profile, self.preparation)

    def files(self, images: Sequence[Volume]) -> list[Difference]:
        """What differs about images as they were given, in the order of the channels."""
        return [
            *self._ct(images),
            *self._contrasts(images),
            *self._preparation(images),
            *self._voxels(images),
        ]

    def volume(self, ready: Prepared) -> list[Difference]:
        """What differs about an image as the model sees it."""
        found = list(_crop(ready))
        profile = self.profile
        if profile is None or profile.record.volumes < LEAST_VOLUMES:
            return found
        own = measured(ready.x, ready.foreground, ready.spacing_mm)
        x, inside = coarse(ready.x, ready.foreground, ready.spacing_mm)
        if inside.numel() < LEAST_VOXELS:
            return found
        return [*found, *self._measures(own, x, inside, profile)]

    def cohort(self, other: InputProfile) -> list[Difference]:
        """What differs about the training volumes of another run, as those of one that goes on
        from this one: about a volume with their medians, and their mean."""
        profile = self.profile
        if profile is None or profile.record.volumes < LEAST_VOLUMES:
            return []
        ranges = other.record.quantiles
        medians = VolumeMeasures(
            other.record.foreground_ml.median,
            tuple(tuple(r.median for r in channel) for channel in ranges),
        )
        inside = None if other.mean is None else foreground_of(other.mean)
        return list(self._measures(medians, other.mean, inside, profile))

    def _measures(
        self,
        own: VolumeMeasures,
        x: Float[Tensor, "c e i v"] | None,
        inside: Bool[Tensor, "1 e i v"] | None,
        profile: InputProfile,
    ) -> Iterator[Difference]:
        record = profile.record
        yield from _size(own.foreground_ml, record.foreground_ml)
        if x is not None and inside is not None and record.likeness is not None:
            if profile.mean is not None and x.shape == profile.mean.shape:
                yield from _unlike(likeness(x, inside, profile.mean), record.likeness)
        names = self.channels or [str(i + 1) for i in range(len(own.quantiles))]
        for name, values, ranges in zip(names, own.quantiles, record.quantiles, strict=True):
            yield from _intensities(name, values, ranges)

    def _ct(self, images: Sequence[Volume]) -> Iterator[Difference]:
        """CT, where the run names its channels and all of them are contrasts of MRI."""
        if not self.channels or not all(name.lower() in MRI for name in self.channels):
            return
        for image in images:
            if looks_like_ct(image):
                yield Difference(
                    f"{_called(image)} looks like CT in Hounsfield units, and the run was trained "
                    f"on {', '.join(self.channels)}: give MRI.",
                    absurd=True,
                )

    def _contrasts(self, images: Sequence[Volume]) -> Iterator[Difference]:
        for name, image in zip(self.channels or (), images, strict=False):
            word = _word(image)
            ours, theirs = MRI.get(name.lower()), MRI.get(word.lower())
            if ours and theirs and ours != theirs and "MR" not in (ours, theirs):
                yield Difference(
                    f"{_called(image)} is named {word}, and the run was trained on {name}: give "
                    "the contrast of the run, or a run of this contrast."
                )

    def _preparation(self, images: Sequence[Volume]) -> Iterator[Difference]:
        """What `prepare` did to a file, and somebody did or did not do to the run's volumes."""
        path, ours = images[0].path, self.preparation
        told = None if path is None else told_preparation(path.absolute().parent.parent)
        if told is None or ours is None:
            return
        differs = {
            "bias-corrected (N4)": (told.n4, ours.n4),
            "stripped of what is not brain": (told.stripped, ours.stripped),
            f"aligned to the template {ours.template}": (
                told.template == ours.template,
                ours.template is not None,
            ),
        }
        for words, (theirs, own) in differs.items():
            if theirs != own and not (ours.template is None and "template" in words):
                was, were = ("was not", "were") if own else ("was", "were not")
                yield Difference(
                    f"{_called(images[0])} {was} {words} by volumediff prepare, and the run's "
                    f"volumes {were}: prepare it again as the run was prepared (prepare with the "
                    "run)."
                )

    def _voxels(self, images: Sequence[Volume]) -> Iterator[Difference]:
        known = None if self.profile is None else self.profile.record.voxel_mm
        if known is None:
            return
        longest = max(max(image.native.spacing_mm) for image in images)
        if longest > COARSER * known.high:
            yield Difference(
                f"The voxels of the file are up to {longest:.3g} mm long, those of the run's "
                f"training volumes {_between(known)} mm: small structures cannot be seen; give a "
                "scan of such a resolution."
            )


def looks_like_ct(volume: Volume) -> bool:
    """Whether a volume has the air of a CT, in Hounsfield units."""
    return float(np.mean(volume.array < AIR_HU)) >= LEAST_AIR


def _crop(ready: Prepared) -> Iterator[Difference]:
    if ready.cropped <= MOST_CROPPED:
        return
    shape = " x ".join(map(str, ready.x.shape[1:]))
    spacing = " x ".join(f"{s:.3g}" for s in ready.spacing_mm)
    yield Difference(
        f"The run's {shape} voxels of {spacing} mm cut away {ready.cropped:.1%} of the "
        f"foreground, at most {MOST_CROPPED:.0%} is accepted: train with a larger shape or a "
        "coarser spacing_mm.",
        absurd=True,
    )


def _size(ml: float, known: Range) -> Iterator[Difference]:
    if known.low / SIZE_SAID <= ml <= known.high * SIZE_SAID:
        return
    more = ml > known.high
    absurd = not known.median / SIZE_REFUSED < ml < known.median * SIZE_REFUSED
    yield Difference(
        f"The foreground has {ml:.4g} ml, in the run's training volumes {_between(known)} ml: the "
        f"volume shows {'more' if more else 'less'} than they do; prepare it as the run was "
        "prepared.",
        absurd,
    )


def _unlike(alike: Likeness, known: LikenessRecord) -> Iterator[Difference]:
    """How little a volume has in common with the mean of the training volumes."""
    least = min(LEAST_CORRELATION, LEAST_OF_COHORT * known.correlation.low)
    if alike.correlation < least:
        yield Difference(
            "The volume has next to nothing in common with the run's training volumes "
            f"(correlation {alike.correlation:.2f} with their mean, their own is "
            f"{_between(known.correlation)}): another contrast, another organ, or not aligned; "
            "give a volume like them, prepared as the run was prepared.",
            absurd=True,
        )
    if alike.tissue < min(LEAST_TISSUE, known.tissue.low):
        yield Difference(
            "The brighter tissues do not have the contrast of the run's training volumes "
            f"(correlation {alike.tissue:.2f} with their mean, their own is "
            f"{_between(known.tissue)}): is this another contrast, such as FLAIR in place of T1w?"
        )
    if alike.overlap < min(LEAST_OVERLAP, known.overlap.low):
        aligned = known.overlap.low >= LEAST_OVERLAP
        yield Difference(
            f"The foreground overlaps by {alike.overlap:.0%} with the mean of the run's training "
            f"volumes, theirs by {100 * known.overlap.low:.0f} to {known.overlap.high:.0%}: the "
            "volume is not aligned as they are, or shows more or less; prepare it as the run was "
            "prepared.",
            absurd=aligned and alike.overlap < UNALIGNED,
        )


def _intensities(
    channel: str, values: Sequence[float], known: Sequence[Range]
) -> Iterator[Difference]:
    """The quantile that is farthest beyond those of the training volumes, as shares of the range
    from background to white."""
    beyond = [max(r.low - v, v - r.high) / 2 for v, r in zip(values, known, strict=True)]
    i = int(np.argmax(beyond))
    if beyond[i] <= MOST_SHIFT:
        return
    low, high = (known[i].low + 1) / 2, (known[i].high + 1) / 2
    yield Difference(
        f"In channel {channel}, {LEVELS[i]:.0%} of the foreground are darker than "
        f"{(values[i] + 1) / 2:.2f} of the intensity range, in the run's training volumes than "
        f"{low:.2f} to {high:.2f}: another contrast, scanner or bias correction; calibrate on "
        "healthy volumes of this kind as a site."
    )


def _between(known: Range) -> str:
    return f"{known.low:.3g} to {known.high:.3g}"


def _called(image: Volume) -> str:
    return "The image" if image.path is None else image.path.name


def _word(image: Volume) -> str:
    """What the name of a file says that it shows; may be empty."""
    return "" if image.path is None else split_name(stem_of(image.path))[1]
