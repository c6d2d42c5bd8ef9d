"""What this installation has (`info`) and what this machine can do (`doctor`)."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from volumediff import config
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.anomaly.methods._base import Method
    from volumediff.autoencoders import Reconstructor
    from volumediff.component import Component
    from volumediff.model import Model

__all__ = ["Check", "diagnose", "inventory", "localization", "needs_of"]

PACKAGES = (
    *("torch", "accelerate", "numpy", "nibabel", "torchio", "monai", "SimpleITK", "nilearn"),
    *("PyWavelets", "scipy", "xformers"),
)
# Global-mean SNR at t = 1 above which samples lose the spread of their overall brightness.
VISIBLE = 0.05


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Arguments:
        state: ok, note (worth knowing) or problem (will hurt)
        name: what was looked at
        message: what was found, and what to do
    """

    state: Literal["ok", "note", "problem"]
    name: str
    message: str


def inventory() -> dict[str, Any]:
    """Names that commands and configurations take, by family."""
    from volumediff.anomaly.rows import load_row

    return {
        "pipelines": config.shipped("pipelines"),
        "autoencoders": config.shipped("autoencoders"),
        "classifiers": config.shipped("classifiers"),
        "comparers": config.shipped("comparers"),
        "localization methods": config.shipped("anomaly"),
        "segmentation methods": config.shipped("segmentation"),
        "components": {family: config.available(family) for family in config.families()},
        "localization": localization(),
        "localization needs": {n: needs_of(load_row(n)) for n in config.shipped("anomaly")},
    }


def localization() -> dict[str, dict[str, str]]:
    """method -> pipeline -> "ok", or why no checkpoint of the pipeline serves the method.

    The smallest configuration of a pipeline is built without memory, as the method needs it to be
    trained. The last column is that of the runs of autoencoders, of the method's own kind.
    """
    from volumediff.anomaly.rows import load_row

    pipelines: dict[str, list[str]] = {}
    for name in config.shipped("pipelines"):
        pipelines.setdefault(name.rpartition("_")[0], []).append(name)
    smallest = {p: min(n, key=lambda s: int(s.rpartition("_")[2])) for p, n in pipelines.items()}
    methods = {name: load_row(name) for name in config.shipped("anomaly")}
    models = cache(_model)
    return {
        name: {
            pipeline: _suits(method, models, path)
            for pipeline, path in [*smallest.items(), ("autoencoder", _autoencoder(method))]
        }
        for name, method in methods.items()
    }


def needs_of(method: "Method") -> list[str]:
    """What a method needs beyond the shipped configurations of pipelines.

    Returns:
        configurations and overrides with which its run is trained, then options and overrides
        that name the runs it borrows models from, with a configuration that trains such a one
    """
    own = [r.configuration for r in method.requirements() if r.configuration is not None][:1]
    found = own + [word for r in method.requirements() for word in r.words]
    for request in method.requests():
        if request.loan.required:
            example = _configuration(request.component)
            example = example or config.shipped(request.loan.configurations)[0]
            named = request.name == request.loan.option
            found.append(request.name if named else f"{request.name}={example}")
    return list(dict.fromkeys(found))


def _configuration(component: "Component") -> str | None:
    """The configuration that trains the autoencoder which a component is about."""
    needs = (need for _, part in component.parts() for need in part.needs)
    return next((n.configuration for n in needs if n.configuration is not None), None)


def _autoencoder(method: "Method") -> str:
    """The configuration of the autoencoder that a method is about, a VAE where any will do."""
    return _configuration(method) or "vae_64"


# What a word of `needs_of` stands for, where it takes arguments.
FULL = {
    "recipe=class_conditional": (
        "recipe={name: class_conditional, attribute: group, values: [healthy, sick]}"
    ),
    "kernel=cold": "kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}",
    "kernel=discrete": (
        "kernel={name: discrete, schedule: {name: cosine, zero_terminal_snr: true}}"
    ),
    "space.autoencoder=binary": "space.autoencoder=binary_64",
}
Models = Callable[[str, tuple[str, ...]], "Model | Reconstructor"]


def _suits(method: "Method", models: Models, path: str) -> str:
    words: tuple[str, ...] = ()
    if path in config.shipped("pipelines"):
        words = tuple(word for need in method.requirements() for word in need.words)
    try:
        method.check(models(path, tuple(dict.fromkeys(words))), borrowed=False)
    except (ValueError, UsageError) as error:
        return str(error)
    return "ok"


def _model(path: str, words: tuple[str, ...]) -> "Model | Reconstructor":
    import torch

    from volumediff.training.assemble import autoencoder_path, build_task
    from volumediff.training.run_config import load_run_config

    # Where the space has no autoencoder to be changed, the rest of the words says why not.
    if autoencoder_path(load_run_config(path).space) is None:
        words = tuple(w for w in words if not w.startswith("space.autoencoder="))
    with torch.device("meta"):
        return build_task(load_run_config(path, [FULL.get(w, w) for w in words])).module


