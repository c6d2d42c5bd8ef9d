"""The demo of the shipped model: simulated subjects with lesions, found without any training.

DIR/test/         subjects with lesions, as NIfTI with masks and participants.tsv
DIR/maps/         maps of the model, as volumediff localize writes them
DIR/metrics.json  DIR/report.html
"""

import time
from collections.abc import Callable
from pathlib import Path

from volumediff.api.files import localize_files
from volumediff.api.loading import load
from volumediff.commands._demo import Clock, Test, write_test
from volumediff.data.population import Population
from volumediff.errors import DataError
from volumediff.evaluation.evaluate import evaluate, localizations
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.to_json import to_json
from volumediff.outputs.export import write_json
from volumediff.reporting.curves import write_curves
from volumediff.reporting.report import report_of
from volumediff.runs.provenance import provenance

__all__ = ["show_model"]

TEST = Test(subjects=2, kinds=("hypo", "cavity", "texture", "hyper"))
SEED = 1  # of the subjects
SHAPE, SPACING_MM = (101, 121, 101), (1.5, 1.5, 1.5)
REPLICATES = 500


def show_model(out: Path | str, model: str, *, say: Callable[[str], None]) -> MethodResult:
    """Localizes lesions in simulated subjects with a model, and reports.

    Arguments:
        out: folder of all outputs
        model: name of a shipped model
        say: receives progress lines

    Raises:
        UsageError: no such model, or a folder with something else
        DataError: the disk is full
    """
    out, clock = Path(out), Clock(say, time.monotonic())
    run = load(model)
    population = Population(SEED, SHAPE, SPACING_MM)
    cases = write_test(TEST, population, out / "test")
    clock(f"{cases} volumes written to {out / 'test'}")
    folder = out / "maps"
    paths = sorted((out / "test").glob("*_T1w.nii.gz"))
    summary = localize_files(run, paths, folder, progress=lambda line: None)
    if summary.failed:
        name, reason = next(iter(summary.failed.items()))
        raise DataError(f"{folder}: {name}: {reason}")
    clock(f"localized with {model}: {summary.line()}")
    results = localizations(evaluate([folder], out / "test", by="kind", replicates=REPLICATES))
    source = {**provenance(run.trained), "seconds": round(time.monotonic() - clock.start, 1)}
    write_json(out / "metrics.json", {"methods": to_json(results), "manifest": source})
    report_of(
        out / "report.html",
        results,
        out / "test",
        by="kind of lesion",
        title="volumediff demo",
        lead=[
            f"The shipped model {model} looked for lesions in {TEST.subjects} simulated subjects, "
            f"each with {len(TEST.kinds)} kinds of lesions and without.",
            "Subjects are the MNI152 template under random smooth deformation, contrast, bias "
            "field and noise. The results show that the installation works; they say nothing "
            "about patients. The command volumediff demo --train trains a model and compares "
            "methods.",
        ],
        manifest=source,
        pictures=write_curves(out, results),
    )
    clock(f"wrote {out / 'report.html'} and metrics.json")
    return results[0]
