"""A data set in Python: what is wrong with it, and which configuration suits it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from volumediff.api.arguments import Place, Report, silent, sources_of
from volumediff.api.layouts import known_layout
from volumediff.api.training import run_config
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.api.reading import Read
    from volumediff.data.check import CheckLine
    from volumediff.data.survey import Spec
    from volumediff.proposals.proposal import Proposal
    from volumediff.runs.trained import Trained

__all__ = ["check", "checking", "propose"]


def check(
    data: Place | Sequence[Place],
    *,
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    config: Place | None = None,
    overrides: Sequence[str] = (),
    run: Place | None = None,
) -> "list[CheckLine]":
    """Reads every volume of a data set and lists what is wrong or noteworthy, and how `train`
    would split it.

    Arguments:
        data: volumes, folders, datalists or tables of cases; one or several
        layout: of the folders; `auto` decides by the files that are there
        channels: names of the images that every case must have
        read: decisions on ambiguous files, such as `{"no_forms": "ras"}`, in place of the
            configuration's; see `volumediff.data.read_policy`
        config: a configuration that is to be trained on the data; then it is also listed how much
            of each label its spacing leaves, and what else it would refuse about labels
        overrides: `key=value` overrides of the configuration
        run: a run that is to work on the data; then it is also listed what differs from the
            volumes that it was trained on

    Raises:
        DataError: there is no case at all
        UsageError: no such layout, configuration or run, or overrides without a configuration
    """
    found = checking(
        data,
        layout=layout,
        channels=channels,
        read=read,
        config=config,
        overrides=overrides,
        run=run,
    )
    return [line for lines in found for line in lines]


def checking(
    data: Place | Sequence[Place],
    *,
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    config: Place | None = None,
    overrides: Sequence[str] = (),
    run: Place | None = None,
    start: Callable[[int], None] = lambda count: None,
) -> "Iterator[list[CheckLine]]":
    """The same as `check`, as it goes on: the lines of each case when it is read.

    Arguments:
        start: receives the number of cases before the first is read
        others: as for `check`
    """
    from volumediff.api.reading import read_policy
    from volumediff.data.check import Checking, CheckLine
    from volumediff.data.intensity import Percentile
    from volumediff.data.survey import survey_sources
    from volumediff.inference.input_check import unlike_run
    from volumediff.samples.sources import label_remarks, plan_of, split_of
    from volumediff.settings.sections import Data

    spec, sources = known_layout(layout), sources_of(data)
    if config is None and overrides:
        raise UsageError(
            f"{overrides[0]}: expected a configuration that it changes, got none; name one, such "
            "as wavelet_128."
        )
    wanted = None if config is None else run_config(config, overrides)
    section = Data() if wanted is None else wanted.data
    trained = None if run is None else _trained(run, read)
    if channels is None:
        channels = section.channels if trained is None else trained.config.data.channels
    policy = read_policy(read, section.read)
    cases, problems = survey_sources(sources, spec, channels)
    start(len(cases))
    intensity = Percentile() if wanted is None else plan_of(section).intensity
    yield from Checking(cases, problems, policy, intensity).lines()
    for case in cases if trained is not None else ():
        yield list(unlike_run(trained, case))
    if section.patients is not None:
        cases = section.patients.named(cases)
    if len(cases) > 1:
        text = split_of(cases, section).note(section.split.least_calibration)
        word = "train by default" if wanted is None else f"train {config}"
        yield [CheckLine("", "", "info", "split", f"{word}: {text}")]
    if wanted is not None:
        yield [
            CheckLine("", "", remark.severity, remark.code, remark.message)
            for remark in label_remarks(wanted, cases)
        ]


def _trained(run: Place, read: "Read") -> "Trained":
    """The run that is to work on the data."""
    from volumediff.api.overrides import words_of
    from volumediff.runs.model_file import resolve
    from volumediff.runs.trained import load_trained

    words = words_of(read) if isinstance(read, Mapping) else list(read)
    return load_trained(resolve(run), device="cpu", read=words)


def propose(
    data: Place,
    *,
    goal: Literal["localization", "segmentation"] = "localization",
    pipeline: Literal["auto", "patch", "wavelet", "pseudo3d"] = "auto",
    vram_gb: float | None = None,
    output: Place = "runs/run",
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    progress: Callable[[int, int], None] = lambda count, total: None,
    report: Report = silent,
) -> "Proposal":
    """Looks at a data set and proposes a complete configuration, with a reason for each choice.

    `train` takes its `config`, and `to_yaml()` is the file that `volumediff init` writes.

    Arguments:
        data: folder, datalist or table of cases
        goal: a model of healthy volumes that localizes anomalies, or the segmentation of labels
        pipeline: `auto` takes pseudo3d for thick slices, else wavelet
        vram_gb: memory of the card in GB; None takes that of the GPU that is found
        output: folder of the run
        layout, channels, read: as for `check`
        progress: receives how many cases are read, and of how many
        report: receives what is being planned

    Raises:
        DataError: no case, a file that is refused, or data that do not suit the goal
        UsageError: nothing fits the card, or arguments that do not fit
    """
    import math

    import torch

    from volumediff.api.reading import read_policy
    from volumediff.proposals.measured import measure
    from volumediff.proposals.proposal import propose as choose

    if vram_gb is not None and not 0 < vram_gb < math.inf:
        raise UsageError(f"vram {vram_gb:g}: expected the card's memory in GB, above 0.")
    if vram_gb is None and torch.cuda.is_available():
        vram_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    found = measure(
        Path(data),
        layout=known_layout(layout),
        channels=channels,
        policy=read_policy(read),
        done=progress,
    )
    return choose(
        found, goal=goal, pipeline=pipeline, vram_gb=vram_gb, output=output, report=report
    )
