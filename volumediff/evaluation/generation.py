"""Generated volumes against real ones: are they alike, as varied, and new?

Every volume is read once and reduced to a few kilobytes; of the others two are in memory at a
time, a volume and the one before it, for the similarity of pairs. Volumes follow each other in a
random circle, in which each is in two pairs.

Distances between generated and real volumes stand beside those between two random halves of the
real ones, which are what a perfect model would have with half as many volumes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from volumediff.data.cases import Case
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.generation_case import VolumeSummary, summary_of
from volumediff.evaluation.generation_copies import Copy, Neighbours, neighbours_of
from volumediff.evaluation.generation_features import VolumeFeatures, features_of
from volumediff.evaluation.generation_measures import Comparison, compared
from volumediff.evaluation.generation_volumes import (
    ComparedVolume,
    VolumeSet,
    check_form,
    real_volumes,
    volumes_in,
)
from volumediff.evaluation.output_folders import sidecar
from volumediff.metrics.memorization import MemorizationTest
from volumediff.metrics.ms_ssim import ms_ssim, scales_of
from volumediff.metrics.power_spectrum import frequencies
from volumediff.randomness import key
from volumediff.runs.trained import Trained

__all__ = ["GenerationEvaluation", "evaluate_generated"]

LEAST = 2  # volumes that have a distance at all
# Shared by the intensities of generated and real volumes, at least: [0, 1] and [-1, 1] share less.
OVERLAP = 0.35


@dataclass(frozen=True, eq=False)
class GenerationEvaluation:
    """Generated volumes beside real ones.

    Arguments:
        method: name of the folder
        folder: of the generated volumes
        generated, real: numbers of volumes that are compared
        measures: what was measured, in the order of a table
        features: what the vectors are; empty without
        memorization: by `voxels` and by `features`, as far as there are held-out volumes
        copies: samples that are flagged
        frequencies: in cycles per millimetre
        power: `generated` and `real` -> mean log10 power by frequency of every volume
        quantiles: the same -> mean quantiles of the intensities, see `generation_case.LEVELS`
        notes: what a reader must know, one sentence each
    """

    method: str
    folder: Path
    generated: int
    real: int
    measures: Mapping[str, Comparison]
    features: str
    memorization: Mapping[str, MemorizationTest]
    copies: Sequence[Copy]
    frequencies: Sequence[float]
    power: Mapping[str, Float[np.ndarray, "n s"]]
    quantiles: Mapping[str, Float[np.ndarray, "c q"]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class _Side:
    """Summaries of volumes, and the similarity of neighbours in the circle."""

    summaries: Sequence[VolumeSummary]
    similarity: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class _Reading:
    """How volumes are read and summarised."""

    features: VolumeFeatures | None
    seed: int
    report: Callable[[str], None]

    def circle(
        self, volumes: VolumeSet, span: float, check: Callable[[ComparedVolume], None]
    ) -> _Side:
        """Summaries in the order of the cases, and the similarity of neighbours."""
        order = np.random.default_rng(key(self.seed, "circle")).permutation(len(volumes.cases))
        found: dict[int, VolumeSummary] = {}
        similarity: list[float] = []
        before: ComparedVolume | None = None
        # The first volume is read again in the end: a third one is never held.
        for place, index in enumerate([*order, order[0]]):
            volume = volumes.read(volumes.cases[index])
            if place < len(order):
                check(volume)
                found[index] = summary_of(volume, self.features)
            pairs = place > 1 or (place == 1 and len(order) > 1)
            if before is not None and pairs and scales_of(tuple(volume.x.shape[1:])):
                similarity.append(ms_ssim(before.x, volume.x, span=span))
            before = volume
            if place % 20 == 19:
                self.report(f"{volumes.place}: {place + 1} of {len(order)} volumes are read")
        return _Side([found[i] for i in range(len(order))], similarity)


def evaluate_generated(
    folders: Sequence[Path | str],
    real: Path | str,
    *,
    trained: Trained | None = None,
    features: Path | str | None = None,
    training: Path | str | None = None,
    layout: Spec = AUTO,
    policy: ReadPolicy = ReadPolicy(),  # noqa: B008 - frozen
    device: str = "cpu",
    seed: int = 0,
    replicates: int = 1000,
    report: Callable[[str], None] = lambda line: None,
) -> list[GenerationEvaluation]:
    """Compares folders of generated volumes, each of one model, with real volumes.

    Arguments:
        folders: of generated volumes
        real: data set of real volumes, in any layout
        trained: run that drew the samples; real volumes are prepared as it asks, and those that it
            was trained on are known
        features: see `generation_features.features_of`
        training: data set that the model was trained on, where no run says it
        layout: of the real volumes
        policy: decisions on ambiguous files
        device: that networks of features run on
        seed: of everything that is drawn
        replicates: of the bootstrap, and number of permutations
        report: receives progress

    Raises:
        UsageError: arguments that do not fit
        DataError: too few volumes, or volumes that cannot be compared
    """
    places = [Path(folder) for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder of volumes, nothing is there.")
    source = None if features is None else features_of(features, trained=trained, device=device)
    reading = _Reading(source, seed, report)
    everything = real_volumes(real, layout=layout, policy=policy, trained=trained)
    one_each = everything.only(everything.by_patient)
    if len(one_each.cases) < LEAST:
        raise DataError(
            f"{real}: expected volumes of at least {LEAST} patients, got {len(one_each.cases)}."
        )
    first = one_each.read(one_each.cases[0])
    span = 2.0 if trained is not None else max(float(first.x.max() - first.x.min()), 1e-6)
    # Samples of a run that takes volumes at any spacing have none.
    unknown = trained is not None and trained.config.data.preprocessing.spacing_mm is None
    spacing = first.spacing_mm if unknown else None
    remedy = _remedy(places, trained)

    def check(volume: ComparedVolume) -> None:
        check_form(volume, first, of=str(real), remedy=remedy)

    theirs = reading.circle(one_each, span, check)
    neighbours = _neighbours(everything, theirs, reading, trained, training, policy, check)
    found = []
    for folder in places:
        volumes = volumes_in(folder, layout=AUTO, policy=policy, spacing_mm=spacing)
        if len(volumes.cases) < LEAST:
            raise DataError(f"{folder}: expected at least {LEAST} volumes, got one; draw more.")

        def check_sample(volume: ComparedVolume, of: Path = folder) -> None:
            check_form(volume, first, of=str(of), remedy=remedy)

        mine = reading.circle(volumes, span, check_sample)
        _check_intensities(folder, mine, theirs, remedy)
        notes = [
            f"{len(mine.summaries)} generated and {len(theirs.summaries)} real volumes; of each "
            "patient one is compared."
        ]
        measures, remarks = compared(
            mine.summaries,
            theirs.summaries,
            similarity=(mine.similarity, theirs.similarity),
            shape=tuple(first.x.shape[1:]),
            spacing_mm=first.spacing_mm,
            seed=seed,
            replicates=replicates,
        )
        tests, copies = neighbours.of(mine.summaries) if neighbours.known else ({}, [])
        found.append(
            GenerationEvaluation(
                method=folder.name or str(folder),
                folder=folder,
                generated=len(mine.summaries),
                real=len(theirs.summaries),
                measures=measures,
                features="" if source is None else source.name,
                memorization=tests,
                copies=copies,
                frequencies=frequencies(tuple(first.x.shape[1:]), first.spacing_mm),
                power={n: _log_power(s) for n, s in (("generated", mine), ("real", theirs))},
                quantiles={
                    n: np.mean([v.quantiles for v in s.summaries], axis=0)
                    for n, s in (("generated", mine), ("real", theirs))
                },
                notes=[*notes, *remarks, *neighbours.notes],
            )
        )
    return found


def _log_power(side: _Side) -> Float[np.ndarray, "n s"]:
    return np.log10(np.maximum([s.power for s in side.summaries], 1e-30))


def _remedy(folders: Sequence[Path], trained: Trained | None) -> str:
    """What to do where volumes cannot be compared."""
    if trained is not None:
        return "draw samples of the size that the run was trained with, or name their own run"
    files = [file for folder in folders for file in sorted(folder.glob("*_image.nii.gz"))[:1]]
    runs = [str(sidecar(file)["run"]) for file in files if "run" in sidecar(file)]
    run = runs[0] if runs else "that drew them"
    return f"give the run {run}, which prepares real volumes, or resample and rescale one of them"


def _check_intensities(folder: Path, mine: _Side, theirs: _Side, remedy: str) -> None:
    """Raises DataError where generated and real intensities mean different things."""
    ends = []
    for side in (mine, theirs):
        quantiles = np.mean([s.quantiles for s in side.summaries], axis=0)
        ends.append((quantiles[:, 2], quantiles[:, -3]))  # 1 % and 99 %
    (low, high), (real_low, real_high) = ends
    shared = np.minimum(high, real_high) - np.maximum(low, real_low)
    both = np.maximum(np.maximum(high, real_high) - np.minimum(low, real_low), 1e-12)
    worst = int(np.argmin(shared / both))
    if shared[worst] / both[worst] < OVERLAP:
        raise DataError(
            f"{folder}: expected intensities as in the real volumes, from {real_low[worst]:.3g} "
            f"to {real_high[worst]:.3g}, got {low[worst]:.3g} to {high[worst]:.3g} (1 % and 99 % "
            f"of the voxels of channel {worst}); {remedy}."
        )


def _neighbours(
    real: VolumeSet,
    known: _Side,
    reading: _Reading,
    trained: Trained | None,
    training: Path | str | None,
    policy: ReadPolicy,
    check: Callable[[ComparedVolume], None],
) -> Neighbours:
    """The training and held-out volumes; those that are summarised already are not read again."""
    there = {s.case: s for s in known.summaries}

    def summary(volumes: VolumeSet, case: Case) -> VolumeSummary:
        if volumes is real and case.id in there:
            return there[case.id]
        volume = volumes.read(case)
        check(volume)
        return summary_of(volume, reading.features)

    source = None
    if training is not None:
        source = real_volumes(training, layout=AUTO, policy=policy, trained=trained)
    return neighbours_of(real, source, trained=trained, summary=summary)
