"""`volumediff demo`: the shipped model on simulated subjects, or a training of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import out_line, say, words
from volumediff.commands._written import WrittenFiles

__all__ = ["demo"]


def demo(
    overrides: Annotated[list[str] | None, words("run.optim.steps=100")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder.")] = Path("demo"),
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train a small model on simulated subjects and compare it with baselines.",
        ),
    ] = False,
) -> None:
    """Find lesions in simulated subjects with the shipped model, and report.

    With --train, or with KEY=VALUE settings of the training, a model is trained first and compared
    with baselines.
    """
    from volumediff.config.shipped_models import DEFAULT, shipped_models

    written = WrittenFiles(output)
    if train or overrides or DEFAULT not in shipped_models():
        from volumediff.commands._demo import run_demo
        from volumediff.commands._tables import by_group

        by_group(
            run_demo(output, overrides=overrides or [], say=say), "Voxel AP by kind of lesion"
        )
    else:
        from volumediff.commands._demo_model import show_model

        found = show_model(output, DEFAULT, say=say)
        ap, f1 = found.measures["voxel_ap"], found.measures["lesion_f1"]
        out_line(f"voxel AP {ap.value:.3f}, lesion F1 {f1.value:.2f}.")
    written.finish(
        look=output / "report.html",
        then="volumediff localize INPUT -o out/ with a scan of your own",
    )
