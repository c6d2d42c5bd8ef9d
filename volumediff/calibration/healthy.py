"""Healthy volumes that a run is calibrated on: its own, and those added when it was finished.

The added ones have never been seen by the weights: `add_healthy` compares them with RUN/seen.json,
and writes them into it, so that an evaluation refuses them later. They are prepared as the run's
own are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from volumediff.anomaly.method_input import Example
from volumediff.data.cases import Case, safe_id
from volumediff.data.files import digests, stem_of
from volumediff.data.seen import Seen, roster
from volumediff.data.survey import AUTO, Spec
from volumediff.errors import DataError, UsageError
from volumediff.runs.added_healthy import StoredCase, added_cases, keep_added
from volumediff.runs.inputs import find_inputs, prepared_case
from volumediff.runs.trained import Trained
from volumediff.samples import seen_record

__all__ = [
    "HealthyPool",
    "add_healthy",
    "healthy_pool",
    "outside_example",
]


@dataclass(frozen=True, eq=False)
class HealthyPool:
    """The volumes of a calibration.

    Arguments:
        trained: the run
        own: cases of its split
        added: cases that were added to it
        where: where they come from, in words
    """

    trained: Trained
    own: Sequence[Case]
    added: Sequence[StoredCase]
    where: str

    def __len__(self) -> int:
        return len(self.own) + len(self.added)

    def examples(self) -> Iterator[Example]:
        """The volumes, one at a time; those with a marked lesion are left out.

        Raises:
            DataError: a file that was added is gone, or is another one by now
        """
        for case in self.own:
            example = self.trained.example(case)
            if not example.lesioned:
                yield example
        for stored in self.added:
            case = _verified(stored)
            yield outside_example(self.trained, case)[0]


def outside_example(trained: Trained, case: Case) -> tuple[Example, list[str]]:
    """A case from outside of the run's data, prepared as these are, and what differs about it.

    Raises:
        DataError: a file is refused, or is plainly none that the run was trained for
    """
    prepared, differences = prepared_case(trained, case)
    absurd = next((d.text for d in differences if d.absurd), None)
    if absurd is not None:
        raise DataError(f"healthy volumes: case {case.id}: {absurd} Leave it out.")
    condition = trained.condition(case.attributes)
    example = trained.placed(
        prepared.x, prepared.foreground, prepared.spacing_mm, condition=condition
    )
    return example, [f"{case.id}: {difference.text}" for difference in differences]


def healthy_pool(trained: Trained, *, limit: int | None = None) -> HealthyPool:
    """The calibration part of a run and what was added to it; the validation part where there is
    neither. A run that does not know its volumes, such as an imported one, has the added ones.

    Arguments:
        limit: most volumes to use

    Raises:
        UsageError: the run's data are not reachable
        DataError: the record of added volumes is damaged
    """
    added = added_cases(trained.run)
    if not trained.names_volumes:
        return HealthyPool(trained, (), added[:limit], "all added")
    own = trained.cases("calibration")
    where = "calibration split"
    if added:
        where = f"{len(own)} of the calibration split, {len(added)} added"
    elif not own:
        own, where = trained.cases("validation"), "validation split"
    own = own[:limit]
    rest = None if limit is None else limit - len(own)
    return HealthyPool(trained, own, added[:rest], where)


def add_healthy(
    trained: Trained,
    source: Path | str | Sequence[Path | str],
    *,
    channels: Sequence[str] | None = None,
    layout: Spec = AUTO,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Adds healthy volumes to the calibration of a run; those that are there already stay.

    Arguments:
        trained: the run
        source: volumes, folders or datalists of healthy subjects
        channels: names of the images; None takes those of the run
        layout: of the folders
        report: receives what differs about them

    Returns:
        how many are new

    Raises:
        UsageError: nothing there, or a volume that the run, or one that it is made from, has seen
        DataError: a case cannot be used, or a record of the run is damaged
    """
    cases, bad = find_inputs(
        source,
        channels=trained.image_names(channels),
        layout=layout,
        patients=trained.config.data.patients,
    )
    if bad:
        name, reason = next(iter(bad.items()))
        raise DataError(f"healthy volumes: case {name}: {reason}; correct or remove it.")
    before, seen = added_cases(trained.run), seen_record.seen_by(trained.run)
    known = {frozenset(case.sha256.values()) for case in before}
    fresh: list[tuple[Case, dict[str, str]]] = []
    for case in cases:
        found = digests(case)
        if frozenset(found.values()) in known:
            continue
        stems = (safe_id(stem_of(path)) for path in case.images.values())
        names = {case.id, *stems} - {safe_id(name) for name in case.images}
        match = seen.find(digests=found.values(), patients=[case.patient], names=names)
        if match is not None:
            raise UsageError(
                f"healthy volumes: {case.id} was seen before (its {match.by} in {match.part} of "
                f"{match.of}), and would look more normal than a new volume; leave it out."
            )
        # refused now, and not by the first calibration
        for line in outside_example(trained, case)[1]:
            report(line)
        known.add(frozenset(found.values()))
        fresh.append((case, found))
    if not fresh:
        return 0
    stored = [
        StoredCase(
            id=case.id,
            patient=case.patient,
            images={n: str(p.resolve()) for n, p in case.images.items()},
            sha256=found,
            attributes=case.attributes,
        )
        for case, found in fresh
    ]
    of = f"healthy volumes added to {trained.run}"
    more = Seen((roster(of, {"calibration": [case for case, _ in fresh]}),))
    # A volume in the first file alone is refused as seen: no calibration can use it unrecorded.
    added = trained.run / seen_record.ADDED
    (Seen.load(added) | more if added.is_file() else more).save(added)
    keep_added(trained.run, (*before, *stored))
    return len(fresh)


def _verified(stored: StoredCase) -> Case:
    images = {name: Path(path) for name, path in stored.images.items()}
    case = Case(stored.id, stored.patient, images, attributes=dict(stored.attributes))
    for path in images.values():
        if not path.exists():
            raise DataError(
                f"{path}: was added to the calibration of the run, and is gone; bring it back."
            )
    if digests(case) != stored.sha256:
        raise DataError(
            f"{next(iter(images.values()))}: is another file than was added to the calibration "
            "of the run; bring the old one back, or add the new one under another name."
        )
    return case
