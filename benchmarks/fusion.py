"""Does the shipped model find more beside simple methods? Fusions of their tail probabilities.

python benchmarks/fusion.py --healthy HEALTHY_T1W --patients FOLDER [FOLDER …]

Every fusion of the shipped model with one or several of `atlas`, `intensity`, the same for dark
lesions, and `smoothing`, by Fisher, Stouffer and the smallest p. Tails are those of half of the
model's healthy calibration volumes; the other half gets synthetic lesions of the validation
family, each kind in each volume, and then the halves change places. Patients meet the tails of all
of them. All on the grid of the model; AP per volume, mean over volumes, intervals over subjects.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volumediff.anomaly.combinations import Combination, Fisher, MinimumP, Stouffer
from volumediff.anomaly.fitted._base import Fitted
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.normalization import Residual
from volumediff.anomaly.tails import HealthyTail, OwnRanks, Tail
from volumediff.api.loading import load
from volumediff.calibration.healthy import outside_example
from volumediff.calibration.of_run import load_method
from volumediff.config.shipped_models import DEFAULT
from volumediff.data.anomalies import KINDS, VALIDATION, insert
from volumediff.data.cases import Case
from volumediff.data.survey import find_cases
from volumediff.metrics.bootstrap import bootstrap
from volumediff.metrics.detection import average_precision, histogram, total
from volumediff.randomness import key
from volumediff.runs.trained import Trained
from volumediff.samples.sources import split_of

MODEL = "model"
RULES: dict[str, Combination] = {
    "fisher": Fisher(),
    "stouffer": Stouffer(),
    "minimum_p": MinimumP(),
}
TAILS: dict[str, Tail] = {"healthy": HealthyTail(), "own_ranks": OwnRanks()}
SEED = 0
ATLAS = 24  # training volumes of the model that its atlas is made of


@dataclass(frozen=True, eq=False)
class Volume:
    """Residuals of all methods on one volume.

    Arguments:
        subject: whose it is
        truth: mask of the lesion; None for healthy volumes
        found: method -> residual
    """

    subject: str
    truth: Tensor | None
    found: dict[str, Residual]


Rows = dict[str, list[tuple[str, float]]]  # row -> subject and AP of every volume


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", type=Path, required=True, help="the model's data.root")
    parser.add_argument("--patients", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    trained = load(DEFAULT).trained
    cases = {case.id: case for case in find_cases(arguments.healthy)}
    split = split_of(list(cases.values()), trained.config.data)
    known = (outside_example(trained, cases[i]) for i in split.train[:ATLAS])
    methods = methods_of(trained, known)
    healthy = [outside_example(trained, cases[i]) for i in split.calibration]
    sound = [found(trained, methods, f"healthy-{i}", e) for i, e in enumerate(healthy)]
    sick = [
        found(trained, methods, f"healthy-{i}", e)
        for i in range(len(healthy))
        for e in with_lesions(healthy, i)
    ]
    rows: Rows = defaultdict(list)
    for half in (0, 1):
        fitted = [v for i, v in enumerate(sound) if i % 2 == half]
        others = {v.subject for v in sound} - {v.subject for v in fitted}
        score(rows, methods, fitted, [v for v in sick if v.subject in others])
    print(f"\nsynthetic lesions, {len(sick)} in {len(sound)} healthy subjects\n")
    show(rows, with_each=False)
    rows = defaultdict(list)
    patients = [
        found(trained, methods, case.id, example)
        for case, example in patients_of(trained, arguments.patients)
    ]
    score(rows, methods, sound, patients)
    print(f"\n{len(patients)} patients\n")
    show(rows, with_each=True)


def methods_of(trained: Trained, known: Iterator[Example]) -> dict[str, Method]:
    """The shipped model's own method, and those that it is fused with.

    Arguments:
        known: healthy volumes for the atlas; a model file brings none
    """
    atlas = read_method("atlas")
    assert isinstance(atlas, Fitted)
    return {
        MODEL: load_method(trained, "synthetic"),
        "atlas": replace(atlas, fit=atlas.learn(trained.model, known, key=SEED)),
        "intensity": load_method(trained, "intensity"),
        "dark": load_method(trained, "intensity", ["baseline.sign=-1"]),
        "smoothing": load_method(trained, "smoothing"),
    }


def found(trained: Trained, methods: dict[str, Method], subject: str, example: Example) -> Volume:
    """All methods on a volume."""
    return Volume(
        subject,
        example.truth,
        {
            name: method.residual(trained.model, example, key=key(SEED, subject))
            for name, method in methods.items()
        },
    )


def with_lesions(healthy: Sequence[Example], number: int) -> Iterator[Example]:
    """A healthy volume with one lesion of every kind in turn."""
    one, donor = healthy[number], healthy[(number + 1) % len(healthy)]
    for kind in KINDS:
        x, mask = insert(
            one.x[0],
            one.foreground[0],
            kind=kind,
            key=key(SEED, "lesion", kind, number),
            spacing_mm=one.spacing_mm,
            family=VALIDATION,
            donor=donor.x[0],
        )
        yield replace(one, x=x[None], truth=mask[None])


def patients_of(trained: Trained, folders: Sequence[Path]) -> Iterator[tuple[Case, Example]]:
    """T1w of the patients that have a mask."""
    for folder in folders:
        for case in find_cases(folder):
            if "T1w" not in case.images or case.label is None:
                continue
            yield case, trained.example(replace(case, images={"T1w": case.images["T1w"]}))


def score(
    rows: Rows, methods: dict[str, Method], healthy: Sequence[Volume], sick: Sequence[Volume]
) -> None:
    """Adds the AP of every method and every fusion on every volume with a lesion."""
    statistics, tails = {}, {}
    for name, method in methods.items():
        own = [v.found[name] for v in healthy]
        statistics[name] = method.statistics_of(own) if method.needs_healthy else {}
        maps = zip(own, method.held_out(own, {}), strict=True)
        pooled = total(histogram(a, foreground=r.foreground) for r, a in maps)
        tails[name] = HealthyTail().fit(pooled)
    names = [n for n in methods if n != MODEL]
    fusions = [(MODEL, *c) for k in (1, 2, 3, 4) for c in combinations(names, k)]
    for volume in sick:
        inside = volume.found[MODEL].foreground
        truth = volume.truth[inside]
        maps = {n: m.finish(volume.found[n], statistics[n]) for n, m in methods.items()}
        for name, a in maps.items():
            rows[name].append((volume.subject, precision(a[inside], truth)))
        for tail, rule in TAILS.items():
            f = {n: rule.surprise(a[inside], tails[n]) for n, a in maps.items()}
            for members in fusions:
                stacked = torch.stack([f[n] for n in members])
                for combined, combine in RULES.items():
                    label = f"{' + '.join(members)}, {tail}, {combined}"
                    ap = precision(combine(stacked, {}), truth)
                    rows[label].append((volume.subject, ap))


def precision(values: Tensor, truth: Tensor) -> float:
    """AP of the voxels of one volume."""
    return average_precision(histogram(values.float(), truth))


def show(rows: Rows, *, with_each: bool) -> None:
    """The methods and the best fusions as lines of Markdown, with the difference to the model."""
    base = np.array([ap for _, ap in rows[MODEL]])
    subjects = [s for s, _ in rows[MODEL]]
    order = sorted(rows, key=lambda r: -float(np.mean([ap for _, ap in rows[r]])))
    pairs = [r for r in order if r.count("+") == 1]
    chosen = [r for r in order if "," not in r] + [r for r in order if "," in r][:6] + pairs[:6]
    print("| row | mean AP | minus the model |" + (" each |" if with_each else ""))
    print("|---|---|---|" + ("---|" if with_each else ""))
    for row in dict.fromkeys(chosen):
        values = np.array([ap for _, ap in rows[row]])
        gap = bootstrap(list(values - base), _mean, patients=subjects, seed=SEED)
        each = ", ".join(f"{s} {v:.3f}" for s, v in rows[row]) if with_each else ""
        low, high = gap.low, gap.high
        print(
            f"| {row} | {values.mean():.3f} | {gap.value:+.3f} ({low:+.3f} to {high:+.3f}) |"
            + (f" {each} |" if with_each else "")
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    main()
