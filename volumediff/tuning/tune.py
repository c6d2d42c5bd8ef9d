"""Tuning of a method on the validation part of a run: noise level, guidance strength, widths.

The search goes axis by axis (`anomaly.tuning`), each over a coarse grid and once refined around
the best so far, and is greedy: what a later axis changes is not tried again at other levels. Test
volumes and the test family of lesions are never touched.

RUN/tuning/<method>-<fingerprint>.json receives the measurements of each setting as they come. The
fingerprint is of what measurements depend on (all weights, method, volumes, lesions, seed) and
not of the grid, so that the same command goes on, and another grid takes what is there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from volumediff.anomaly.method_files import build_method, method_tree
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.methods.fusion import Fusion
from volumediff.anomaly.tuning_axes import axes_of
from volumediff.calibration.fits import Fits
from volumediff.calibration.lesions import Pair, Truth, validation_pairs
from volumediff.calibration.of_run import load_method
from volumediff.errors import UsageError
from volumediff.runs.auxiliary_models import Borrowed, facts_of
from volumediff.runs.trained import Trained
from volumediff.tunable import Tunable
from volumediff.tuning.search import Bench, Budget, Grids, Search
from volumediff.tuning.trial_log import open_journal
from volumediff.tuning.trials import placed
from volumediff.tuning.tuned import Tuned

__all__ = ["DEFAULT", "tune"]

# To be raised when lesions, noise or measurements of the same setting come out otherwise.
VERSION = 1
# Widths only when asked for: wide filters of large volumes take longer than some networks.
DEFAULT: Grids = {Tunable.LOG_SNR: (), Tunable.STRENGTH: (), Tunable.PARAMETER: ()}


def tune(
    trained: Trained,
    name: str,
    *,
    overrides: Sequence[str] = (),
    runs: Mapping[str, Path | str | None] | None = None,
    grids: Grids = DEFAULT,
    seed: int = 0,
    limit: int | None = None,
    truth: Truth = "synthetic",
    budget: Budget = Budget(),  # noqa: B008 - frozen
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Tuned, Path]:
    """Searches a method's levels, strengths and widths, and stores all measurements in the run.

    Arguments:
        trained: the run
        name: of the method
        overrides: `component.argument=value` settings from which the search starts
        runs: kind of auxiliary model, such as `classifier` -> folder of its run
        grids: what is searched, and where
        seed: of lesions and noise
        limit: most volumes of a part; prepared volumes are kept in host memory
        truth: synthetic lesions of the validation family, or the labels of the cases
        budget: at which the search stops
        report: receives progress lines

    Returns:
        what was found, and the JSON file in the run

    Raises:
        UsageError: nothing of the method can be tuned, or the run cannot serve it
        DataError: the stored measurements are damaged
    """
    borrowed = Borrowed(trained, runs or {})  # one model for all settings
    method = load_method(trained, name, overrides, borrowed=borrowed)
    if isinstance(method, Fusion):
        names = ", ".join(member.label for member in method.members)
        raise UsageError(
            f"method '{name}': expected a method of its own, got a fusion; tune its members "
            f"({names}) one by one, and write what was chosen into the fusion."
        )
    tree = method_tree(name, overrides=overrides)
    schedule = trained.model.kernel.schedule if trained.model.diffuses else None
    axes = axes_of(method, schedule)
    if not any(axis.what in grids for axis in axes):
        there = ", ".join(axis.name for axis in axes)
        raise UsageError(
            f"method '{name}': expected a noise level, a strength or a width to tune, it has "
            f"{'only ' + there + ', which is not to be tuned' if there else 'none of them'}."
        )
    facts = _facts(trained, seed=seed, limit=limit, truth=truth)
    if facts_of(method):
        facts["borrowed"] = {n: f["weights_sha256"] for n, f in facts_of(method).items()}
    journal = open_journal(trained.run / "tuning", name, {**facts, "base": tree})
    bench = Bench(
        tree=tree,
        axes=axes,
        model=trained.model,
        pairs=cache(lambda: _pairs(trained, seed=seed, limit=limit, truth=truth)),
        references=cache(lambda: _references(trained, limit=limit)),
        seed=seed,
        make=partial(_made, trained, borrowed),
    )
    search = Search(
        bench, grids, known=journal.trials, keep=journal.write, budget=budget, report=report
    )
    report(f"tuning {name} on {len(facts['volumes'])} validation volumes, {truth} lesions")
    try:
        with trained.config.memory.arithmetic():
            search.run()
        chosen = search.best()
    except ValueError as error:
        raise UsageError(f"method '{name}': {error}") from None
    found = Tuned(
        method=Path(name).stem,
        facts=facts,
        own=bench.own,
        trials=search.tried,
        refused=search.refused,
        stages=tuple(search.stages),
        chosen=chosen,
        row=bench.row(chosen),
        stopped=search.stopped,
    )
    journal.write(found.summary())
    return found, journal.path


def _made(trained: Trained, borrowed: Borrowed, tree: Mapping[str, Any]) -> Method:
    """The method of a tree, with what it borrows from other runs and learns of this one."""
    return build_method(tree).bind(borrowed).bind(Fits(trained))


def _facts(trained: Trained, *, seed: int, limit: int | None, truth: Truth) -> dict[str, Any]:
    """What measurements depend on beside the method."""
    volumes = [case.id for case in trained.cases("validation")[:limit]]
    if not volumes:
        raise UsageError(
            f"{trained.name}: its split has no healthy validation volumes to tune on; train with "
            "data.split.validation > 0."
        )
    return {
        "version": VERSION,
        "weights_sha256": trained.digest,
        "seed": seed,
        "truth": truth,
        "volumes": volumes,
        "references": [case.id for case in trained.cases("calibration")[:limit]],
    }


def _pairs(trained: Trained, *, seed: int, limit: int | None, truth: Truth) -> list[Pair]:
    """The volumes, prepared once for all settings; they wait in host memory."""
    pairs = [
        Pair(placed(p.sick, "cpu"), None if p.healthy is None else placed(p.healthy, "cpu"))
        for p in validation_pairs(trained, seed=seed, limit=limit, truth=truth)
    ]
    if not pairs:
        raise UsageError(
            f"{trained.name}: all its validation volumes have lesions of their own; tune with "
            "truth=label."
        )
    return pairs


def _references(trained: Trained, *, limit: int | None) -> list[Example]:
    return [placed(example, "cpu") for example in trained.examples("calibration", limit=limit)]
