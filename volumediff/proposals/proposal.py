"""A complete configuration for a data set, with the reason of every choice.

The finest of the shipped networks (about 256³, 128³, 64³ voxels) is taken whose training step fits
the card in one piece; without a card the smallest, for a CPU.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from volumediff.config import config_path, load
from volumediff.errors import DataError, UsageError
from volumediff.planning.planner import Plan, trace, words
from volumediff.planning.planner import plan as plan_memory
from volumediff.proposals.commented import comment_lines, commented
from volumediff.proposals.data_choices import (
    Goal,
    data_comments,
    data_remarks,
    grid_comments,
    independent_of_size,
    labels_of,
)
from volumediff.proposals.geometry import TargetGrid, target_grid, thick_axis
from volumediff.proposals.measured import MeasuredSet
from volumediff.samples.sources import cases_of, label_remarks, split_of
from volumediff.settings.run_config import RunConfig, parse, with_words

__all__ = ["Pipeline", "Proposal", "propose"]

Pipeline = Literal["auto", "patch", "wavelet", "pseudo3d"]
SIZES = (256, 128, 64)
SMALLEST = SIZES[-1]
METHOD = "label_diffusion"
VISITS = 2000  # how often a volume is seen in training, at most
LEAST_STEPS = 1000
BATCHES = (4, 2)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What is proposed.

    Arguments:
        config: the configuration
        tree: the same as it is written
        comments: dotted key -> the reason
        remarks: what the data lack, and what to do
        head: lines above the configuration
    """

    config: RunConfig
    tree: Mapping[str, Any]
    comments: Mapping[str, str]
    remarks: tuple[str, ...]
    head: tuple[str, ...]

    def to_yaml(self, *, schema: str | None = None) -> str:
        """The configuration with its comments.

        Arguments:
            schema: file or address of the JSON schema, for editors
        """
        first = [] if schema is None else [f"# yaml-language-server: $schema={schema}"]
        notes = [*self.head, *(f"Note: {remark}" for remark in self.remarks)]
        top = [*first, *(line for note in notes for line in comment_lines(note))]
        return "\n".join([*top, "", commented(self.tree, self.comments)])


def propose(
    found: MeasuredSet,
    *,
    goal: Goal = "localization",
    pipeline: Pipeline = "auto",
    vram_gb: float | None = None,
    output: Path | str = "runs/run",
    report: Callable[[str], None] = lambda line: None,
) -> Proposal:
    """Chooses everything that a configuration says.

    Arguments:
        found: the data set
        goal: what the run is for
        pipeline: `auto` takes pseudo3d for thick slices, and wavelet otherwise
        vram_gb: memory of the card in GB; None is a run on the CPU
        output: folder of the run
        report: receives what is being planned

    Raises:
        DataError: the data do not suit the goal
        UsageError: nothing fits the card
    """
    labels = labels_of(found) if goal == "segmentation" else ()
    thick = thick_axis(found)
    if pipeline == "auto":
        pipeline = "wavelet" if thick is None else "pseudo3d"
    usual = independent_of_size(found, goal=goal, output=output)
    for size in SIZES if vram_gb is not None else SIZES[-1:]:
        tree, grid = _at_size(found, pipeline, size, thick=thick, labels=labels)
        if size > SMALLEST and grid.longest <= size * 5 / 8:
            continue  # a smaller network is made for so few voxels, with a smaller stride
        tree = _merged(tree, usual)
        tree["memory"] = load(config_path("pipelines", f"{pipeline}_{size}"))["memory"]
        config = parse(tree, where="the proposed configuration")
        if vram_gb is None:
            return _finished(found, goal, tree, grid, thick, _on_the_cpu(config))
        report(f"planning the memory of {'×'.join(map(str, grid.shape))} voxels")
        planned = plan_memory(config, vram_gb=vram_gb)
        policy = planned.chosen.policy
        whole = policy.slab is None and not policy.offload
        if planned.fits and (whole or size == SMALLEST):
            tree["memory"] = vars(policy)
            tree["optim"]["batch_size"] = _batch(planned, vram_gb)
            return _finished(found, goal, tree, grid, thick, _on_the_card(planned, vram_gb))
    raise UsageError(
        f"a card of {vram_gb:g} GB: the smallest training step needs "
        f"{planned.chosen.card_gb:.1f} GB; "
        f"what would fit: {'; '.join(planned.remedies)}."
    )


