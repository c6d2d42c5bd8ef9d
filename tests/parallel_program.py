"""What the tests of several processes run under torchrun, in one launch for many of them.

exact    steps of all processes beside those of one, in float64
train    whole trainings, one after the other
faults   trainings in forked children, so that a process may die without the launch
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import tiny

from volumediff.distributed import processes
from volumediff.distributed.mesh import Mesh
from volumediff.distributed.signals import StopFlag
from volumediff.errors import DataError, UsageError
from volumediff.memory.domain import sharing
from volumediff.optimization.state import TrainingState
from volumediff.tasks import build_task
from volumediff.tasks.diffusion import DiffusionTask
from volumediff.training import loop, setup, steps

SAMPLES = 6
TIMEOUT = timedelta(seconds=60)


def batch_of(task, keys):
    """Samples that follow from their keys, in float64."""
    one = task.batch((8, 8, 8), 1)
    rooms = [torch.Generator().manual_seed(key) for key in keys]
    x = torch.stack([torch.rand(one.x.shape[1:], generator=g) * 2 - 1 for g in rooms])
    return replace(one, x=x.double(), keys=tuple(keys))


def task_of(words, *, shard):
    """A task in float64 whose gradients reach every weight, and a weight that nothing reads."""
    task = build_task(tiny("data", "run", *words, f"processes.shard={str(shard).lower()}"))
    torch.manual_seed(3)  # of a teacher without a run: the same in every process
    task.begin_training(None, fresh=True)
    for part in (task.module, task.training_only):
        part.double()
    for module in task.module.modules():
        if "dtype" in vars(module):
            module.dtype = torch.float64
    if "dtype" in vars(task):
        task.dtype = torch.float64
    generator = torch.Generator().manual_seed(5)
    for parameter in task.trained().values():
        if not parameter.any():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).double()
    for module in (next(iter(task.modules().values())), *task.training_only.values()):
        module.spare = torch.nn.Parameter(torch.ones(3).double())
    return task


def exact(case, accelerator):
    """Two steps: largest differences between all processes and one."""
    shard, micros = case["shard"], case.get("accumulate", 1)
    rank, world = accelerator.process_index, accelerator.num_processes
    optim = tiny("data", "run", "optim.lr=1e-4", "optim.clip=0.5", "optim.warmup=0").optim
    stop, found = StopFlag(), {}
    alone = SimpleNamespace(num_processes=1, reduce=torch.clone, gather=torch.clone)
    mesh = Mesh.of(domain=case.get("domain", 1), timeout=TIMEOUT)
    data = mesh.data
    one = task_of(case["words"], shard=False)
    with sharing(mesh.domain):
        many = task_of([*case["words"], f"processes.domain={mesh.domain.size}"], shard=shard)
        parallel = loop._data_parallel(many, many.config, accelerator)
    states = [TrainingState.fresh(one, optim), TrainingState.fresh(many, optim, parallel)]
    share = SAMPLES // data.size // micros
    firsts = [(i * data.size + data.rank) * share for i in range(micros)]
    for _ in range(2):
        whole = steps.take_step(states[0], optim, [batch_of(one, range(SAMPLES))], alone, stop)
        mine = [batch_of(many, range(first, first + share)) for first in firsts]
        step = steps.take_step(states[1], optim, mine, accelerator, stop)
        pairs = zip(whole.numbers.read(), step.numbers.read(), strict=True)
        gaps = (abs(a - b) / max(abs(a), 1) for a, b in pairs)
        found["numbers"] = max(found.get("numbers", 0), *gaps)
    kept = [state.tensors("last") for state in states]
    losses = []
    for state in states:  # of the averaged weights, as validation sees them: one process, one loss
        with state.averaged(), torch.no_grad():
            turns = range(data.rank, 5, data.size)
            numbers = range(SAMPLES) if state.parallel is not parallel else turns
            each = {n: float(state.task.loss(one.main, batch_of(one, [n]))) for n in numbers}
        losses.append(each)
    found["validation"] = max(abs(losses[0][n] - value) for n, value in losses[1].items())
    again = [state.tensors("last") for state in states]
    # the exchange works as before after passes of single processes
    parallel.backward(one.main, [batch_of(many, range(first, first + share)) for first in firsts])
    if rank == 0:
        for name, group in kept[0].items():
            other = kept[1][name]
            assert set(group) == set(other), set(group) ^ set(other)
            assert all(group[n].dtype == other[n].dtype for n in group)
            found[name] = max(float((group[n] - other[n]).abs().max()) for n in group)
            same = all(torch.equal(other[n], again[1][name][n]) for n in other)
            assert same, "averaged() changes the state"
        found["held"] = sum(p.numel() for p in local(states[1].trained.values()))
        # rows that do not divide evenly: the first process has the larger share
        parts = world if shard else 1
        found["share"] = sum(
            -(-len(p) // parts) * (p.numel() // len(p)) for p in states[0].trained.values()
        )
        found["moments"] = sum(
            t.numel()
            for o in states[1].optimizers.values()
            for s in o.state.values()
            for t in local(s.values())
        )
        found |= {"case": case["name"], "shard": shard, "world": world}
        tell(found)


def tell(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def local(tensors):
    """What this process holds of tensors."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def run(data, output, words):
    try:
        loop.train(tiny(data, output, *words))
    except (UsageError, DataError) as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    except SystemExit as stopped:
        return stopped.code
    return 0


def fault(kind, data, output, words, port, marker):
    """A training in a child of this rank; rank 1 meets the fault in its third step."""
    rank, began = int(os.environ["RANK"]), time.monotonic()
    child = os.fork()
    if child == 0:
        os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        if kind == "patience":
            slow(rank)
        elif kind == "frozen preview":
            freeze_preview(rank)
        elif rank == 1:
            at_step(3, {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}.get(kind) or kind)
        with suppress(BaseException):
            os._exit(run(data, output, words))
        os._exit(9)
    code = None
    while code is None:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
        elif rank == 1 and Path(marker).exists() and str(kind).startswith("fr"):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    if rank == 0:
        Path(marker).touch()
    seconds = round(time.monotonic() - began, 1)
    line = {"kind": str(kind), "rank": rank, "code": code, "seconds": seconds}
    tell(line)


def at_step(number, what):
    """Sends this process a signal in a step, before its weights move."""
    original, count = steps.clipped, 0

    def clipped(*arguments):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), what)
        return original(*arguments)

    steps.clipped = clipped


def freeze_preview(rank):
    """This process freezes while it makes its preview."""
    if rank == 1:
        DiffusionTask.preview = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)


def slow(rank):
    """Main-only work, and this rank's previews, take longer than a step may."""
    if rank:
        return
    measure, preview = setup._measure_once, setup.Task.preview

    def slowly(function):
        def wrapped(*arguments):
            time.sleep(11)
            return function(*arguments)

        return wrapped

    setup._measure_once = slowly(measure)
    DiffusionTask.preview = slowly(preview)


def main():
    torch.set_num_threads(1)
    plan = json.loads(Path(sys.argv[1]).read_text())
    if plan["exact"]:
        accelerator = processes.start(tiny("data", "run"))
        for case in plan["exact"]:
            exact(case, accelerator)
    for one in plan["train"]:
        run(*one)
    for one in plan["faults"]:
        fault(*one)
    if plan["exact"] or plan["train"]:
        dist.barrier()
        processes.leave()


if __name__ == "__main__":
    main()
