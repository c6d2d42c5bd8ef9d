r"""One update of the weights, and the numbers that it measured.

On a GPU the host launches kernels ahead of their execution. Waiting for a loss or a norm would
leave the device idle after every step, so that these numbers are read while the next step runs.
Until they are, nothing is written: a step that turns out not to be finite leaves no trace on disk.
"""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from volumediff.batch import Batch
from volumediff.distributed.data_parallel import clipped
from volumediff.distributed.processes import gathered
from volumediff.distributed.signals import StopFlag
from volumediff.errors import DataError
from volumediff.optimization.rate import learning_rate
from volumediff.optimization.state import TrainingState
from volumediff.settings.sections import Optim
from volumediff.training.journal import TrainingJournal
from volumediff.training.setup import TrainingSetup

__all__ = ["StepQueue", "TrainingStep", "take_step"]

# Steps in a row whose gradients exceed float16. The scale of the loss is halved at each and begins
# at 2^16: after as many the loss itself has gradients that float16 does not hold.
MOST_SKIPPED = 17


class _ArrivingNumbers:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = numbers
        if numbers.device.type == "cuda":
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """The numbers; waits for what was launched before they were asked for, and no more."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


@dataclass(frozen=True)
class TrainingStep:
    """A step that was launched.

    Arguments:
        number: updates before it
        began: when, in seconds of the monotonic clock
        rate: learning rate
        keys: of its samples in this process
        losses: of the same samples, per player
        numbers: loss over all processes and gradient norm of each player, then the stop signals
    """

    number: int
    began: float
    rate: float
    keys: tuple[int, ...]
    losses: Mapping[str, Tensor]
    numbers: _ArrivingNumbers


def take_step(
    state: TrainingState,
    optim: Optim,
    micros: Sequence[Batch],
    accelerator: Accelerator,
    stop: StopFlag,
) -> TrainingStep:
    """Launches an update of every player and of the average; does not wait for its numbers.

    Arguments:
        micros: batches on the device; their gradients are averaged
        stop: stop signals that this process was sent
    """
    began, task = time.monotonic(), state.task
    rate, number = learning_rate(optim, state.step), state.step
    losses, norms = {}, []
    for player, optimizer in state.optimizers.items():
        found = state.parallel.backward(player, micros, state.scaler.scale)
        pairs = zip(found, micros, strict=True)
        losses[player] = torch.cat([loss.expand(len(batch.keys)) for loss, batch in pairs])
        state.scaler.unscale_(optimizer)
        norms.append(clipped(state.players[player], optim.clip))
        optimizer.param_groups[0]["lr"] = rate
        state.scaler.step(optimizer)
        optimizer.zero_grad()
    state.scaler.update()
    state.step += 1
    state.ema.update(state.trained, step=state.step)
    task.stepped(state.step, accelerator)
    means = torch.stack([x.mean() for x in losses.values()]).double() / accelerator.num_processes
    shared = torch.cat([means, means.new_full((1,), stop.number)])
    if accelerator.num_processes > 1:
        shared = accelerator.reduce(shared, reduction="sum")
    numbers = torch.cat([torch.stack([norm.to(shared) for norm in norms]), shared])
    keys = tuple(key for batch in micros for key in batch.keys)
    return TrainingStep(number, began, rate, keys, losses, _ArrivingNumbers(numbers))


class StepQueue:
    """Steps under way, in order. `stopped` is not 0 once any process was sent a stop signal.

    Arguments:
        optim: says whether training ends by the losses, which are then needed at once
        prepared: names samples
        state: watches the losses
    """

    def __init__(
        self,
        optim: Optim,
        prepared: TrainingSetup,
        state: TrainingState,
        accelerator: Accelerator,
        journal: TrainingJournal,
    ) -> None:
        self.optim, self.prepared, self.state = optim, prepared, state
        self.accelerator, self.journal = accelerator, journal
        self.stopped = 0
        self._too_large = 0
        self._most_skipped = MOST_SKIPPED if state.scaler.is_enabled() else 0
        self._steps: deque[TrainingStep] = deque()
        self._settled = -math.inf
        at_once = accelerator.device.type == "cpu" or optim.patience is not None
        self._behind = 0 if at_once else 1

    def add(self, step: TrainingStep) -> None:
        """Queues a step, and records the one before it; without a GPU the step itself.

        Raises:
            DataError: a loss or gradient is not finite; names the samples
        """
        self._steps.append(step)
        self._settle(self._behind)

    def finish(self) -> None:
        """Records all steps so far: after it their weights may be written.

        Raises:
            DataError: a loss or gradient is not finite; names the samples
        """
        self._settle(0)

    def _settle(self, behind: int) -> None:
        while len(self._steps) > behind:
            step = self._steps.popleft()
            *found, signal = step.numbers.read()
            row: dict[str, int | float] = {"step": step.number + 1, "lr": step.rate}
            players = list(step.losses)
            norms, losses = found[: len(players)], found[len(players) :]
            finite = all(map(math.isfinite, norms))
            self._too_large = 0 if finite else self._too_large + 1
            skipped = self._too_large <= self._most_skipped
            for player, norm, loss in zip(players, norms, losses, strict=True):
                if not (math.isfinite(loss) and (math.isfinite(norm) or skipped)):
                    raise DataError(_refusal(step, player, loss, norm, self._names(step, player)))
                suffix = "" if player == self.state.task.main else f"_{player}"
                row |= {f"loss{suffix}": loss}
                if math.isfinite(norm):
                    row |= {f"gradient{suffix}": norm}
                if not suffix:
                    self.state.watch(self.optim, loss, step=step.number)
            if not finite:
                self.state.skipped += 1
                row["skipped"] = self.state.skipped
            now = time.monotonic()
            row["seconds"] = round(now - max(step.began, self._settled), 4)
            self._settled = now
            self.stopped = self.stopped or int(signal)
            self.journal.record(row)
            self.accelerator.log(row, step=step.number + 1)

    def _names(self, step: TrainingStep, player: str) -> list[str]:
        """Samples whose loss is not finite, of all processes; all if only the gradient is."""
        finite = step.losses[player].isfinite().tolist()
        pairs = zip(step.keys, finite, strict=True)
        mine = [(self.prepared.name(key, step.number), not good) for key, good in pairs]
        everybody = [pair for own in gathered(self.accelerator, mine) for pair in own]
        return sorted({n for n, guilty in everybody if guilty} or {n for n, _ in everybody})


def _refusal(step: TrainingStep, player: str, loss: float, norm: float, names: list[str]) -> str:
    return (
        f"step {step.number + 1}: not finite (loss {loss}, gradient norm {norm} of the {player}) "
        f"with samples {', '.join(names)}; nothing of this step was kept. Check these volumes "
        "(volumediff check), or lower optim.lr; the same command goes on from the last checkpoint."
    )
