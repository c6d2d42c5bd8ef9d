"""What happened on the pretend device."""

import collections
from typing import Any, ClassVar

import torch

from pretend_cuda.attention import Choice
from pretend_cuda.streams import Order, place

__all__ = ["CPU", "CUDA", "Device"]

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


class Device:
    """What happened on the pretend device.

    Arguments:
        streams: watch the order of streams, which is slow

    Attributes:
        waits: what made the host wait for the device, and how often
        moved: bytes that went "to device" and "to host"
        nondeterministic: operations of which there is no deterministic kernel
        rounded: float32 products and convolutions that would be computed in TF32
        attention: every call of scaled dot product attention
        order: streams, races and overlap
        graph: that is being recorded
        launches: replays of graphs
    """

    active: ClassVar["Device | None"] = None

    def __init__(self, *, streams: bool = False) -> None:
        self.streams = streams
        self.moved: collections.Counter[str] = collections.Counter()
        self.nondeterministic: collections.Counter[str] = collections.Counter()
        self.rounded: collections.Counter[str] = collections.Counter()
        self.attention: list[Choice] = []
        self.order = Order()
        self.waits = self.order.waits
        self.graph: Any = None
        self.launches = 0

    def wait(self, what: str) -> None:
        """The host waits for the current stream."""
        if self.graph is not None:
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing ({what})"
            )
        self.waits[f"{what} ({place()})"] += 1
        current = self.order.current
        self.order.host_waits(current.clock, of=current.number)

    def not_deterministic(self, what: str) -> None:
        """Notes an operation that two runs may compute differently, or refuses it if asked to."""
        self.nondeterministic[f"{what} ({place()})"] += 1
        strict = torch.are_deterministic_algorithms_enabled()
        if strict and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(
                f"{what} does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'."
            )

    def multiplies(self, what: str, dtype: torch.dtype, *, convolves: bool) -> None:
        """Notes float32 products that tensor cores would round to TF32.

        https://docs.pytorch.org/docs/stable/notes/cuda.html, "TensorFloat-32 (TF32)": on for
        convolutions by default, off for matrix products.
        """
        backend = torch.backends.cudnn.conv if convolves else torch.backends.cuda.matmul
        if dtype == torch.float32 and backend.fp32_precision == "tf32":
            self.rounded[f"{what} ({place()})"] += 1

    def attends(self, choice: Choice, *, differentiable: bool) -> None:
        """Notes a call of attention."""
        self.attention.append(choice)
        if differentiable and not choice.deterministic:
            self.not_deterministic(f"{choice.kernel} attention")
