r"""Self-attention over voxels, softmax(q kᵀ / sqrt(n)) v, through fused kernels.

Backends: `auto` leaves the choice to torch's scaled dot product attention; `flash`, `efficient`,
`cudnn` and `math` force one of its kernels; `xformers` takes that package's (CUDA only). A forced
backend that cannot run fails with the reason.

The kernels that do not store the score matrix (4.3 GB per head at 32³ tokens in float32) ask for
rows of whole 16 bytes. Heads of other sizes are therefore padded by zeros, which change neither
products nor sums. float64 has no such kernel on a GPU. There is no attention dropout: it would
silently select the kernel that stores the scores.
"""

import importlib.util
import logging
import math
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from volumediff.networks._block import Recomputable
from volumediff.networks._layers import Linear, Norm, NormKind, whole

__all__ = ["Attention", "Backend", "attend", "available_backends"]

Backend = Literal["auto", "flash", "efficient", "cudnn", "math", "xformers"]
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
ROW_BYTES = 16  # alignment of the tensor cores' loads


def attend(
    q: Float[Tensor, "b n heads size"],
    k: Float[Tensor, "b m heads size"],
    v: Float[Tensor, "b m heads size"],
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "b n heads size"]:
    """Attention of n tokens to all of m others, or to each other, per head.

    Raises:
        ValueError: a forced backend cannot run on this device, dtype or head size
    """
    if backend == "xformers":
        return _xformers(q, k, v)
    forced = nullcontext() if backend == "auto" else sdpa_kernel([KERNELS[backend]])
    size = q.shape[-1]
    missing = -size % (ROW_BYTES // q.element_size())
    q, k, v = (_padded(x, missing).transpose(1, 2) for x in (q, k, v))
    try:
        with forced:
            y = F.scaled_dot_product_attention(q, k, v, scale=size**-0.5)
        return y.transpose(1, 2)[..., :size]
    except RuntimeError as error:
        # torch says so in these words; anything else, such as a lack of memory, is not ours.
        if "No viable backend" in str(error) or "No available kernel" in str(error):
            raise ValueError(_refusal(backend, q, "torch has no such kernel for it")) from error
        raise


def _padded(x: Tensor, missing: int) -> Tensor:
    return F.pad(x, (0, missing)) if missing else x


def _xformers(
    q: Float[Tensor, "b n heads size"],
    k: Float[Tensor, "b m heads size"],
    v: Float[Tensor, "b m heads size"],
) -> Float[Tensor, "b n heads size"]:
    if importlib.util.find_spec("xformers") is None:
        reason = "the package is not installed (pip install volumediff[xformers])"
        raise ValueError(_refusal("xformers", q, reason))
    if q.device.type != "cuda":
        raise ValueError(_refusal("xformers", q, "its kernels need CUDA"))
    # Its import warns about extensions that these kernels do not use.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    import xformers.ops

    try:
        return xformers.ops.memory_efficient_attention(q, k, v)
    except NotImplementedError as error:
        raise ValueError(_refusal("xformers", q, "it has no kernel for it")) from error


def _refusal(backend: str, q: Tensor, reason: str) -> str:
    dtype = str(q.dtype).removeprefix("torch.")
    return (
        f"attention backend '{backend}' cannot run on {q.device.type} with {dtype} and head size "
        f"{q.shape[-1]}: {reason}; use 'auto'"
    )


def available_backends(device: torch.device | str) -> dict[str, str]:
    """Backends by name, each with the reason why it cannot run there, or an empty string.

    A backend counts as available when it takes float32 or bfloat16 at head size 32.
    """
    reasons = {}
    for name in ("auto", *KERNELS, "xformers"):
        for dtype in (torch.float32, torch.bfloat16):
            q = torch.zeros(1, 8, 1, 32, device=device, dtype=dtype)
            try:
                attend(q, q, q, backend=name)
            except ValueError as error:
                reasons[name] = str(error)
            else:
                reasons[name] = ""
                break
    return reasons


class Attention(Recomputable):
    """x + W attention(norm(x)) with a zero W at the start.

    Arguments:
        channels: number of channels
        norm, groups, least, eps: see `Norm`
        backend: which kernel computes it
        plane: attend within each slice of the first axis instead of the whole volume
        head_size: channels per head, reduced to a divisor of `channels`

    `conditioned` says whether the embedding comes after the volume.
    """

    conditioned = False
    # Attention looks everywhere, whatever the statistics of its norm.
    halo = (0, 0, 0)
    by_planes = True

    def __init__(
        self,
        channels: int,
        *,
        norm: NormKind = "group",
        groups: int = 32,
        least: int = 2,
        eps: float = 1e-5,
        backend: Backend = "auto",
        plane: bool = False,
        head_size: int = 32,
    ) -> None:
        super().__init__()
        self.plane = plane
        self.global_axes = "hw" if plane else "dhw"
        self.backend = backend
        self.heads = channels // math.gcd(channels, head_size)
        self.norm = Norm(channels, kind=norm, groups=groups, least=least, eps=eps)
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels, zero=True)

    @whole
    def forward(
        self, x: Float[Tensor, "b c d h w"], *, planes: tuple[int, int] | None = None
    ) -> Float[Tensor, "b c d2 h w"]:
        """What voxels see of all others.

        Arguments:
            planes: first and end of those that ask; None for all
        """
        b, c, d, h, w = x.shape
        lo, hi = planes or (0, d)
        # Voxels become tokens: (b, d h w, c), or (b d, h w, c) within slices.
        tokens = self.norm(x).movedim(1, -1)
        tokens = tokens.reshape(b * d, h * w, c) if self.plane else tokens.reshape(b, -1, c)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if planes is not None:
            q = q.unflatten(1, (d, -1))[:, lo:hi].flatten(1, 2)
        y = self.out(attend(q, k, v, backend=self.backend).flatten(2))
        return x[:, :, lo:hi] + y.reshape(b, hi - lo, h, w, c).movedim(-1, 1)
