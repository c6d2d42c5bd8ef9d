r"""Bytes that live tensors hold, over the course of any computation,

.. math:: m(n) = \sum_{s \,\text{alive after operation}\, n} \operatorname{bytes}(s), \qquad
          \text{peak} = \max_n m(n)

with the sum over storages: views and in-place results add nothing. It works with real and with
fake tensors, in the backward pass, in recomputation and in the optimizer alike.

What an operation allocates and frees inside itself (workspaces of a convolution, the two halves of
a fused kernel) is invisible here, as are the allocator's rounding and fragmentation: see
`volumediff.planning.overhead`.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from volumediff.memory.host import is_host

__all__ = ["CATEGORIES", "OUTSIDE", "Peak", "Tracer", "with_pool"]

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "other")
INDEXED = ("aten::convolution", "aten::upsample")  # what counts elements in 32 bits somewhere
OUTSIDE = "outside"  # name of what happens in no stage


@dataclass(frozen=True)
class Peak:
    """The most that was alive at once, in bytes.

    Arguments:
        device: on the device
        host: in host memory, at its own maximum
        parts: what was alive on the device at its peak, by category
    """

    device: int = 0
    host: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)

    def divided(self, processes: int) -> "Peak":
        """The same where processes hold shares of weights, moments and averages.

        Whole weights come on top of the share in a step. They are counted as if all were there at
        once, as in a pass in slabs, and gradients as if none were divided yet: a bound from above.
        """
        parts = dict(self.parts)
        parts["weights"] += parts["weights"] // processes
        parts["optimizer"] //= processes
        return Peak(self.device + sum(parts.values()) - sum(self.parts.values()), self.host, parts)


class _Storage:
    """What is known of a live storage; `watch` tells of its end."""

    __slots__ = ("category", "host", "size", "watch")

    def __init__(self, size: int, category: str, *, host: bool) -> None:
        self.size, self.category, self.host = size, category, host
        self.watch: Any = None


def with_pool(stages: Mapping[str, Peak]) -> dict[str, Peak]:
    """The stages where passes run as CUDA graphs, whose memory nothing else can have.

    Activations of the largest stage and the gradients that graphs write stay all the time; the
    gradients that the optimizer reads are copies.
    """
    pool = {
        "activations": max((p.parts.get("activations", 0) for p in stages.values()), default=0),
        "gradients": max((p.parts.get("gradients", 0) for p in stages.values()), default=0),
    }
    found = {}
    for name, peak in stages.items():
        parts = dict(peak.parts)
        parts["activations"] = pool["activations"]
        parts["gradients"] = parts.get("gradients", 0) + pool["gradients"]
        more = sum(parts.values()) - sum(peak.parts.values())
        found[name] = Peak(peak.device + more, peak.host, parts)
    return found


class Tracer(TorchDispatchMode):
    """Counts storages that come and go inside `with Tracer() as tracer`.

    Arguments:
        device: whose tensors are device memory, unless they were made by `host.empty`
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._device = torch.device(device).type
        self._storages: dict[int, _Storage] = {}
        self._parts = dict.fromkeys(CATEGORIES, 0)
        self._live = self._host = 0
        self._stage, self._category = OUTSIDE, "other"
        self._top: dict[str, tuple[int, dict[str, int]]] = {}
        self._host_top: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        # Elements of the largest tensor that a convolution or interpolation works on.
        self.indexed = 0

    @property
    def live(self) -> int:
        """Bytes on the device now."""
        return self._live

    @property
    def host(self) -> int:
        """Bytes in host memory now."""
        return self._host

    @property
    def stages(self) -> dict[str, Peak]:
        """The peak within every stage so far, in order of their first entry."""
        return {
            name: Peak(size, self._host_top.get(name, 0), dict(parts))
            for name, (size, parts) in self._top.items()
        }

    @property
    def peak(self) -> Peak:
        """The peak of all; its host bytes are those of the fullest moment of the host."""
        if not self._top:
            return Peak()
        size, parts = max(self._top.values(), key=lambda top: top[0])
        return Peak(size, max(self._host_top.values(), default=0), dict(parts))

    @contextmanager
    def stage(self, name: str, *, holds: str = "activations") -> Iterator[None]:
        """Names what happens inside the block.

        Arguments:
            name: peaks of several blocks of one name become one
            holds: category of storages that are made inside
        """
        before = self._stage, self._category
        self._stage, self._category = name, holds
        self._raise()
        try:
            yield
        finally:
            self._stage, self._category = before
            self._raise()

    def adopt(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that exist already, or moves counted ones into another category."""
        for tensor in tensors:
            known = self._count(tensor)
            if known is None or known.category == category:
                continue
            if not known.host:
                self._parts[known.category] -= known.size
                self._parts[category] += known.size
            known.category = category
        self._raise()

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Counts parameters as weights and, from now on, their gradients as gradients."""

        def accumulated(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.adopt("gradients", [parameter.grad])

        for parameter in parameters:
            self.adopt("weights", [parameter])
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(accumulated)
                self._handles.append(handle)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._look(result)
        if any(func._schema.name.startswith(name) for name in INDEXED):
            sizes = [t.numel() for t in tree_leaves((args, result)) if isinstance(t, Tensor)]
            self.indexed = max(self.indexed, *sizes)
        return result

    def _look(self, result: Any) -> None:
        if isinstance(result, Tensor):
            self._count(result)
        elif isinstance(result, list | tuple):
            for part in result:
                self._look(part)

    def _count(self, tensor: Tensor) -> _Storage | None:
        if tensor.device.type == "meta":
            return None
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._storages.get(key)
        if known is None:
            host = is_host(storage) or tensor.device.type != self._device
            known = self._storages[key] = _Storage(0, self._category, host=host)
            # Called when the memory is given back, whatever Python objects came and went.
            known.watch = weakref.ref(storage, lambda _, key=key: self._forget(key))
        if known.size != size:
            self._add(known, size - known.size)
        return known

    def _forget(self, key: int) -> None:
        known = self._storages.pop(key)
        self._add(known, -known.size)

    def _add(self, known: _Storage, size: int) -> None:
        known.size += size
        if known.host:
            self._host += size
        else:
            self._live += size
            self._parts[known.category] += size
        if size > 0:
            self._raise()

    def _raise(self) -> None:
        """Takes a new maximum of the current stage down."""
        if self._live > self._top.get(self._stage, (-1,))[0]:
            self._top[self._stage] = self._live, dict(self._parts)
        if self._host > self._host_top.get(self._stage, 0):
            self._host_top[self._stage] = self._host
