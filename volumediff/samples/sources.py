"""Sources of training volumes: files or the simulated population, split and prepared.

Every case is prepared once and kept in the cache; processes share the work. The split is by
patient and stands in RUN/splits.json.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from volumediff.config import build, component
from volumediff.data.alignment_template import Template, mni152
from volumediff.data.cases import Case
from volumediff.data.files import contents
from volumediff.data.fingerprint import fingerprint
from volumediff.data.grid_attributes import with_spacing
from volumediff.data.label_maps import find_label_maps, prepare_label_map, structures_of
from volumediff.data.population import Population
from volumediff.data.preprocessing import MOST_CROPPED, Preprocessing
from volumediff.data.remarks import Remark
from volumediff.data.splits import Split, split_cases
from volumediff.data.survey import find_cases
from volumediff.distributed.processes import on_main, wait
from volumediff.errors import UsageError
from volumediff.recipes._base import Recipe
from volumediff.samples.drawn import DrawnVolumes, LabelMap
from volumediff.samples.label_checks import survey_labels, with_ignored
from volumediff.samples.label_names import keep_label_names
from volumediff.samples.landmarks import Landmarks, fit_landmarks, load_landmarks
from volumediff.samples.preparing import Made, Source, prepare_share
from volumediff.samples.seen_record import keep_seen
from volumediff.samples.source_record import keep_sources
from volumediff.samples.volumes import TrainingVolume
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import POPULATION, Data
from volumediff.storage.cache import Cache, CacheEntry
from volumediff.storage.digests import sha256

__all__ = [
    "cases_of",
    "drawn_volumes",
    "gather",
    "label_remarks",
    "plan_of",
    "preprocessing",
    "simulated",
    "split_of",
]

# To be raised when the simulated subjects come to look different for the same seed.
POPULATION_VERSION = 1
# To be raised when label maps come to be aligned in another way.
LABEL_MAP_VERSION = 1

SHOWN = 8  # values of an attribute that a message names


def preprocessing(data: Data, run: Path) -> Preprocessing:
    """The preprocessing of a run, with what was fitted for it.

    Raises:
        UsageError: intensities that are fitted, in a run that was not trained yet
        DataError: what was fitted is damaged
    """
    return plan_of(data, load_landmarks(run) if _fitted(data) else ())


def _fitted(data: Data) -> bool:
    """Whether the intensities are normalized by something that is fitted on training volumes."""
    spec = data.preprocessing.intensity
    rule = component("intensity", str(spec if isinstance(spec, str) else spec.get("name")))
    return "landmarks" in inspect.signature(rule).parameters


def plan_of(data: Data, landmarks: Landmarks = ()) -> Preprocessing:
    """The preprocessing of a configuration.

    Arguments:
        landmarks: that intensities were fitted to, for rules that are
    """
    section, derived = data.preprocessing, {"landmarks": landmarks} if _fitted(data) else {}
    where = "data.preprocessing.intensity"
    intensity = build("intensity", section.intensity, where=where, **derived)
    return Preprocessing(
        section.spacing(), section.shape, intensity, section.centre, policy=data.read
    )


def simulated(data: Data) -> Population:
    """The population of a configuration.

    Raises:
        UsageError: its grid is not given
    """
    spacing, shape = data.preprocessing.spacing(), data.preprocessing.shape
    if shape is None or spacing is None:
        raise UsageError(
            "data.root = population: needs data.preprocessing.shape and spacing_mm, for example "
            "shape=[64,64,64] and spacing_mm=3."
        )
    return Population(data.population.seed, shape, spacing)


def cases_of(data: Data) -> list[Case]:
    """All cases of the data set; simulated subjects are cases without files.

    Raises:
        UsageError: no data set is named
    """
    if data.root is None:
        raise UsageError(
            "data.root: expected the folder of the volumes, for example data.root=/path/to/data, "
            "or data.root=population for simulated subjects."
        )
    if data.root == POPULATION:
        if data.patients is not None:
            raise UsageError(
                "data.patients: every simulated subject is a patient of its own; leave it out."
            )
        names = [f"subject-{i:04d}" for i in range(data.population.subjects)]
        return [Case(name, name, {}) for name in names]
    found = find_cases(data.root, data.layout, data.channels)
    kept = [case for case in found if _wanted(case, data.only)]
    if not kept:
        there = sorted({name for case in found for name in case.attributes})
        there = [_with_values(name, found) if name in data.only else name for name in there]
        raise UsageError(
            f"data.only: none of {len(found)} cases has {dict(data.only)}; attributes are "
            f"{', '.join(there) or 'none'}."
        )
    if data.label_names:
        named = {value: name for name, value in data.label_names.items()}
        kept = [replace(case, names={**case.names, **named}) for case in kept]
    return kept if data.patients is None else data.patients.named(kept)


def _with_values(name: str, cases: Sequence[Case]) -> str:
    """An attribute with its commonest values, and how many cases have each."""
    counts = Counter(str(case.attributes[name]) for case in cases if name in case.attributes)
    listed = [f"{value}: {count}" for value, count in counts.most_common(SHOWN)]
    more = ", ..." if len(counts) > SHOWN else ""
    return f"{name} ({', '.join(listed)}{more})"


def _wanted(case: Case, only: Mapping[str, Any]) -> bool:
    """Whether each attribute named has one of its values; numbers are equal as numbers are."""
    for name, values in only.items():
        if case.attributes.get(name) not in (values if isinstance(values, tuple) else (values,)):
            return False
    return True


def split_of(cases: Sequence[Case], data: Data) -> Split:
    """The split of a configuration.

    Raises:
        UsageError: nothing is left for training
    """
    rule = data.split
    held = rule.validation + rule.calibration + rule.test
    if held >= 1:
        raise UsageError(f"data.split: fractions sum to {held:.3g}, nothing is left for training.")
    fractions = (1 - held, rule.validation, rule.calibration, rule.test)
    split = split_cases(
        cases,
        fractions,
        seed=rule.seed,
        by_attribute=rule.by_attribute,
        least_calibration=rule.least_calibration,
        fold=rule.fold,
        folds=rule.folds,
    )
    if not split.train:
        raise UsageError(
            f"data.split: none of {len(cases)} cases is left for training; lower its fractions."
        )
    return split


def gather(
    config: RunConfig,
    accelerator: Accelerator,
    cache: Cache,
    *,
    recipe: Recipe | None = None,
    fits: bool = True,
) -> tuple[list[TrainingVolume], list[TrainingVolume]]:
    """The prepared volumes for training and for validation.

    Arguments:
        recipe: whose labels must be in the data, which is checked once, before step 0, and whose
            ignored ones stay in the label maps
        fits: whether intensity landmarks are fitted here, if the intensities need some; those of
            another run are in the folder already otherwise

    Raises:
        UsageError: no data given, nothing to train on, or volumes that do not fit each other
        DataError: a file is refused
    """
    data, rank, world = config.data, accelerator.process_index, accelerator.num_processes
    cases = cases_of(data)
    kept = _kept_split(config.output, cases, cache.report)
    if recipe is not None and recipe.segments:  # maps alone are calibrated
        rule = data.split.model_copy(update={"least_calibration": 0})
        data = data.model_copy(update={"split": rule})
    split = kept or split_of(cases, data)
    cache.report(split.note(data.split.least_calibration))

    def keep() -> None:
        split.save(config.output / "splits.json")
        keep_seen(config, cases, split, kept=kept is not None)
        keep_label_names(config.output, cases)

    if recipe is not None and kept is None:
        on_main(accelerator, lambda: _check_labels(recipe, cases, split, data, cache.report))
    on_main(accelerator, keep)
    if fits and _fitted(data):
        on_main(accelerator, lambda: _fit(config, cases, split, cache.report))
    wanted = {*split.train, *split.validation}
    chosen = [case for case in cases if case.id in wanted]
    if recipe is not None:
        chosen = [with_ignored(case, recipe) for case in chosen]
    sources = _sources(chosen, config)
    made_from = {s.case.id: sha256(json.dumps(s.fingerprint, sort_keys=True)) for s in sources}
    on_main(accelerator, lambda: keep_sources(config.output, made_from, kept=kept is not None))
    # Each process prepares its share, then all of them open everything.
    prepare_share(sources, cache, rank=rank, world=world)
    wait(accelerator)
    volumes = {
        s.case.id: TrainingVolume(
            s.case.id,
            with_spacing(s.case.attributes, config.data.preprocessing.spacing()),
            cache.entry(s.case.id, s.fingerprint, s.make),
            tuple(s.case.images),
        )
        for s in sources
    }
    _check_shapes(config, list(volumes.values()))
    loss = _cropping(list(volumes.values()))
    if loss:
        cache.report(loss)
    return [volumes[i] for i in split.train], [volumes[i] for i in split.validation]


def label_remarks(config: RunConfig, cases: Sequence[Case]) -> list[Remark]:
    """What a configuration would say about the labels of cases.

    Raises:
        DataError: a label map is refused
        UsageError: its recipe cannot be built
    """
    section = config.dump().get("recipe")
    if section is None:
        return []
    recipe = build("recipe", section, where="recipe")
    return list(survey_labels(recipe, cases, plan_of(config.data, ())).remarks)


def _check_labels(
    recipe: Recipe,
    cases: Sequence[Case],
    split: Split,
    data: Data,
    report: Callable[[str], None],
) -> None:
    """Refuses data that a recipe of labels cannot learn from, before they are prepared.

    Raises:
        UsageError: label maps are missing, or labels are absent or lost
        DataError: a label map is refused
    """
    if data.root == POPULATION or not recipe.needs_labels:
        return
    used = {*split.train, *split.validation}
    found = survey_labels(recipe, [c for c in cases if c.id in used], plan_of(data, ()))
    for remark in found.remarks:
        if remark.severity != "error":
            report(remark.message)
    found.require()


def _kept_split(run: Path, cases: Sequence[Case], report: Callable[[str], None]) -> Split | None:
    """The split that a run was trained with: new cases must not move held-out patients.

    Raises:
        UsageError: a case of the split is gone
    """
    # An imported run has weights, and no step of training that would have had a split.
    if all(path.name == "last-00000000" for path in (run / "checkpoints").glob("last-*")):
        return None
    split = Split.load(run / "splits.json")
    parts = (split.train, split.validation, split.calibration, split.test)
    known, found = {i for part in parts for i in part}, {case.id for case in cases}
    if gone := sorted(known - found):
        raise UsageError(
            f"{run}: case {gone[0]} of its splits.json is not in the data any more; bring it "
            "back, or start another run with output=DIR."
        )
    if new := sorted(found - known):
        report(f"{len(new)} cases are new since the run began and not used: {new[0]}")
    return split


def _fit(
    config: RunConfig, cases: Sequence[Case], split: Split, report: Callable[[str], None]
) -> None:
    """Fits the intensities of a run on its training part."""
    if config.data.root == POPULATION:
        raise UsageError(
            "data.preprocessing.intensity: histogram is fitted on files, and simulated subjects "
            "have none; use percentile."
        )
    training = [case for case in cases if case.id in set(split.train)]
    fit_landmarks(config.output, plan_of(config.data, ()), training, report)


def _sources(cases: Sequence[Case], config: RunConfig) -> list[Source]:
    data = config.data
    if data.root == POPULATION:
        population = simulated(data)
        described = {
            "population": POPULATION_VERSION,
            "seed": population.seed,
            "shape": population.shape,
            "spacing_mm": population.spacing_mm,
            "variation": asdict(population.variation),
        }
        return [
            Source(case, {**described, "subject": case.id}, partial(_simulate, population, case))
            for case in cases
        ]
    recipe = preprocessing(data, config.output)
    return [
        Source(case, {"files": fingerprint(case, recipe)}, partial(_prepare, recipe, case))
        for case in cases
    ]


def drawn_volumes(
    config: RunConfig, accelerator: Accelerator, cache: Cache
) -> DrawnVolumes | None:
    """What training samples are drawn from, if the configuration asks for some.

    Raises:
        UsageError: volumes of several channels, or no grid
        DataError: a label map is refused
    """
    data = config.data
    section = data.drawn
    if section is None or not section.share:
        return None
    if data.channel_count > 1:
        raise UsageError(
            f"data.drawn: draws volumes of one channel, and data.channels names "
            f"{data.channel_count}; leave data.drawn out."
        )
    if data.preprocessing.shape is None or data.preprocessing.spacing_mm is None:
        raise UsageError("data.drawn: needs data.preprocessing.shape and spacing_mm.")
    recipe = preprocessing(data, config.output)
    template, maps = mni152(), []
    paths = find_label_maps(section.label_maps)
    described = f"{LABEL_MAP_VERSION} {template.digest} {recipe.spacing_mm} {recipe.shape}"

    def entry(path: Path) -> CacheEntry:
        facts = {"label map": sha256(*contents(path)), "grid": described}
        return cache.entry(
            path.name.partition(".")[0], facts, partial(_mapped, path, template, recipe)
        )

    for path in paths[accelerator.process_index :: accelerator.num_processes]:
        entry(path)
    wait(accelerator)
    for path in paths:
        found = entry(path)
        numbers = found.load("numbers")
        assert numbers is not None, "stored"
        maps.append(LabelMap(found, tuple(structures_of(numbers, path))))
    contrast = build("contrast", section.contrast, where="data.drawn.contrast")
    return DrawnVolumes(tuple(maps), section.share, contrast, section.drawing, recipe.intensity)


def _mapped(path: Path, template: Template, recipe: Preprocessing) -> Made:
    arrays, spacing, _ = prepare_label_map(path, template, recipe)
    return arrays, {"spacing_mm": list(spacing)}


def _prepare(recipe: Preprocessing, case: Case) -> Made:
    prepared = recipe.prepare(case)
    arrays = {"x": prepared.x.numpy(), "foreground": prepared.foreground.numpy()}
    if prepared.label is not None:
        arrays["label"] = prepared.label.numpy()
    if prepared.readers is not None:
        arrays["readers"] = prepared.readers.numpy()
    return arrays, {
        "spacing_mm": list(prepared.spacing_mm),
        "cropped": prepared.cropped,
        "file_spacing_mm": list(prepared.record.native.spacing_mm),
    }


def _simulate(population: Population, case: Case) -> Made:
    subject = population.subject(int(case.id.rpartition("-")[2]))
    arrays = {"x": subject.x.numpy(), "foreground": subject.foreground.numpy()}
    return arrays, {"spacing_mm": list(population.spacing_mm)}


def _cropping(volumes: Sequence[TrainingVolume]) -> str:
    """How many volumes lose more of their foreground than localization accepts; may be empty."""
    cropped = {v.id: float(v.entry.info["cropped"]) for v in volumes}
    over = sorted((i for i, c in cropped.items() if c > MOST_CROPPED), key=cropped.__getitem__)
    if not over:
        return ""
    return (
        f"{len(over)} of {len(volumes)} volumes lose more than {MOST_CROPPED:.0%} of their "
        f"foreground to the shape of the run, {over[-1]} {cropped[over[-1]]:.1%}; localization "
        "refuses such volumes: make data.preprocessing.shape larger or spacing_mm coarser."
    )


def _check_shapes(config: RunConfig, volumes: Sequence[TrainingVolume]) -> None:
    """Volumes must fit into one batch and into what the network was built for."""
    channels = config.data.channel_count
    shapes = {v.id: v.shape for v in volumes}
    for name, (c, *size) in shapes.items():
        if c != channels:
            raise UsageError(
                f"data.channels: case {name} has {c} channels, expected {channels}; name the "
                "channels, for example data.channels=[T1w,FLAIR]."
            )
        if config.crop and any(n > m for n, m in zip(config.crop, size, strict=True)):
            raise UsageError(
                f"crop {list(config.crop)} is larger than case {name} with {size} voxels; lower "
                "it, or pad the volumes with data.preprocessing.shape."
            )
    if config.crop is None and config.optim.batch_size > 1 and len(set(shapes.values())) > 1:
        raise UsageError(
            "volumes have different shapes: set data.preprocessing.shape (and spacing_mm), crop, "
            "or optim.batch_size=1."
        )
