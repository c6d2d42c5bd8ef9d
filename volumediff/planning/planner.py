"""Memory that a configuration needs, without data or GPU, and the memory policy that fits a card.

The task is built with fake tensors and one real step of it is traced at full size. In training the
optimizer has its moments already, and a validation on a whole volume counts as a stage where the
configuration asks for one. The loops of localization and sampling keep three to nine float32
volumes more than the one denoising step that is traced (0.07 GB each at 256³).

Policies are tried from the fastest on: nothing saved, recomputation of the finest levels and then
of all, slabs from thick to thin, the same with what waits in host memory. The first that fits is
taken; within a kind they are bisected. In inference, before host memory, skips are made again.
The thinnest slabs are tried with host memory alone.
Policies whose convolutions work on 2³¹ elements or more, as whole volumes of 512³ with 16 channels
have, come last: see `Traced.in_32_bits`.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from volumediff.errors import UsageError
from volumediff.memory.domain import Domain, sharing
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.planning.estimates import Estimates, estimates
from volumediff.planning.fake import fake_task
from volumediff.planning.overhead import OVERHEAD
from volumediff.planning.step import (
    VALIDATION,
    crop_shape,
    inference_step,
    training_step,
    validates,
    volume_shape,
)
from volumediff.planning.tracer import OUTSIDE, Peak, Tracer, with_pool
from volumediff.settings.run_config import RunConfig
from volumediff.shapes import Shape
from volumediff.tasks import resolved

__all__ = ["Mode", "Plan", "Traced", "at_shape", "fastest", "ladder", "plan", "trace", "words"]

Mode = Literal["train", "infer"]
GB = 1e9
# Numbers of slabs that are tried, and one more beside host memory. Tracing takes as much longer as
# there are slabs; below the thinnest depth a slab is mostly halo.
CUTS, MOST_CUTS = (2, 4, 8), (16,)
THINNEST = 4
# Seconds after which a policy that fits is good enough, even if a faster one might.
PATIENCE = 18.0
# Parts of the asked size, in eighths, that are tried when nothing fits.
EIGHTHS = range(7, 0, -1)


@dataclass(frozen=True)
class Traced:
    """The memory of one step under a policy.

    Arguments:
        policy: how the network was run
        stages: peak of every stage
        indexed: elements of the largest tensor that a convolution or interpolation works on
    """

    policy: MemoryPolicy
    stages: Mapping[str, Peak]
    indexed: int = 0

    @property
    def in_32_bits(self) -> bool:
        """Whether no tensor has more elements than kernels with 32-bit indices can address.

        Others exist for some of them: cuDNN 9.3 on has such convolutions (pytorch#134890), before
        it torch falls back to one that needs 27 times the memory of its input (pytorch#128947).
        """
        return self.indexed < 2**31

    @property
    def stage(self) -> str:
        """Where the peak is."""
        return max(self.stages, key=lambda name: self.stages[name].device)

    @property
    def peak_gb(self) -> float:
        """Live tensors at the peak."""
        return self.stages[self.stage].device / GB

    @property
    def host_gb(self) -> float:
        """Tensors that wait in host memory, at most."""
        return max(peak.host for peak in self.stages.values()) / GB

    @property
    def card_gb(self) -> float:
        """What the card must have."""
        return OVERHEAD.card_gb(self.peak_gb)


@dataclass(frozen=True)
class Plan:
    """What was found for a configuration.

    Arguments:
        config: with the chosen policy; nothing else is changed
        mode: train or infer
        chosen: the fastest policy that fits, the configured one where no limit was asked for, and
            the leanest one where nothing fits
        vram_gb: memory of the card, if a limit was asked for
        tried: everything that was traced, fastest first
        remedies: what would fit, where nothing does
        beside: host memory, disk and time
    """

    config: RunConfig
    mode: Mode
    chosen: Traced
    vram_gb: float | None
    tried: Sequence[Traced]
    remedies: Sequence[str]
    beside: Estimates

    @property
    def fits(self) -> bool | None:
        """Whether the chosen policy fits; None without a limit."""
        return None if self.vram_gb is None else self.chosen.card_gb <= self.vram_gb

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; every number in GB is of 1e9 bytes."""
        return {
            "mode": self.mode,
            "shape": list(volume_shape(self.config)),
            "crop": list(self.config.crop) if self.config.crop else None,
            "domain": self.config.processes.domain,
            "vram_gb": self.vram_gb,
            "fits": self.fits,
            "peak_gb": self.chosen.peak_gb,
            "card_gb": self.chosen.card_gb,
            "host_gb": self.beside.host_gb,
            "policy": vars(self.chosen.policy),
            "peak_stage": self.chosen.stage,
            "in_32_bits": self.chosen.in_32_bits,
            "stages": {
                name: {
                    "peak_gb": peak.device / GB,
                    "host_gb": peak.host / GB,
                    "parts_gb": {part: size / GB for part, size in peak.parts.items()},
                }
                for name, peak in self.chosen.stages.items()
            },
            "tried": [
                {
                    "policy": vars(t.policy),
                    "peak_gb": t.peak_gb,
                    "card_gb": t.card_gb,
                    "host_gb": t.host_gb,
                    "peak_stage": t.stage,
                    "in_32_bits": t.in_32_bits,
                    "fits": None if self.vram_gb is None else t.card_gb <= self.vram_gb,
                }
                for t in self.tried
            ],
            "remedies": list(self.remedies),
            "beside": self.beside.to_json(),
            "overhead": vars(OVERHEAD),
        }


def at_shape(config: RunConfig, shape: Shape | None) -> RunConfig:
    """The configuration for volumes of another size; crops are never larger than the volume.

    Raises:
        UsageError: a size is not positive
    """
    config = resolved(config)
    if shape is None:
        return config
    if min(shape) < 1:
        raise UsageError(f"shape {' '.join(map(str, shape))}: expected positive sizes.")
    prepared = config.data.preprocessing.model_copy(update={"shape": shape})
    changes: dict[str, Any] = {"data": config.data.model_copy(update={"preprocessing": prepared})}
    if config.crop is not None:
        d, h, w = (min(a, b) for a, b in zip(config.crop, shape, strict=True))
        changes["crop"] = (d, h, w)
    return config.model_copy(update=changes)


def trace(config: RunConfig, *, mode: Mode = "train") -> Traced:
    """The memory of one step as configured, on fake tensors; of one process, where several share
    each volume.

    Arguments:
        config: its policy included
        mode: a training step, or one pass of inference

    Raises:
        UsageError: the configuration has no shape, or its parts do not fit
    """
    config = resolved(config)
    domain = Domain.assumed(config.processes.domain)
    with _explained(), sharing(domain), fake_task(config, training=mode == "train") as task:
        if mode == "train":
            step = training_step(config, task, most=2)
        else:
            step = inference_step(config, task)
        with Tracer() as tracer:
            step.traced(tracer)
    stages = {name: peak for name, peak in tracer.stages.items() if name != OUTSIDE}
    number = config.processes.number or config.processes.domain
    if mode == "train" and config.processes.shard and number > 1:
        stages = {name: peak.divided(number) for name, peak in stages.items()}
    if config.memory.cuda_graphs:
        stages = with_pool(stages)
    return Traced(config.memory, stages, tracer.indexed)


@contextmanager
def _explained() -> Iterator[None]:
    """Sizes that a network or a space refuses are the user's to change."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{' '.join(str(error).split())}") from None


def ladder(policy: MemoryPolicy, *, mode: Mode, depth: int) -> list[list[MemoryPolicy]]:
    """Policies by speed: families of one kind, in each from the fastest to the leanest.

    Dtype, layout and fused kernels stay as they are configured.

    Arguments:
        policy: the configured one
        mode: without gradients there is nothing to recompute
        depth: planes along d that the network sees
    """
    plain = replace(policy, checkpoint=False, slab=None, offload=False, recompute_skips=False)
    lean = replace(plain, checkpoint=mode == "train")
    # The finest levels hold most of what recomputation can spare.
    saved = [replace(plain, checkpoint=levels) for levels in (1, 2, True)]
    depths, thin = (
        [n for n in (math.ceil(depth / cuts) for cuts in numbers) if n >= THINNEST]
        for numbers in (CUTS, MOST_CUTS)
    )
    cut = replace(lean, cuda_graphs=False)  # graphs have passes in one piece
    slabs = [replace(cut, slab=n) for n in depths]
    remade = [replace(cut, slab=n, recompute_skips=True) for n in depths]
    away = [replace(cut, slab=n, offload=True) for n in (None, *depths, *thin)]
    between = [saved, slabs] if mode == "train" else [slabs, remade]
    return [family for family in ([plain], *between, away) if family]


def fastest(
    families: Sequence[Sequence[MemoryPolicy]],
    fits: Callable[[MemoryPolicy], bool],
    *,
    patient: Callable[[], bool] = lambda: True,
) -> MemoryPolicy | None:
    """The first policy of the ladder that fits; families are bisected, leanest policy first.

    Arguments:
        families: see `ladder`
        fits: whether a policy does
        patient: whether to go on looking where one that fits is known
    """
    for family in families:
        if not fits(family[-1]):
            continue
        low, high = 0, len(family) - 1  # family[high] fits
        while low < high and patient():
            middle = (low + high) // 2
            low, high = (low, middle) if fits(family[middle]) else (middle + 1, high)
        return family[high]
    return None


def plan(config: RunConfig, *, mode: Mode = "train", vram_gb: float | None = None) -> Plan:
    """Traces policies and chooses one.

    Arguments:
        config: the run
        mode: train or infer
        vram_gb: memory of the card in GB; without it the configured policy is the chosen one, and
            one policy of each kind is shown beside it

    Raises:
        UsageError: the configuration has no shape, or its parts do not fit
    """
    config = resolved(config)
    seen: dict[str, Traced] = {}  # by their text: True and 1 are equal, and not the same policy
    start = time.monotonic()

    def patient() -> bool:
        return time.monotonic() - start < PATIENCE

    def traced(policy: MemoryPolicy) -> Traced:
        if repr(policy) not in seen:
            tried = config.model_copy(update={"memory": policy})
            seen[repr(policy)] = trace(tried, mode=mode)
        return seen[repr(policy)]

    shape = crop_shape(config) if mode == "train" else volume_shape(config)
    families = ladder(config.memory, mode=mode, depth=_depth(config, shape))
    remedies: list[str] = []
    if vram_gb is None:
        chosen = traced(config.memory)
        for family in families:
            traced(family[len(family) // 2])
    else:

        def fits(policy: MemoryPolicy) -> bool:
            return traced(policy).card_gb <= vram_gb

        def fits_well(policy: MemoryPolicy) -> bool:
            return fits(policy) and traced(policy).in_32_bits

        policy = fastest(families, fits_well, patient=patient)
        if policy is None:
            policy = fastest(families, fits, patient=patient)
        if policy is None:
            # Of equals the leanest: the step itself then leaves room for smaller sizes.
            chosen = min(reversed(seen.values()), key=lambda t: t.card_gb)
            remedies = _remedies(config, chosen, mode=mode, vram_gb=vram_gb, patient=patient)
        else:
            chosen = traced(policy)
    order = [repr(p) for family in families for p in family]
    if repr(config.memory) not in order:
        order.insert(0, repr(config.memory))
    final = config.model_copy(update={"memory": chosen.policy})
    return Plan(
        config=final,
        mode=mode,
        chosen=chosen,
        vram_gb=vram_gb,
        tried=[seen[p] for p in order if p in seen],
        remedies=remedies,
        beside=estimates(final, training=mode == "train", offload_gb=chosen.host_gb),
    )


def _depth(config: RunConfig, shape: Shape) -> int:
    """Planes along d of the largest thing that slabs are cut from."""
    with _explained(), fake_task(config) as task:
        return task.planes(shape)


def _remedies(
    config: RunConfig,
    leanest: Traced,
    *,
    mode: Mode,
    vram_gb: float,
    patient: Callable[[], bool],
) -> list[str]:
    """What would fit where nothing does."""

    def card_gb(tried: RunConfig, **memory: str) -> float:
        policy = replace(leanest.policy, **memory)
        return trace(tried.model_copy(update={"memory": policy}), mode=mode).card_gb

    short = leanest.card_gb - vram_gb
    found = [f"a card with {leanest.card_gb:.1f} GB, {short:.1f} GB more: {words(leanest.policy)}"]
    if leanest.policy.torch_dtype == torch.float32:
        small = card_gb(config, dtype="bfloat16")
        found.append(f"memory.dtype=bfloat16, which needs {small:.1f} GB")
    rest = {n: p for n, p in leanest.stages.items() if not n.startswith(VALIDATION)}
    if len(rest) < len(leanest.stages):
        without = replace(leanest, stages=rest).card_gb
        if without <= vram_gb:
            found.append(
                f"training without whole volumes, which needs {without:.1f} GB: "
                "validation.best=null validation.previews=0"
            )
    sizes = [s for s in (_smaller(config, mode, eighths) for eighths in EIGHTHS) if s]
    low, high = 0, len(sizes)
    while low < high and patient():
        middle = (low + high) // 2
        fits = card_gb(sizes[middle][0]) <= vram_gb
        low, high = (low, middle) if fits else (middle + 1, high)
    return [*found, sizes[high][1]] if high < len(sizes) else found


def _smaller(config: RunConfig, mode: Mode, eighths: int) -> tuple[RunConfig, str] | None:
    """The configuration for a part of the size, and how to ask for it."""
    by_crop = mode == "train" and config.crop is not None and not validates(config)
    sizes = crop_shape(config) if by_crop else volume_shape(config)
    # Multiples of 16 suit the strides that are shipped; thin axes stay.
    d, h, w = (n if n < 32 else max(n * eighths // 8 // 16 * 16, 16) for n in sizes)
    if (d, h, w) == sizes:
        return None
    if by_crop:
        return config.model_copy(update={"crop": (d, h, w)}), f"crop=[{d},{h},{w}]"
    return at_shape(config, (d, h, w)), f"volumes of {d}×{h}×{w} voxels (shape {d} {h} {w})"


def words(policy: MemoryPolicy) -> str:
    """What a policy changes, as overrides of a command."""
    default = vars(MemoryPolicy())
    changed = {k: v for k, v in vars(policy).items() if v != default[k] or k == "checkpoint"}
    return " ".join(f"memory.{k}={json.dumps(v).strip(chr(34))}" for k, v in changed.items())