def diagnose(name: str | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Everything that is worth a line.

    Arguments:
        name: configuration of a pipeline to look at, too
        overrides: words for it

    Raises:
        UsageError: the configuration is wrong
    """
    import torch

    checks = [
        Check("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        *(_package(package) for package in PACKAGES),
        _release(torch.__version__),
        *_devices(),
        _convolutions(torch.__version__, torch.backends.cudnn.version()),
        _triton(),
        *_backends(),
    ]
    return checks + (_global_mean(name, overrides) if name else [])


def _package(name: str) -> Check:
    try:
        return Check("ok", name, version(name))
    except PackageNotFoundError:
        state = "note" if name == "xformers" else "problem"
        return Check(state, name, "not installed")


def _release(text: str) -> Check:
    major, minor = (int(part) for part in text.split(".")[:2])
    if (major, minor) == (2, 9):
        return Check(
            "problem",
            "torch release",
            "2.9 has a conv3d regression (4 times slower, more memory); use 2.10 or newer",
        )
    if (major, minor) < (2, 10):
        return Check("problem", "torch release", f"{text} is too old; use 2.10 or newer")
    if (major, minor) >= (2, 14):
        return Check("note", "torch release", f"{text} is newer than what was tested (< 2.14)")
    return Check("ok", "torch release", f"{text} is one of the tested releases")


def _devices() -> list[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()
    found = [Check("ok", "cpu", f"{cores} cores, {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        return [*found, Check("note", "cuda", "no device; CPU runs are for small volumes")]
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        text = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, sm_{facts.major}{facts.minor}"
        found.append(Check("ok", f"cuda:{i}", text))
    dnn = torch.backends.cudnn.version()
    return [*found, Check("ok", "cuda runtime", f"CUDA {torch.version.cuda}, cuDNN {dnn}")]


def _convolutions(torch_version: str, cudnn: int | None) -> Check:
    """Whether half-precision 3D convolutions reach cuDNN (pytorch issue 166643)."""
    name = "torch and cuDNN"
    if cudnn is None:
        return Check("note", name, "no cuDNN: 3D convolutions run on the CPU")
    # 90800 is 9.8.0, with two digits for each of the last two numbers
    text = f"torch {torch_version}, cuDNN {cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    if torch_version.startswith("2.9.") and 90800 <= cudnn < 91500:
        return Check(
            "problem",
            name,
            f"{text}: this pair keeps half-precision 3D convolutions away from cuDNN (3 to 17 "
            "times the memory, 4 to 20 times slower); use torch 2.10 or newer, or cuDNN 9.15",
        )
    return Check("ok", name, f"{text}: no known fault of 3D convolutions")


def _triton() -> Check:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return Check("note", "triton", "not installed; fused kernels run as plain torch code")
    return Check("ok", "triton", found)


def _backends() -> list[Check]:
    import torch

    from volumediff.networks._attention import available_backends

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        Check("note" if reason else "ok", f"attention {name}", reason or f"runs on {device}")
        for name, reason in available_backends(device).items()
    ]


def _global_mean(name: str, overrides: Sequence[str]) -> list[Check]:
    """Whether the mean of a volume is hidden at t = 1: SNR n alpha_1^2 / sigma_1^2 of n voxels."""
    from math import prod

    from volumediff.schedules._base import global_mean_snr
    from volumediff.training.assemble import build_task
    from volumediff.training.run_config import load_run_config
    from volumediff.training.task import Diffusion

    run = load_run_config(name, overrides)
    task = build_task(run)
    if not isinstance(task, Diffusion):
        return [
            Check("note", "global mean", f"{name} trains no diffusion model: no noise of its own")
        ]
    shape = run.data.preprocessing.shape or run.crop
    if shape is None:
        text = "unknown: set data.preprocessing.shape"
        return [Check("note", "global mean", text)]
    model = task.model
    voxels = prod(model.space.grid(shape))
    snr = global_mean_snr(model.kernel.schedule, voxels)
    # close to n times alpha_bar_T where that is small
    text = f"SNR of the mean of {voxels} state voxels at t = 1, n ᾱ_T / (1 - ᾱ_T), is {snr:.3g}"
    if snr > VISIBLE:
        text += (
            f": sampling keeps {(1 + snr) ** -0.5:.0%} of the spread of overall brightness; use "
            "kernel.schedule.zero_terminal_snr=true with prediction v, or a larger shift"
        )
    return [Check("problem" if snr > VISIBLE else "ok", "global mean", text)]
