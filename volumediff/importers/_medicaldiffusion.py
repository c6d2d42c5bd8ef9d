"""What the importers of Medical Diffusion share: arrays turned to our axes, and layers by names.

Its arrays have the slices first, (slice, R, A) of a NIfTI file; here the slice axis comes last. A
kernel is turned with the array: its axis 0 becomes axis 2.
"""

from torch import Tensor

from volumediff.importers._base import ForeignCheckpoint, Origin

__all__ = [
    "CHAINS",
    "PREPROCESSING",
    "SCHEDULE",
    "layer",
    "origin",
    "set_aside_training",
    "turned",
    "weights_of",
]

ADDRESS = "https://github.com/FirasGit/medicaldiffusion"
# Intensities are rescaled to [-1, 1] between the extremes of a volume.
PREPROCESSING = {"intensity": {"name": "percentile", "low": 0.0, "high": 100.0}}
# The running average of the weights comes before the weights themselves.
CHAINS = ("ema.", "model.", "")
# What the number of steps gives.
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def origin(source: ForeignCheckpoint) -> Origin:
    """The repository, which has no licence file: what nobody allowed is not allowed."""
    return Origin("Medical Diffusion", ADDRESS, source.published.licence)


def weights_of(source: ForeignCheckpoint, prefixes: tuple[str, ...], name: str) -> str:
    """The first of some prefixes with which the checkpoint has a tensor.

    Raises:
        DataError: it has it with none of them
    """
    found = [p for p in prefixes if f"{p}{name}" in source]
    if not found:
        source.shape(f"{prefixes[0]}{name}")
    return found[0]


def set_aside_training(source: ForeignCheckpoint, p: str) -> None:
    """Leaves out what the number of steps gives, what the trainer wrote down, and other weights
    than those with this prefix."""
    source.set_aside(*(f"{p}{name}" for name in SCHEDULE), "step", "scaler.")
    source.set_aside(*(other for other in CHAINS if other not in ("", p)))


def turned(kernel: Tensor) -> Tensor:
    """A kernel of a volume with the axis through the slices last."""
    return kernel.permute(0, 1, 3, 4, 2).contiguous() if kernel.ndim == 5 else kernel


def layer(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Weight and bias of a convolution, a linear layer or a normalisation."""
    return {f"{ours}.{n}": turned(source.take(f"{theirs}.{n}")) for n in ("weight", "bias")}
