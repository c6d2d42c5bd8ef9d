"""Generated volumes against real ones, written as JSON, curves and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volumediff.api.arguments import Place, Report
from volumediff.api.layouts import known_layout
from volumediff.distributed.launch import is_main

if TYPE_CHECKING:
    from volumediff.api.reading import Read
    from volumediff.data.survey import Spec
    from volumediff.evaluation.generation import GenerationEvaluation

__all__ = ["compare_generated"]


def compare_generated(
    folders: Sequence[Path],
    real: Place,
    *,
    run: Place | None,
    features: Place | None,
    training: Place | None,
    output: Place | None,
    html: bool,
    layout: "Spec",
    read: "Read",
    replicates: int,
    seed: int,
    report: Report,
) -> "list[GenerationEvaluation]":
    """What `evaluate` does with `real`; the arguments are its own."""
    from volumediff.api.reading import read_policy
    from volumediff.evaluation.generation import evaluate_generated
    from volumediff.evaluation.generation_summary import to_values
    from volumediff.outputs.export import write_json
    from volumediff.reporting.generation_page import (
        write_generation_curves,
        write_generation_page,
    )
    from volumediff.runs.model_file import resolve
    from volumediff.runs.trained import device_of, load_trained
    from volumediff.storage.folder import made

    trained = None if run is None else load_trained(resolve(run))
    found = evaluate_generated(
        folders,
        real,
        trained=trained,
        features=features,
        training=training,
        layout=known_layout(layout),
        policy=read_policy(read),
        device=str(device_of("auto")),
        seed=seed,
        replicates=replicates,
        report=report,
    )
    if output is None or not is_main():
        return found
    target = made(output)
    write_json(target / "evaluation.json", {"real": str(real), "generated": to_values(found)})
    pictures = write_generation_curves(target, found)
    if html:
        write_generation_page(target / "report.html", found, pictures, real=str(real))
    return found
