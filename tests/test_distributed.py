"""Processes: two under torchrun give what one gives with the same global batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import figures, tiny, write_data

from volumediff.errors import UsageError
from volumediff.optimization.metrics_file import read_metrics
from volumediff.storage import checkpoint
from volumediff.training.loop import train

WORDS = ["optim.batch_size=4", "optim.steps=4", "optim.lr=1e-4", "save_every=2"]
DIFFUSION = [*WORDS, "data.augmentation={flip: [0]}", "crop=[4,4,4]", "validation.volumes=2"]
AUTOENCODER = [
    *WORDS,
    "task=autoencoder",
    "autoencoder={name: kl, widths: [4, 8], strides: [[2, 2, 2]], blocks: 1}",
    "autoencoder.adversarial=0.1",
]
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tiny_runs import tiny
from volumediff.errors import DataError, UsageError
from volumediff.training.loop import train
from volumediff.distributed.processes import leave

for data, output, words in json.loads(sys.argv[2]):
    try:
        train(tiny(data, output, *words))
    except (UsageError, DataError) as error:
        sys.stderr.write(f"refused: {error}\\n")
leave()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=8)


def launch(tmp_path, runs, *, ranks=2):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), str(script), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*command, json.dumps(runs)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def difference(a, b, name):
    one, other = (checkpoint.find(run, "last").tensors(name) for run in (a, b))
    assert set(one) == set(other)
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


@pytest.mark.slow
def test_two_processes_equal_one(data, tmp_path):
    both = {"diffusion": DIFFUSION, "autoencoder": AUTOENCODER}
    runs = [[str(data), str(tmp_path / f"two-{n}"), words] for n, words in both.items()]
    refused = [str(data), str(tmp_path / "three"), [*DIFFUSION, "processes.number=3"]]
    odd = [str(data), str(tmp_path / "odd"), [*DIFFUSION, "optim.batch_size=3"]]
    process = launch(tmp_path, [*runs, refused, odd])
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "2 process(es) on cpu" in said
    assert said.count("processes.number: 3 requested, 2 launched, 2 joined") == 2, (
        "both ranks say why"
    )
    assert said.count("shared by 2 processes") == 2
    for name, words in both.items():
        two, one = tmp_path / f"two-{name}", train(tiny(data, tmp_path / f"one-{name}", *words))
        for kind in ("weights", "ema"):
            assert difference(two, one, kind) < 1e-5
        rows = [figures(run) for run in (two, one)]
        assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
        for a, b in zip(*rows, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_and_saves_all(data, tmp_path):
    run = tmp_path / "run"
    words = ["optim.steps=99999", "save_every=99999", "validation.every=99999"]
    process = launch(tmp_path, [[str(data), str(run), words]])
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(run / "metrics.jsonl") and time.monotonic() < deadline:
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("needs /proc to find the ranks")
        ranks = [int(pid) for pid in children.read_text().split()]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGTERM)
        _, said = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopped after step" in said
    assert checkpoint.find(run, "last").step > 0


def test_a_launch_that_did_not_become_processes_is_refused(data, tmp_path, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` does: one process, without a word."""
    with pytest.raises(
        UsageError, match=r"processes.number: 2 requested, 1 launched, 1 joined.*torchrun"
    ):
        train(tiny(data, tmp_path / "run", "processes.number=2"))
