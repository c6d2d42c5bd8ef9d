r"""The gradients of an executed pass, slab by slab.

Stored volumes are taken in reverse. A slab of one is made again from the stored volumes before it,
under autograd, and passes its gradient on to them; gradients of the statistics, which every voxel
shares, are added when their volume's turn comes:

.. math:: \frac{\partial L}{\partial x_i} \mathrel{+}= \frac1n \frac{\partial L}{\partial \mu} +
          \frac2n (x_i - \mu) \frac{\partial L}{\partial \sigma^2}
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from volumediff.memory.execution import Asked, Execution
from volumediff.memory.graph import Node
from volumediff.memory.parts import Part
from volumediff.memory.slab_norm import NormAffine, plus_scaled
from volumediff.memory.slabs import Range
from volumediff.memory.store import DeviceStore, Store
from volumediff.memory.window import starting_at

__all__ = ["Backward"]

# Gradients of at most so many elements wait for those of all slabs, to be summed by one launch.
HELD = 4096


class Backward:
    """The way back through a pass, to be gone once.

    Arguments:
        forward: the pass forward, whose volumes are used up
    """

    def __init__(self, forward: Execution) -> None:
        self.forward, self.plan = forward, forward.plan
        self.gradients: dict[Node, Store] = {}
        self.small_gradients: dict[int, Tensor] = {}
        # Of every measured volume: (P, Q), its statistics' share of the gradient is P + Q x.
        self.shares: dict[Node, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def propagate(self, grad: Tensor) -> None:
        """Gradients of sources and small tensors, from that of the whole output."""
        self.gradients[self.plan.graph.output] = DeviceStore(grad)
        for node in reversed(self.plan.schedule):
            if node in self.gradients and node is not self.plan.graph.output:
                self.forward.exchange(self.plan.domain.fold, self.gradients[node], node)
            if node in self.gradients or node in self.shares:
                self._pass_on(node)
            for leaf in self.plan.parts[node].leaves:
                if self.plan.first_use[leaf] is node and leaf in self.plan.stored:
                    self._part_with(leaf)
            self.gradients.pop(node, None)
            self.forward.values.pop(node, None)
        for source in [node for node in self.shares if self.plan.wants_gradient(node)]:
            self._share_out(source)
        self.forward.transfers.finish()
        of_sources = [self.gradients[node].whole() for node in self._given_gradients()]
        self.plan.domain.total([*of_sources, *self.small_gradients.values()])

    def source_gradients(self) -> list[Tensor | None]:
        """Gradients of the given volumes, None for those that want none."""
        found: list[Tensor | None] = [None] * len(self.plan.graph.sources)
        for node in self._given_gradients():
            found[node.source] = self.gradients[node].whole()
        return found

    def _given_gradients(self) -> list[Node]:
        """Given volumes with a gradient."""
        return [n for n in self.plan.graph.nodes if n.operation is None and n in self.gradients]

    def _pass_on(self, node: Node) -> None:
        """Gives a volume's gradient to the stored volumes and small tensors that it is made of."""
        part, slabs = self.plan.parts[node], self.plan.slabs(node)
        if node in self.plan.stored:
            self._part_with(node)
        share, total = self.shares.pop(node, None), self.gradients.get(node)
        # The slab's own value is asked for where its statistics have a gradient.
        unread = part.unread if share is None or node in self.plan.stored else set()
        read = [leaf for leaf in part.leaves if leaf not in unread]
        for leaf in (*read, *((node,) if share and node in self.plan.stored else ())):
            self._bring_back(leaf)
        small = {n: self._stand_ins(n) for n in part.inner}
        of_small = {n: _Totals(n) for n in part.inner}
        wanting = [leaf for leaf in part.leaves if self.plan.wants_gradient(leaf)]
        heir = self._heir(part, slabs, wanting)
        # last: what others are passed may be a view of the memory that the heir writes into
        wanting.sort(key=lambda leaf: leaf is heir)
        own = self.forward.values.get(node) if share is not None else None
        summed = [leaf for leaf in wanting if leaf in self.gradients]

        def ask(wanted: Range) -> Asked:
            ranges = part.ranges(wanted)
            return Asked(
                wanted,
                ranges,
                {n: self.forward.values[n].ask(ranges[n]) for n in read},
                None if total is None else total.ask(wanted),
                None if own is None else own.ask(wanted),
                {leaf: self.gradients[leaf].ask_sum(ranges[leaf]) for leaf in summed},
            )

        collecting = [(n, i) for n in small for i, t in enumerate(small[n]) if t.requires_grad]
        flat = None if share is None else (share[1], share[0], *self.forward.neutral(share[0]))
        for asked in self.forward.ahead(slabs, ask):
            leaves = asked.values() | {n: self._unread(n, asked.ranges[n]) for n in unread}
            ends = [leaves[leaf].requires_grad_() for leaf in wanting]
            ends += [small[n][i] for n, i in collecting]
            with torch.enable_grad():
                slab = part.compute(asked.ranges, leaves, small)
            grad = None if asked.gradient is None else asked.gradient()
            if flat is not None:
                x = slab.detach() if asked.own is None else asked.own()
                grad = plus_scaled(grad, x, *flat, fused=self.plan.fused)
            assert grad is not None, "a volume without a gradient is not asked for one"
            passed: list[Tensor | None] = [None] * len(ends)
            if slab.requires_grad and ends:
                passed = list(torch.autograd.grad(slab, ends, grad, allow_unused=True))
            del slab, ends
            # Gradients that are one tensor, as those of a sum are, may not be kept or changed.
            uses = Counter(_memory(t) for t in (grad, *passed) if t is not None)
            for place, leaf in enumerate(wanting):
                found, passed[place] = passed[place], None
                if found is None:
                    continue
                if leaf is heir:
                    assert total is not None, "an heir takes the memory of a gradient"
                    if found is not grad or flat is not None:
                        total.write(asked.wanted[0], found)
                    continue
                alone = uses[_memory(found)] == 1
                there = asked.sums.get(leaf)
                self._accumulate(leaf, asked.ranges[leaf], found, there=there, alone=alone)
            for (n, i), found in zip(collecting, passed[len(wanting) :], strict=True):
                of_small[n].add(i, found)
            del grad, passed
            found = None  # the memory of the last gradient is free
        if heir is not None:
            assert total is not None, "an heir takes the memory of a gradient"
            self.gradients[heir] = total
        for leaf in wanting:
            if not slabs and leaf not in self.gradients:
                room = self.forward.room(
                    leaf, self.forward.blank(leaf), waits=self.plan.waits_backward(leaf)
                )
                self.gradients[leaf] = room
            if leaf in self.gradients:
                self.gradients[leaf].complete()
        for inner, totals in of_small.items():
            self._finish_small(inner, totals)

    def _unread(self, node: Node, planes: Range) -> Tensor:
        """In place of planes whose values do not matter."""
        b, c, _, h, w = node.shape
        like = self.forward.neutrals.setdefault(
            (0, node.dtype), (torch.zeros((), dtype=node.dtype, device=self.forward.device),) * 2
        )
        return like[0].expand(b, c, planes[1] - planes[0], h, w)

    def _part_with(self, node: Node) -> None:
        """Gives up a stored volume that nothing reads any more, when its statistics' share of the
        gradient is added. In host memory it may stay until its own turn: one way less."""
        if not self.plan.offload:
            self._share_out(node)
            self.forward.values.pop(node, None)

    def _share_out(self, node: Node) -> None:
        """Adds the gradient that a volume has through its statistics, if they were taken."""
        if node not in self.shares:
            return
        offset, slope = self.shares.pop(node)
        flat = (slope, offset, *self.forward.neutral(slope))
        for wanted in self.plan.slabs(node):
            x = self.forward.values[node].read(wanted)
            passed = plus_scaled(None, x, *flat, fused=self.plan.fused)
            self._accumulate(node, wanted, passed, there=None, alone=True)

    def _stand_ins(self, node: Node) -> tuple[Tensor, ...]:
        """`_small`, of which autograd gives the gradients slab by slab."""
        small = self.forward.small(node)
        assert node.operation is not None, "sources are leaves"
        if isinstance(node.operation, NormAffine):
            a, c, *rest = small
            return (a.detach().requires_grad_(), c.detach().requires_grad_(), *rest)
        if not any(t.requires_grad for t in node.operation.small):
            return small
        return tuple(t.detach().requires_grad_() if t.is_floating_point() else t for t in small)

    def _bring_back(self, node: Node) -> None:
        """Makes a dropped volume again, and before it those that it is made of."""
        if node in self.forward.values:
            return
        for leaf in self.plan.parts[node].leaves:
            self._bring_back(leaf)
        self.forward.make(node)

    def _heir(self, part: Part, slabs: list[Range], wanting: list[Node]) -> Node | None:
        """A leaf without gradient yet that takes over the memory of the top's."""
        top = part.top
        if top is self.plan.graph.output or top not in self.gradients:
            return None
        for leaf in wanting:
            if self.plan.waits_backward(leaf) is not self.plan.offload:
                continue
            alike = leaf not in self.gradients and self.plan.window(leaf) == self.plan.window(top)
            if alike and part.in_place_of(leaf, slabs):
                return leaf
        return None

    def _accumulate(
        self,
        leaf: Node,
        place: Range,
        passed: Tensor,
        *,
        there: Callable[[], Tensor | None] | None,
        alone: bool,
    ) -> None:
        """Adds to the gradient of a leaf.

        Arguments:
            place: planes of the leaf
            there: what the gradient holds, where it was asked for
            alone: nothing else refers to the planes, which may be kept and changed
        """
        waits = self.plan.waits_backward(leaf)
        first = leaf not in self.gradients and place == self.plan.window(leaf)
        if not alone and (waits or first):
            passed = passed.clone()
        if leaf not in self.gradients:
            if place == self.plan.window(leaf) and not waits:
                self.gradients[leaf] = starting_at(place[0], DeviceStore(passed))
                return
            self.gradients[leaf] = self.forward.room(leaf, passed, waits=waits)
        self.gradients[leaf].add(place[0], passed, None if there is None else there())

    def _finish_small(self, node: Node, totals: "_Totals") -> None:
        """Gradients of an operation's small tensors and, through them, of statistics."""
        operation = node.operation
        assert operation is not None, "sources are leaves"
        # Where this process has no planes of it, others may.
        found = totals.complete() if self.plan.domain.size > 1 else totals.found()
        if not isinstance(operation, NormAffine):
            for original, total in zip(operation.small, found, strict=True):
                if original.requires_grad and total is not None:
                    self._add_small(original, total)
            return
        of_a, of_c = found
        if of_a is None or of_c is None:
            return
        affine, x = self.forward.affines[node], node.inputs[0]
        scale, shift = operation.small
        of_scale, share = affine.gradients(of_a, of_c, self.forward.moments[x].count)
        if scale.requires_grad:
            self._add_small(scale, of_scale)
        if shift.requires_grad:
            self._add_small(shift, of_c)
        self.plan.domain.total(share)
        if x in self.shares:
            share = share[0] + self.shares[x][0], share[1] + self.shares[x][1]
        self.shares[x] = share

    def _add_small(self, original: Tensor, gradient: Tensor) -> None:
        before = self.small_gradients.get(id(original))
        gradient = gradient.to(original.dtype)
        self.small_gradients[id(original)] = gradient if before is None else before + gradient


