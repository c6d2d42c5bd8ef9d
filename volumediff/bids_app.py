"""`volumediff-bids BIDS_DIR OUTPUT_DIR participant|group`: the program as a BIDS app.

The arguments are those that every BIDS app has (Gorgolewski et al. 2017, BIDS apps,
doi:10.1371/journal.pcbi.1005209). `participant` localizes or segments, as the run was trained to;
`group` compares all results with the masks of the data set. Both are commands of `volumediff`,
which is printed first; exit codes are its own.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from volumediff import __version__, cli
from volumediff.commands._options import say
from volumediff.errors import UsageError

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> None:
    """Runs the app.

    Arguments:
        words: of the command line; None takes those of the process
    """
    parser = _parser()
    given = parser.parse_args(words)
    try:
        command = _group(given) if given.analysis_level == "group" else _participant(given)
    except UsageError as error:
        parser.error(str(error))
    say(f"volumediff {shlex.join(command)}")
    cli.main(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="volumediff-bids",
        description="Localizes anomalies in a BIDS data set, or segments it; research software, "
        "not for diagnosis.",
    )
    parser.add_argument("bids_dir", type=Path, help="Folder of the BIDS data set.")
    parser.add_argument("output_dir", type=Path, help="Folder of the results, a derivative.")
    parser.add_argument(
        "analysis_level",
        choices=("participant", "group"),
        help="participant: results of each participant; group: evaluation of all results against "
        "the masks of the data set, with a report.",
    )
    parser.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        metavar="LABEL",
        help="Participants, with or without sub-; all by default.",
    )
    parser.add_argument(
        "--session-label",
        "--session_label",
        nargs="+",
        metavar="LABEL",
        help="Sessions, with or without ses-; all by default.",
    )
    parser.add_argument(
        "--run", default="t1w", help="Folder of a trained run, or the name of a shipped model."
    )
    parser.add_argument("--method", help="Name of a method; that of the run by default.")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="Overrides of the method, such as sampler.steps=10.",
    )
    parser.add_argument("--channels", help="Names of the images, such as T1w,FLAIR.")
    parser.add_argument("--device", default="auto", help="Device: auto, cpu, cuda and so on.")
    parser.add_argument(
        "--same-names",
        action="store_true",
        help="group: participants with the names of people whom the model has seen are others.",
    )
    parser.add_argument(
        "--allow-seen",
        action="store_true",
        help="group: go on although the model has seen participants; results with and without.",
    )
    parser.add_argument("-v", "--version", action="version", version=f"volumediff {__version__}")
    return parser


def _group(given: argparse.Namespace) -> list[str]:
    """The command that evaluates all results."""
    if given.participant_label or given.session_label:
        raise UsageError("group: takes all results of OUTPUT_DIR; leave the labels out.")
    options = {"--same-names": given.same_names, "--allow-seen": given.allow_seen}
    asked = [name for name, value in options.items() if value]
    return ["evaluate", str(given.output_dir), "--truth", str(given.bids_dir), "--report", *asked]


def _participant(given: argparse.Namespace) -> list[str]:
    """The command that works on the participants.

    Raises:
        UsageError: no BIDS data set, or no such participant or session
    """
    from volumediff.api.loading import load

    inputs = _inputs(given.bids_dir, given.participant_label, given.session_label)
    trained = load(given.run, device=given.device).trained
    try:
        trained.segments()
        task = "segment"
    except UsageError:
        task = "localize"
    options = {
        "--run": given.run,
        "--method": given.method,
        "--channels": given.channels,
        "--device": given.device,
        "-o": str(given.output_dir),
    }
    words = [word for pair in options.items() if pair[1] is not None for word in pair]
    return [task, *map(str, inputs), *given.set, *words]


def _inputs(
    root: Path, participants: Sequence[str] | None, sessions: Sequence[str] | None
) -> list[Path]:
    """The data set, or one image of each examination that was asked for: its other channels are
    found beside it."""
    from volumediff.data.layouts.bids import BIDS

    if not BIDS().recognises(root):
        raise UsageError(f"{root}: expected a BIDS data set, with folders named sub-<label>.")
    if participants is None and sessions is None:
        return [root]
    wanted = _prefixed("sub-", participants)
    visits = _prefixed("ses-", sessions)
    cases, _ = BIDS().read(root)
    subjects = {case.patient for case in cases}
    if missing := sorted(wanted - subjects):
        raise UsageError(
            f"{root}: has no images of {', '.join(missing)}; there are "
            f"{', '.join(sorted(subjects)) or 'none'}."
        )
    chosen = [
        case
        for case in cases
        if (not wanted or case.patient in wanted)
        and (not visits or case.id.rpartition("_")[2] in visits)
    ]
    if not chosen:
        raise UsageError(f"{root}: no participant has {', '.join(sorted(visits))}.")
    return [next(iter(case.images.values())) for case in chosen]


def _prefixed(prefix: str, labels: Sequence[str] | None) -> set[str]:
    return {prefix + label.removeprefix(prefix) for label in labels or ()}


if __name__ == "__main__":
    main()
