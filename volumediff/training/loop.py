r"""Training: one loop for any task.

.. math:: \theta \leftarrow \operatorname{AdamW}\!\left(\theta,\; \nabla_\theta
          \frac{1}{B} \sum_{i=1}^{B} \ell_\theta(\text{sample } n B + i)\right)

for step n, where everything drawn for a sample follows from its number (`dataset`). The state of a
run is therefore its tensors and one integer: the same command goes on where the run stopped, and
the weights come out bit-identical to those of an uninterrupted run.
"""

import os
import signal
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from volumediff.batch import Batch
from volumediff.distributed import processes
from volumediff.distributed.accelerate_config import overlaid_by_accelerate
from volumediff.distributed.data_parallel import DataParallel
from volumediff.distributed.mesh import Mesh
from volumediff.distributed.one_process import OneProcess
from volumediff.distributed.replicated import Replicated
from volumediff.distributed.sharded import Sharded
from volumediff.distributed.signals import StopFlag
from volumediff.errors import UsageError
from volumediff.memory.domain import sharing
from volumediff.memory.heap import retain_heap
from volumediff.optimization.state import TrainingState
from volumediff.planning.shortage import explained
from volumediff.samples.dataset import Order, stream
from volumediff.settings.bound_files import bound_of, check_bound
from volumediff.settings.run_config import RunConfig
from volumediff.storage.checkpoint import find
from volumediff.tasks import Task, resolved
from volumediff.training.deterministic import deterministic
from volumediff.training.journal import TrainingJournal
from volumediff.training.run_folder import begin, locked, record_session
from volumediff.training.setup import TrainingSetup, prepare
from volumediff.training.steps import StepQueue, take_step
from volumediff.training.validation import Validator

__all__ = ["train"]


def train(config: RunConfig) -> Path:
    """Trains, or goes on training, the run in `config.output`; returns its folder.

    Raises:
        UsageError: the configuration does not fit the run, the data or the launch
        DataError: bad data, a full disk, no memory, or a loss that is not finite; one line each
        SystemExit: 128 + the number of a stop signal (143 after SIGTERM), with the state saved
    """
    config = resolved(overlaid_by_accelerate(config, os.environ))
    run, optim = config.output, config.optim
    accelerator = processes.start(config)
    mesh = Mesh.of(domain=config.processes.domain, timeout=processes.timeout(config))
    if accelerator.device.type == "cpu":
        retain_heap()
    with (
        processes.others_watched(config),
        explained(config, mode="train", device=accelerator.device),
        config.memory.arithmetic(),
        deterministic(config.deterministic and accelerator.device.type == "cuda"),
        sharing(mesh.domain),
        TrainingJournal(run, active=accelerator.is_main_process, steps=optim.steps) as journal,
        locked(run, accelerator, journal.line),
    ):
        processes.on_main(accelerator, lambda: begin(run, config))
        prepared = prepare(config, accelerator, journal.line)
        task = prepared.task
        processes.broadcast_module(accelerator, task.module)
        processes.broadcast_module(accelerator, task.training_only)
        state = TrainingState.fresh(task, optim, _data_parallel(task, config, accelerator))
        found = processes.on_main(accelerator, lambda: find(run, "last", report=journal.line))
        state.bound = bound_of(run)
        if found is not None:
            check_bound(run, found)
            state.resume(found)
        validator = Validator(config, prepared, accelerator)
        _announce(config, prepared, accelerator, journal, state)
        journal.start(state.step, validated=state.validated == state.step)
        samples = _samples(config, prepared, mesh, accelerator.device, first=state.step)
        with closing(samples), StopFlag() as stop:
            steps = StepQueue(optim, prepared, state, accelerator, journal)
            stopped, kept, first = False, state.progress, state.step
            while not stopped:
                if state.due(optim, config.validation.every):
                    steps.finish()
                    with state.averaged():
                        result = validator(state.step, stop)
                    if result is None:
                        stopped = True
                        break
                    state.validated = state.step
                    report = partial(_report, accelerator, journal, task, result.row, state.step)
                    processes.on_main(accelerator, report)
                    if result.better_than(state.best):
                        state.best = result.summary(state.step)
                        _save(state, run, "best", accelerator)
                if state.ended(optim):
                    break
                micros = [next(samples) for _ in range(optim.accumulate)]
                if state.step == first:
                    processes.wait(accelerator)  # volumes that nobody has read yet take their time
                steps.add(take_step(state, optim, micros, accelerator, stop))
                stopped = steps.stopped != 0
                # Before the validation, which takes its time and is done again after a resume.
                if state.step % config.save_every == 0:
                    steps.finish()
                    _save(state, run, "last", accelerator)
                    kept = state.progress
            steps.finish()
            if state.progress != kept:
                _save(state, run, "last", accelerator)
            if stopped:
                journal.line(
                    f"stopped after step {state.step}; run the same command again to continue."
                )
                raise SystemExit(128 + (stop.number or signal.SIGTERM))
        lines = processes.on_main(accelerator, lambda: task.finish(prepared.samples, run))
        for text in lines or ():
            journal.line(text)
        # Not end_training(): the process group belongs to the launch, which may train again.
        for tracker in accelerator.trackers:
            tracker.finish()
    return run


