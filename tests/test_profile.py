"""Measured steps beside the plan, and what is said where memory runs out."""

import json

import pytest
import torch
from test_planner import TINY, small
from tiny_app import PLAIN, QUICK, base, label_run, program, run, write_cases
from tiny_runs import tiny, write_data

from volumediff.commands._tables import profiled
from volumediff.errors import DataError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks.unet import UNet
from volumediff.planning import shortage
from volumediff.planning.planner import trace
from volumediff.planning.profile import _Stopwatch, profile
from volumediff.settings.run_config import saved_config

__all__ = ["base", "program", "run"]  # fixtures

SHORTAGES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


@pytest.fixture
def labels(base):
    """A run that segments; it is trained before memory runs out."""
    return label_run(base)


@pytest.fixture
def exhausted(request, monkeypatch):
    """Networks that run out of memory wherever they compute with real numbers."""
    body = UNet.body

    def attempt(self, x, e):
        if type(x) is torch.Tensor:
            raise SHORTAGES[request.param]
        return body(self, x, e)

    monkeypatch.setattr(UNet, "body", attempt)


def has(monkeypatch, gigabytes):
    monkeypatch.setattr(shortage, "_total_gb", lambda device: gigabytes)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_measures_what_was_planned(mode, tmp_path, capsys):
    found = profile(small("wavelet", size=16), mode=mode, steps=2, snapshot=tmp_path / "s")
    assert found.measured.peak_gb == pytest.approx(found.planned.peak_gb, rel=0.1)
    assert set(found.seconds) == set(found.measured.stages) == set(found.planned.stages)
    assert all(s > 0 for s in found.seconds.values())
    assert sum(found.seconds.values()) <= 1.5 * found.step_seconds
    assert found.rss_gb[0] >= found.rss_gb[1] > 0.1
    assert found.allocated_gb is None
    profiled(found)
    assert "of it planned" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


def test_a_stopwatch_charges_the_innermost_stage(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("volumediff.planning.profile.time.perf_counter", lambda: now[0])
    watch = _Stopwatch(torch.device("cpu"))
    with watch.stage("outer"):
        now[0] += 1
        with watch.stage("inner"):
            now[0] += 10
        now[0] += 100
    with watch.stage("inner"):
        now[0] += 1000
    assert watch.seconds == {"outside": 0, "outer": 101, "inner": 1010}


def test_the_program_profiles(program):
    code, text, _ = program("profile", *TINY, "--steps", "1", "--json")
    assert code == 0
    found = json.loads(text)
    assert found["peak_gb"] == pytest.approx(found["planned_peak_gb"], rel=0.1)
    assert list(found["stages"]) == ["encode", "forward", "backward", "optimizer"]
    assert {"step_seconds", "rss_gb", "device", "policy"} <= set(found)
    code, text, _ = program("profile", *TINY, "--steps", "0", "--json")
    assert code == 0
    assert json.loads(text)["step_seconds"] > 0
    code, _, complaint = program("profile", *TINY, "--steps", "-1")
    assert code == 2
    assert "--steps" in complaint


def test_what_counts_as_a_shortage():
    assert all(shortage.is_shortage(error) for error in SHORTAGES.values())
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert shortage.is_shortage(real.value)
    for error in (RuntimeError("sizes differ"), ValueError("out of memory"), DataError("memory")):
        assert not shortage.is_shortage(error)


def one_line(code, complaint):
    assert code == 1
    assert "Traceback" not in complaint
    lines = [line for line in complaint.splitlines() if line.startswith("volumediff: ")]
    assert lines
    return lines[-1]


@pytest.mark.parametrize("exhausted", ["cpu"], indirect=True)
def test_training_says_what_the_planner_would_do(program, exhausted, tmp_path, monkeypatch):
    data = write_data(tmp_path / "data", cases=4)
    config = tiny(data, tmp_path / "run", "validation.best=null", "optim.steps=1")
    file = tmp_path / "tiny.yaml"
    file.write_text(config.to_yaml())
    saved = config.model_copy(update={"memory": MemoryPolicy(checkpoint=True)})
    needs = [trace(c).card_gb for c in (config, saved)]
    has(monkeypatch, sum(needs) / 2)
    line = one_line(*program("train", file)[::2])
    assert line.startswith("volumediff: error: out of memory on cpu (1.3 GB)")
    assert "volumes of 8×8×8; use memory.checkpoint=" in line


def test_advice_depends_on_what_there_is(tmp_path, monkeypatch):
    config = tiny(tmp_path, tmp_path, "memory.checkpoint=true")
    has(monkeypatch, 1.0)
    assert "no memory policy fits; what would fit: a card with 1.3 GB" in shortage.advice(
        config, mode="infer", device="cpu"
    )
    bare = tiny(tmp_path, tmp_path)
    has(monkeypatch, 64.0)
    text = shortage.advice(bare, mode="infer", device="cpu", shape=(16, 8, 8))
    assert "with volumes of 16×8×8; these settings need 1.3 GB by the plan" in text
    unknown = tiny(tmp_path, tmp_path, "data.preprocessing.shape=null")
    text = shortage.advice(unknown, mode="train", device="cpu")
    assert text.endswith("use smaller volumes or crops, or memory.checkpoint=true.")


def test_the_memory_of_this_machine_is_known():
    assert 0.1 < shortage._total_gb(torch.device("cpu")) < 1e5


def test_other_errors_pass(tmp_path):
    config = tiny(tmp_path, tmp_path)
    with (
        pytest.raises(RuntimeError, match="sizes differ"),
        shortage.explained(config, mode="train", device="cpu"),
    ):
        raise RuntimeError("sizes differ")


@pytest.mark.parametrize("exhausted", ["cuda"], indirect=True)
def test_inference_reports_a_case_that_does_not_fit(
    program, labels, run, exhausted, tmp_path, monkeypatch
):
    has(monkeypatch, 64.0)
    source = write_cases(tmp_path / "in", count=2)
    words = ("localize", source, "--run", run, "-o", tmp_path / "out", *QUICK)
    code, table, complaint = program(*words)
    assert "0 done, 2 failed" in table
    assert "new-1: out of memory on cpu (64.0 GB)" in one_line(code, complaint)
    # methods without the network are none the worse
    assert program("localize", source, "--run", run, "-o", tmp_path / "plain", *PLAIN)[0] == 0
    code, _, complaint = program(
        "sample", "--run", run, "-o", tmp_path / "samples", "sampler.steps=2"
    )
    assert "sample-0001: out of memory on cpu" in one_line(code, complaint)
    words = ("segment", source, "--run", labels, "-o", tmp_path / "labels")
    code, _, complaint = program(*words)
    assert "new-1: out of memory on cpu" in one_line(code, complaint)


def test_anything_else_that_runs_out_of_memory_is_one_line(program, monkeypatch):
    def attempt(*args, **kwargs):
        raise SHORTAGES["cpu"]

    monkeypatch.setattr("volumediff.planning.planner.plan", attempt)
    assert "volumediff plan" in one_line(*program("plan", *TINY)[::2])


def test_the_policy_of_a_trained_run_can_be_replaced(program, run, tmp_path):
    source = write_cases(tmp_path / "in", count=1)
    words = ("localize", source, "--run", run, "-o", tmp_path / "out", *QUICK)
    assert program(*words, "--memory", "channels_last=true", "--memory", "checkpoint=true")[0] == 0
    assert saved_config(run).memory == MemoryPolicy()
    code, _, complaint = program(*words, "--memory", "slap=8")
    assert code == 2
    assert "Did you mean 'slab'?" in complaint