def _merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of `over` laid over those of the tree, key by key; components are replaced."""
    merged = dict(tree)
    for key, value in over.items():
        below = merged.get(key)
        inner = isinstance(value, Mapping) and "name" not in value and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if inner else value
    return merged


def _at_size(
    found: MeasuredSet,
    pipeline: str,
    size: int,
    *,
    thick: int | None,
    labels: tuple[int, ...],
) -> tuple[dict[str, Any], TargetGrid]:
    """The shipped configuration of a size, on the grid of the data."""
    tree = load(config_path("pipelines", f"{pipeline}_{size}"))
    axis = 2 if thick is None else thick
    levels = 2 ** (len(tree["network"]["widths"]) - 1)
    if pipeline == "pseudo3d":
        tree["space"]["axis"] = "dhw"[axis]
        stride = [2 * levels if i != axis else 1 for i in range(3)]
    else:
        stride = [levels * (2 if pipeline == "wavelet" else 1)] * 3
    kept = axis if pipeline == "pseudo3d" and thick is not None else None
    grid = target_grid(found, size, (stride[0], stride[1], stride[2]), thick=kept)
    one = len(set(grid.spacing_mm)) == 1
    tree["data"]["preprocessing"] |= {
        "spacing_mm": grid.spacing_mm[0] if one else list(grid.spacing_mm),
        "shape": list(grid.shape),
        "centre": grid.centre if isinstance(grid.centre, str) else list(grid.centre),
    }
    if tree["crop"] is not None:
        tree["crop"] = [min(c, n) for c, n in zip(tree["crop"], grid.shape, strict=True)]
    d, h, w = grid.shape
    if not labels:
        tree["kernel"]["schedule"]["shift"] = float(f"{max(d * h * w / SMALLEST**3, 1):.2g}")
        return tree, grid
    asked = [f"method={METHOD}", f"recipe.labels={list(labels)}"]
    return with_words(tree, asked), grid


def _batch(planned: Plan, vram_gb: float) -> int:
    """The largest of a few batch sizes that fits without recomputation."""
    config = planned.config
    if planned.chosen.policy.checkpoint:
        return 1
    for count in BATCHES:
        optim = config.optim.model_copy(update={"batch_size": count, "accumulate": 1})
        if trace(config.model_copy(update={"optim": optim})).card_gb <= vram_gb:
            return count
    return 1


def _on_the_cpu(config: RunConfig) -> str:
    held = trace(config).peak_gb
    return (
        f"No GPU was found or named, so that this is the smallest network. A training step holds "
        f"{held:.1f} GB. For a card, say how many GB it has."
    )


def _on_the_card(planned: Plan, vram_gb: float) -> str:
    return (
        f"A training step needs {planned.chosen.card_gb:.1f} of {vram_gb:g} GB, by volumediff "
        f"plan: {words(planned.chosen.policy)}."
    )


def _finished(
    found: MeasuredSet,
    goal: Goal,
    tree: dict[str, Any],
    grid: TargetGrid,
    thick: int | None,
    memory: str,
) -> Proposal:
    """Scales the training to the number of volumes, and gives the reasons."""
    first = parse(tree, where="the proposed configuration")
    cases = cases_of(first.data)
    split = split_of(cases, first.data)
    optim, volumes = tree["optim"], len(split.train)
    usual = optim["steps"]
    optim["batch_size"] = min(optim["batch_size"], volumes)
    seen = VISITS * volumes // optim["batch_size"]
    optim["steps"] = min(usual, max(seen, LEAST_STEPS))
    optim["warmup"] = min(optim["warmup"], optim["steps"] // 20)
    every = max(optim["steps"] // 20, 1)
    tree["validation"]["every"] = min(tree["validation"]["every"], every)
    tree["save_every"] = min(tree["save_every"], every)
    tree["data"]["workers"] = min(tree["data"]["workers"], max((os.cpu_count() or 1) - 1, 0))
    config = parse(tree, where="the proposed configuration")
    least = config.data.split.least_calibration
    comments = {
        **data_comments(
            found,
            goal=goal,
            cases=cases,
            split=split,
            least_calibration=least,
        ),
        **grid_comments(found, grid, thick),
        "memory": memory,
        "optim": (
            f"{optim['steps']} steps of {optim['batch_size']} of {volumes} training volumes. The "
            f"shipped configuration has {usual} steps; no volume is seen more than {VISITS} times."
        ),
    }
    known = label_remarks(config, cases)
    bad = [remark.message for remark in known if remark.severity == "error"]
    if bad:
        raise DataError(f"{found.root}: {bad[0]}")
    return Proposal(
        config=config,
        tree=tree,
        comments=comments,
        remarks=(
            *data_remarks(
                found, goal=goal, cases=cases, calibrated=len(split.calibration) >= least
            ),
            *(r.message for r in known),
        ),
        head=_head(found, goal, tree),
    )


def _head(found: MeasuredSet, goal: Goal, tree: Mapping[str, Any]) -> tuple[str, ...]:
    space = tree["space"] if isinstance(tree["space"], str) else tree["space"]["name"]
    return (
        f"Proposed by volumediff init for {len(found.cases)} cases of {found.patients} patients "
        f"in {found.root}, for {goal}. Change what you like; what volumediff train takes is "
        "checked when it is read.",
        f"The network works on the space {space}; volumediff info lists others.",
    )