def _data_parallel(task: Task, config: RunConfig, accelerator: Accelerator) -> DataParallel:
    """How the processes of this run hold its weights and share its gradients."""
    if accelerator.num_processes == 1:
        return OneProcess(task.loss)
    if config.memory.cuda_graphs:
        raise UsageError(
            "memory.cuda_graphs trains in one process, since gradients of a graph come all at "
            f"once and cannot be shared meanwhile; got {accelerator.num_processes} processes "
            f"(processes.shard={config.processes.shard}, domain={config.processes.domain}): set "
            "it to false."
        )
    if not config.processes.shard:
        return Replicated(task.modules(), task.loss, accelerator)
    memory = config.memory
    in_one_piece = not memory.streams and config.processes.domain == 1
    return Sharded(
        task.modules(),
        task.loss,
        blockwise=task.blockwise and in_one_piece,
        channels_last=memory.channels_last,
    )


def _save(state: TrainingState, run: Path, kind: str, accelerator: Accelerator) -> None:
    """Writes a checkpoint in the main process, of what all of them hold."""
    tensors = state.tensors(kind)
    processes.on_main(accelerator, lambda: state.save(run, kind, tensors))


def _report(
    accelerator: Accelerator,
    journal: TrainingJournal,
    task: Task,
    row: Mapping[str, float],
    step: int,
) -> None:
    """Writes a validation down, and draws all of them."""
    journal.record({"step": step, **row})
    accelerator.log({"step": step, **row}, step=step)
    for text in task.alarms(row):
        journal.line(text)
    journal.plot()


def _samples(
    config: RunConfig, prepared: TrainingSetup, mesh: Mesh, device: torch.device, *, first: int
) -> Generator[Batch, None, None]:
    """This process's micro-batches from a step on, on its device."""
    optim, world = config.optim, mesh.data.size
    if optim.batch_size % (world * optim.accumulate):
        raise UsageError(
            f"optim.batch_size {optim.batch_size} is shared by {world} processes and "
            f"optim.accumulate {optim.accumulate}: expected a multiple of "
            f"{world * optim.accumulate}."
        )
    plan = Order(len(prepared.samples.dataset), config.seed).batches(
        first,
        optim.steps,
        batch_size=optim.batch_size,
        accumulate=optim.accumulate,
        rank=mesh.data.rank,
        world=world,
    )
    return stream(prepared.samples.dataset, plan, workers=config.data.workers, device=device)


def _announce(
    config: RunConfig,
    prepared: TrainingSetup,
    accelerator: Accelerator,
    journal: TrainingJournal,
    state: TrainingState,
) -> None:
    """Says what is about to run, and records it in the manifest."""
    count = sum(p.numel() for p in state.trained.values())
    where = f"{accelerator.num_processes} process(es) on {accelerator.device}"
    volumes = len(prepared.samples.dataset)
    if state.ended(config.optim):
        journal.line(
            f"{config.output}: already has {state.step} steps, of {config.optim.steps} wanted; "
            "a larger optim.steps goes on."
        )
    journal.line(
        f"{config.output}: {count / 1e6:.2f} M parameters, {volumes} training "
        f"volumes, steps {state.step} to {config.optim.steps}, global batch "
        f"{config.optim.batch_size}, {where}, {torch.get_num_threads()} threads."
    )
    if config.memory.dtype == "float16" and accelerator.device.type == "cpu":
        journal.line(
            "memory.dtype=float16 is for GPUs: on a CPU it takes many times as long as float32."
        )
    for text in state.task.remarks:
        journal.line(text)
    facts = {
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "parameters": count,
        "first_step": state.step,
        **prepared.facts,
    }
    processes.on_main(accelerator, lambda: record_session(config.output, facts))
    if config.trackers:
        accelerator.init_trackers(config.output.name, config=_flat(config))


def _flat(config: RunConfig) -> dict[str, str]:
    """Sections as text: trackers take no nested values."""
    return {name: str(value) for name, value in config.dump().items()}
