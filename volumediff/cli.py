"""The command line: one command per thing that users do, one line per error.

Exit codes: 0 done, 1 bad data or failed cases, 2 wrong usage or configuration, 130 Ctrl-C. Heavy
packages load inside the commands, so that `--help` answers at once.
"""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from volumediff import __version__
from volumediff.commands.tune import tune
from volumediff.errors import DataError, UsageError

if TYPE_CHECKING:
    from volumediff.inference.batch import Summary
    from volumediff.inference.trained import Trained

__all__ = ["app", "main"]

INTERRUPTED = 130  # what typer makes of Ctrl-C, as shells do
# typer carries its own copy of click, or takes the installed one, depending on the version
WRONG_WORDS = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="volumediff",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="3D diffusion for medical volumes: train, localize anomalies, segment, evaluate.\n\n"
    "Research software, not for diagnosis.",
)


class _Which(StrEnum):
    best = "best"
    last = "last"


class _Mode(StrEnum):
    train = "train"
    infer = "infer"


class _Truth(StrEnum):
    synthetic = "synthetic"
    label = "label"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as optim.lr=1e-4."),
]
Source = Annotated[
    Path, typer.Option("-i", "--input", help="Volume, folder of cases, or datalist JSON.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]
WhichOption = Annotated[_Which, typer.Option("--which", help="Checkpoint of the run.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of other settings in the folder.")
]
Channels = Annotated[
    str | None, typer.Option("--channels", help="Names of the images, such as T1w,FLAIR.")
]
DataRoot = Annotated[
    str | None, typer.Option("--data", help="Where the run's data are now, if they were moved.")
]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory", metavar="KEY=VALUE", help="Memory policy, such as slab=32, not the training's."
    ),
]
Config = Annotated[str, typer.Argument(help="YAML file, or the name of a shipped one.")]
Size = Annotated[
    tuple[int, int, int] | None,
    typer.Option("--shape", metavar="D H W", help="Voxels of the volumes, if not as configured."),
]
ModeOption = Annotated[_Mode, typer.Option("--mode", help="A training step, or inference.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs a command; errors that a user can cause become one line and an exit code."""
    words = sys.argv[1:] or ["--help"]
    try:
        code = app(words, prog_name="volumediff", standalone_mode=False)
    except WRONG_WORDS as error:
        place = error.ctx.command_path if error.ctx else "volumediff"
        _stop(f"{error.format_message().rstrip(chr(46))}. See {place} --help.", 2)
    except UsageError as error:
        _stop(str(error), 2)
    except DataError as error:
        _stop(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        from volumediff.memory.shortage import is_shortage

        if not is_shortage(error):
            raise
        _stop("out of memory; see what fits: volumediff plan CONFIG --vram GB.", 1)
    except OSError as error:
        _stop(f"{error.filename or 'file system'}: {error.strerror or error}", 1)
    if code == INTERRUPTED:
        _stop("interrupted; the same command goes on from what is finished.", INTERRUPTED)
    raise SystemExit(code or 0)


def _stop(message: str, code: int) -> Never:
    sys.stderr.write(f"volumediff: error: {' '.join(message.split())}\n")
    raise SystemExit(code)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _out(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _json(content: Any) -> None:
    import json

    _out(json.dumps(content, indent=1, default=str))


def _names(channels: str | None) -> tuple[str, ...] | None:
    if channels is None:
        return None
    names = tuple(c.strip() for c in channels.split(",") if c.strip())
    if not names:
        raise UsageError(f"--channels {channels!r}: expected names such as T1w,FLAIR.")
    return names


def _trained(
    run: Path,
    which: _Which,
    device: str,
    data: str | None = None,
    memory: list[str] | None = None,
) -> "Trained":
    from dataclasses import replace

    from volumediff.inference.trained import load_trained

    trained = load_trained(run, which=which.value, device=device, memory=memory or [])
    if data is None:
        return trained
    moved = trained.config.data.model_copy(update={"root": data})
    return replace(trained, config=trained.config.model_copy(update={"data": moved}))


def _finish(summary: "Summary") -> None:
    """The last lines of a batch; failed cases make the command fail."""
    _out(summary.line())
    for case, reason in summary.failed.items():
        _say(f"volumediff: {case}: {reason}")
    if summary.failed:
        raise typer.Exit(1)


def _version(wanted: bool | None) -> None:
    if wanted:
        _out(f"volumediff {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    """Options of the program itself."""
    del version  # its callback has printed it


@app.command()
def train(
    config: Config,
    overrides: Words = None,
) -> None:
    """Train a run, or go on with it: the same command resumes.

    volumediff train wavelet_128 data.root=DATA output=runs/brain
    """
    from volumediff.training.loop import train as run
    from volumediff.training.processes import leave
    from volumediff.training.run_config import load_run_config

    try:
        folder = run(load_run_config(config, overrides or []))
    except SystemExit as stopped:  # a signal, after all processes have saved
        leave(stopped.code if isinstance(stopped.code, int) else 1)
        raise
    _say(f"{folder}: trained.")
    leave()


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="wdm, patchddm, ...")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of the other tool.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new run.")],
    overrides: Words = None,
    weights_only_pickle: Annotated[
        bool,
        typer.Option("--weights-only-pickle", help="Read a .pt file, but tensors alone."),
    ] = False,
) -> None:
    """Make a run of a checkpoint of another tool; `info` lists the kinds.

    volumediff import wdm brats_unet_128_1200k.pt -o runs/wdm --weights-only-pickle
    """
    from volumediff.training.imported import import_run

    run = import_run(
        kind, file, out, overrides=overrides or [], weights_only_pickle=weights_only_pickle
    )
    _say(f"{run}: imported.")


@app.command()
def plan(
    config: Config,
    overrides: Words = None,
    vram: Annotated[float | None, typer.Option("--vram", help="Memory of the card in GB.")] = None,
    shape: Size = None,
    mode: ModeOption = _Mode.train,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write the configuration with the chosen policy."),
    ] = None,
) -> None:
    """Predict memory without data or GPU, and choose the fastest policy that fits a card.

    volumediff plan wavelet_256 --vram 8 -o small.yaml
    """
    from volumediff.inference.tables import policies
    from volumediff.memory.planner import at_shape
    from volumediff.memory.planner import plan as look
    from volumediff.training.folder import write_text
    from volumediff.training.run_config import load_run_config

    if vram is not None and not 0 < vram < math.inf:
        raise UsageError(f"--vram {vram:g}: expected the card's memory in GB, above 0.")
    if out is not None and vram is None:
        raise UsageError("-o writes the policy that fits a card: give its memory with --vram GB.")
    wanted = at_shape(load_run_config(config, overrides or []), shape)
    found = look(wanted, mode=mode.value, vram_gb=vram)
    if as_json:
        _json({"config": config, **found.to_json()})
    else:
        policies(found)
    if found.fits is False:
        raise typer.Exit(1)
    if out is not None:
        write_text(out, found.config.to_yaml(f"{config} with the policy for {vram:g} GB."))
        _say(f"wrote {out}; train with: volumediff train {out} data.root=DATA")


@app.command()
def profile(
    config: Config,
    overrides: Words = None,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Steps that are timed; 0: the traced one.")
    ] = 3,
    shape: Size = None,
    mode: ModeOption = _Mode.train,
    snapshot: Annotated[
        Path, typer.Option("--snapshot", help="For CUDA's allocator, if memory runs out.")
    ] = Path("memory_snapshot.pickle"),
    as_json: Json = False,
) -> None:
    """Run a few steps on random data: memory and seconds per stage, beside the plan's figures."""
    from volumediff.inference.tables import profiled
    from volumediff.memory.planner import at_shape
    from volumediff.memory.profile import profile as work
    from volumediff.training.run_config import load_run_config

    wanted = at_shape(load_run_config(config, overrides or []), shape)
    found = work(wanted, mode=mode.value, steps=steps, snapshot=snapshot)
    if as_json:
        _json({"config": config, **found.to_json()})
    else:
        profiled(found)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Data set: folder, nnU-Net raw, BIDS, datalist.")],
    layout: Annotated[
        str, typer.Option("--layout", help="auto, folder, nnunet, bids or datalist.")
    ] = "auto",
    channels: Channels = None,
    as_json: Json = False,
) -> None:
    """Read every volume of a data set and list what is wrong or noteworthy."""
    from volumediff.data.check import check as look
    from volumediff.data.check import has_errors
    from volumediff.inference.tables import findings

    known = ("auto", "folder", "nnunet", "bids", "datalist")
    if layout not in known:
        raise UsageError(f"--layout {layout}: choose from {', '.join(known)}.")
    rows = look(data, layout=layout, channels=_names(channels))
    if as_json:
        _json([vars(row) for row in rows])
    else:
        findings(rows)
    if has_errors(rows):
        raise typer.Exit(1)


@app.command()
def localize(
    run: Run,
    source: Source,
    out: Out,
    overrides: Words = None,
    method: Annotated[str, typer.Option("--method", help="Row by name or YAML file.")] = "scan",
    which: WhichOption = _Which.best,
    channels: Channels = None,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    data: DataRoot = None,
    trace: Annotated[bool, typer.Option(help="Write masks and maps of the blocks too.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Map what is abnormal in volumes, on their own grid; finished cases are skipped.

    volumediff localize RUN -i sub-01_FLAIR.nii.gz -o out/ --method thor
    """
    from volumediff.inference.engine import localize as work

    summary = work(
        _trained(run, which, device, data, memory),
        source,
        out,
        method=method,
        overrides=overrides or [],
        channels=_names(channels),
        seed=seed,
        trace=trace,
        overwrite=overwrite,
        announce=_say,
    )
    _finish(summary)


@app.command()
def calibrate(
    run: Run,
    overrides: Words = None,
    method: Annotated[str, typer.Option("--method", help="Row by name or YAML file.")] = "scan",
    which: WhichOption = _Which.best,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    data: DataRoot = None,
    volumes: Annotated[
        int | None, typer.Option("--volumes", min=1, help="Most volumes of each part to use.")
    ] = None,
    truth: Annotated[
        _Truth, typer.Option("--truth", help="Lesions that choose the validation threshold.")
    ] = _Truth.synthetic,
) -> None:
    """Fit a method's residual normalization and thresholds on the run's own healthy volumes."""
    from volumediff.inference.calibrate import calibrate as fit
    from volumediff.inference.calibrate import load_method

    trained = _trained(run, which, device, data, memory)
    trained.localizes()
    row = load_method(trained, method, overrides or [])
    found = fit(trained, row, method, seed=seed, limit=volumes, truth=truth.value, report=_say)
    limit = found.validation_threshold
    shown = "none" if limit is None else f"{limit:.4g}"
    _out(f"{method}: calibrated on {found.volumes} volumes, validation threshold {shown}")


app.command()(tune)


@app.command()
def segment(
    run: Run,
    source: Source,
    out: Out,
    overrides: Words = None,
    method: Annotated[
        str, typer.Option("--method", help="Segmenter by name or YAML file.")
    ] = "label_diffusion",
    which: WhichOption = _Which.best,
    channels: Channels = None,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Segment volumes with a run of the recipe label_diffusion, on their own grid."""
    from volumediff.inference.segment import segment as work

    summary = work(
        _trained(run, which, device, memory=memory),
        source,
        out,
        method=method,
        overrides=overrides or [],
        channels=_names(channels),
        seed=seed,
        overwrite=overwrite,
    )
    _finish(summary)


@app.command()
def sample(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Output folder; RUN/samples by default.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of volumes.")] = 1,
    sampler: Annotated[str, typer.Option("--sampler", help="Name of a sampler.")] = "dpmpp",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the sampler.")] = 50,
    shape: Annotated[
        tuple[int, int, int] | None, typer.Option("--shape", help="Voxels along R, A, S.")
    ] = None,
    label: Annotated[int, typer.Option("--label", help="Class; 0 is healthy.")] = 0,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="Scalars, such as age=60.")
    ] = None,
    which: WhichOption = _Which.best,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw new volumes and write them as NIfTI."""
    from volumediff.config import overridden
    from volumediff.inference.sample import sample as work

    summary = work(
        _trained(run, which, device, memory=memory),
        out or run / "samples",
        count=count,
        sampler=sampler,
        steps=steps,
        shape=shape,
        label=label,
        attributes=overridden({}, attribute or []),
        seed=seed,
        overwrite=overwrite,
    )
    _finish(summary)


@app.command()
def evaluate(
    folders: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Folders of maps.")],
    truth: Annotated[Path, typer.Option("--truth", help="Data set with masks.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to write; the first OUT by default.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Column of participants.tsv that makes groups.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write report.html too.")] = False,
    replicates: Annotated[
        int, typer.Option("--replicates", min=0, help="Of the bootstrap.")
    ] = 1000,
    seed: Seed = 0,
) -> None:
    """Compare maps of one or more methods with truth masks; the first is the one in question."""
    from volumediff.inference.curves import write_curves
    from volumediff.inference.evaluation import evaluate as compare
    from volumediff.inference.export import write_json
    from volumediff.inference.records import to_json
    from volumediff.inference.report import report_of
    from volumediff.inference.summary import verdicts
    from volumediff.inference.tables import measures

    results = compare(folders, truth, by=by, seed=seed, replicates=replicates, report=_say)
    target = out or folders[0]
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "evaluation.json", {"truth": str(truth), "methods": to_json(results)})
    pictures = write_curves(target, results)
    measures(results)
    for line in verdicts(results):
        _out(line)
    if report:
        report_of(target / "report.html", results, truth, by=by, pictures=pictures)
        _out(f"wrote {target / 'report.html'}")


@app.command()
def demo(
    overrides: Words = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo"),
) -> None:
    """Train on simulated subjects, find lesions in others, compare with baselines, report."""
    from volumediff.inference.demo import run_demo, table

    results = run_demo(out, overrides=overrides or [], say=_say)
    _out(table(results))
    _out(f"\nOpen {out / 'report.html'} in a browser.")


@app.command()
def info(as_json: Json = False) -> None:
    """List pipelines, methods and components."""
    from volumediff.inference.capabilities import inventory
    from volumediff.inference.tables import families

    found = inventory()
    if as_json:
        _json(found)
    else:
        families(found)


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(help="Also look at this configuration.")] = None,
    overrides: Words = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can run, and what would go wrong."""
    from volumediff.inference.capabilities import diagnose
    from volumediff.inference.tables import checks

    found = diagnose(config, overrides or [])
    if as_json:
        _json([vars(line) for line in found])
    else:
        checks(found)