class _Totals:
    """Gradients of an operation's small tensors, summed over slabs in float32 or wider."""

    def __init__(self, node: Node) -> None:
        assert node.operation is not None, "sources are leaves"
        self._small = node.operation.small
        self._slabs: list[list[Tensor]] = [[] for _ in self._small]

    def add(self, place: int, gradient: Tensor | None) -> None:
        """Adds what one slab gives."""
        if gradient is None:
            return
        held = self._slabs[place]
        if gradient.numel() <= HELD:
            held.append(gradient)
        elif held:
            held[0].add_(gradient)
        else:
            held.append(gradient.to(_wide(gradient)))

    def found(self) -> list[Tensor | None]:
        """The sums; None where no slab gave anything."""
        return [_summed(gradients) if gradients else None for gradients in self._slabs]

    def complete(self) -> list[Tensor | None]:
        """Zeros where no slab gave anything to what takes a gradient."""
        return [
            torch.zeros_like(t, dtype=_wide(t)) if g is None and t.is_floating_point() else g
            for t, g in zip(self._small, self.found(), strict=True)
        ]


def _summed(gradients: list[Tensor]) -> Tensor:
    """Sum in float32 or wider, by two launches for any number of small ones."""
    if len(gradients) == 1:
        return gradients[0].to(_wide(gradients[0]))
    return torch.stack(gradients).sum(0, dtype=_wide(gradients[0]))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _memory(tensor: Tensor) -> int:
    """Equal for tensors that share memory."""
    return tensor.untyped_storage()._cdata
