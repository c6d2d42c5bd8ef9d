"""The checks of `doctor`: what this machine can run, and which problems to expect."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from volumediff.errors import UsageError
from volumediff.system.resources import usable_cores

__all__ = ["Check", "diagnose"]

PACKAGES = (
    *("torch", "accelerate", "numpy", "nibabel", "torchio", "monai", "SimpleITK", "nilearn"),
    *("PyWavelets", "scipy", "xformers"),
)
OPTIONAL = ("monai", "xformers")  # each an extra of the same name
# Global-mean SNR at t = 1 above which samples lose the spread of their overall brightness.
VISIBLE = 0.05
# Major release of CUDA -> the oldest driver of Linux that its binaries run with (minor version
# compatibility, release notes of the CUDA toolkit, table 2).
DRIVERS = {12: 525, 13: 580}
DRIVER = Path("/proc/driver/nvidia/version")


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


def diagnose(name: str | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Everything that is worth a line.

    Arguments:
        name: configuration of a pipeline to look at, too
        overrides: key=value settings for it

    Raises:
        UsageError: the configuration is wrong
    """
    import torch
    from accelerate.commands.config.config_args import default_config_file

    checks = [
        Check("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        *(_package(package) for package in PACKAGES),
        _release(torch.__version__),
        *_devices(),
        _convolutions(torch.__version__, torch.backends.cudnn.version()),
        _triton(),
        *_backends(),
        _accelerate(os.environ, Path(default_config_file)),
    ]
    return checks + (_global_mean(name, overrides) if name else [])


def _package(name: str) -> Check:
    try:
        return Check("ok", name, version(name))
    except PackageNotFoundError:
        if name in OPTIONAL:
            return Check("note", name, f"not installed: pip install 'volumediff[{name}]'")
        return Check("problem", name, f"not installed: pip install {name}")


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

    cores = usable_cores()
    found = [Check("ok", "cpu", f"{cores} cores, {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        found.append(Check("note", "cuda", "no device; CPU runs are for small volumes"))
        if torch.backends.mps.is_available():
            found.append(Check("note", "mps", "not used: Apple's GPUs do not have float64"))
        return found if torch.version.cuda is None else [*found, _driver(torch.version.cuda)]
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        text = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, sm_{facts.major}{facts.minor}"
        arches = torch.cuda.get_arch_list()
        found.append(_capability(f"cuda:{i}", text, facts.major, facts.minor, arches))
    dnn = torch.backends.cudnn.version()
    return [*found, Check("ok", "cuda runtime", f"CUDA {torch.version.cuda}, cuDNN {dnn}")]


def _capability(name: str, text: str, major: int, minor: int, arches: Sequence[str]) -> Check:
    """Whether torch has kernels for a card, and bfloat16 is in its hardware.

    Arguments:
        major, minor: compute capability
        arches: what torch was compiled for, such as sm_80 (kernels of this generation, which run
            on later cards of the same major number) and compute_90 (code for any later card)
    """
    binaries = [arch.removeprefix("sm_").rstrip("af") for arch in arches if arch[:3] == "sm_"]
    sources = [arch.removeprefix("compute_").rstrip("af") for arch in arches if arch[:3] == "com"]
    own = any(int(b[:-1]) == major and int(b[-1]) <= minor for b in binaries)
    translated = any((int(s[:-1]), int(s[-1])) <= (major, minor) for s in sources)
    if not (own or translated):
        return Check(
            "problem",
            name,
            f"{text}: torch has no kernels for this card, only {', '.join(arches)}; install a "
            "torch for an older CUDA, such as pip install torch --index-url "
            "https://download.pytorch.org/whl/cu126, or use another card",
        )
    if major < 8:
        return Check(
            "note",
            name,
            f"{text}: bfloat16 is emulated on this card and slow; use memory.dtype=float16, or "
            "float32",
        )
    return Check("ok", name, text)


def _driver(cuda: str) -> Check:
    """What keeps a torch for GPUs from the one that the driver shows, if there is one."""
    found = _driver_version()
    if found is None:
        return Check("note", "driver", f"torch is for CUDA {cuda}, but there is no NVIDIA driver")
    needed = DRIVERS.get(int(cuda.split(".")[0]))
    if needed is not None and int(found.split(".")[0]) < needed:
        return Check(
            "problem",
            "driver",
            f"{found} is too old for CUDA {cuda}, which needs {needed} or newer; update it, or "
            "install a torch for an older CUDA (pip install torch --index-url "
            "https://download.pytorch.org/whl/cu126)",
        )
    return Check("problem", "driver", f"{found} is there, but torch finds no device: nvidia-smi")


def _driver_version() -> str | None:
    """Version of the NVIDIA driver that the kernel has loaded; None without one."""
    try:
        text = DRIVER.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


def _accelerate(environment: Mapping[str, str], file: Path) -> Check:
    """What accelerate config asks for, and whether it is supported.

    Arguments:
        environment: of a program that accelerate launch started
        file: of the saved configuration, which counts elsewhere
    """
    from volumediff.distributed.accelerate_config import requested, variables

    name = "accelerate config"
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if not launched and not file.is_file():
        return Check("ok", name, "none; accelerate launch uses all GPUs of this machine")
    where = "accelerate launch" if launched else str(file)
    try:
        settings = requested(environment if launched else variables(file))
    except UsageError as error:
        return Check("problem", name, f"{where}: {str(error).rstrip('.')}")
    asked = ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
    return Check("ok", name, f"{where}: " + (f"sets {asked}" if asked else "changes no setting"))


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
    from math import ceil, prod

    from volumediff.model import Model
    from volumediff.schedules._base import global_mean_snr
    from volumediff.settings.run_config import load_run_config
    from volumediff.tasks import build_task

    run = load_run_config(name, overrides)
    model = build_task(run).lend(Model)
    if model is None:
        return [
            Check("note", "global mean", f"{name} trains no diffusion model: no noise of its own")
        ]
    shape = run.data.preprocessing.shape or run.crop
    if shape is None:
        text = "unknown: set data.preprocessing.shape"
        return [Check("note", "global mean", text)]
    voxels = prod(model.space.grid(shape))
    schedule = model.kernel.schedule
    snr = global_mean_snr(schedule, voxels)
    # close to n times alpha_bar_T where that is small
    text = f"SNR of the mean of {voxels} state voxels at t = 1, n ᾱ_T / (1 - ᾱ_T), is {snr:.3g}"
    if snr > VISIBLE:
        remedy = (
            f"kernel.schedule.sigma_max={ceil((voxels / VISIBLE) ** 0.5)} or more"
            if schedule.variance_exploding
            else "kernel.schedule.zero_terminal_snr=true with prediction v, or a larger shift"
        )
        text += (
            f": sampling keeps {(1 + snr) ** -0.5:.0%} of the spread of overall brightness; use "
            f"{remedy}"
        )
    return [Check("problem" if snr > VISIBLE else "ok", "global mean", text)]
