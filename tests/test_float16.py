"""Activations in float16: equal to float32 up to its rounding, with losses that are scaled."""

import json

import pytest
import torch
from tiny_runs import figures, tiny, write_data

from volumediff.distributed.one_process import OneProcess
from volumediff.errors import DataError, UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._norm_act import norm_act
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.optimization import state as states
from volumediff.randomness import normal
from volumediff.runs.trained import load_trained
from volumediff.training.loop import train

HALF = "memory.dtype=float16"
NETWORKS = {
    "group": lambda: UNet(1, 1, widths=(8, 16), blocks=1, groups=2),
    "voxel": lambda: UNet(1, 1, widths=(8, 16), blocks=1, norm="voxel"),
    "pseudo3d": lambda: Pseudo3D(1, 1, widths=(8, 16), blocks=1, groups=2),
}
EPSILON = 2.0**-11  # half a unit in the last place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def passed(network, x, dtype):
    """Output and gradients of one pass under a policy, in float32."""
    MemoryPolicy(dtype).apply(network)
    y = network(x.to(MemoryPolicy(dtype).torch_dtype), torch.tensor([0.3, 0.7]))
    network.zero_grad()
    (y.float() - x).square().mean().mul(2.0**10).backward()
    return y.float(), {n: p.grad / 2.0**10 for n, p in network.named_parameters()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_follows_float32(kind):
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    for i, parameter in enumerate(network.parameters()):  # the last layer begins at zero
        parameter.data += 0.1 * normal(tuple(parameter.shape), "float16", i)
    x = normal((2, 1, 8, 8, 8), "float16", "x")
    (y, grads), (exact, wanted) = (passed(network, x, d) for d in ("float16", "float32"))
    assert y.dtype == torch.float32
    away = (y - exact).norm() / exact.norm()
    assert 0 < away < 8 * EPSILON  # bfloat16 is eight times as coarse
    for name, grad in grads.items():
        if wanted[name] is not None and wanted[name].norm() > 1e-4:
            assert (grad - wanted[name]).norm() < 0.02 * wanted[name].norm(), name
    coarse, _ = passed(network, x, "bfloat16")
    assert (coarse - exact).norm() / exact.norm() > 3 * away


@pytest.mark.parametrize("kind", ["group", "voxel", "slice"])
def test_statistics_are_wide(kind):
    """A mean of 300 deviations, whose square is beyond the end of float16."""
    x = (300 + normal((1, 4, 6, 6, 6), "float16", "n")).half()
    ones, zeros = torch.ones(1, 4), torch.zeros(1, 4)
    grad = normal(tuple(x.shape), "float16", "gradient").half()
    found = []
    for part in (x, x.float()):
        part.requires_grad_()
        y = norm_act(part, ones, zeros, kind=kind, groups=2, eps=1e-5)
        found.append((y, *torch.autograd.grad(y, part, grad.to(y.dtype))))
    for half, wide in zip(*found, strict=True):
        assert half.dtype == torch.float16
        assert (half.float() - wide).norm() < 2e-3 * wide.norm()


def state_of(run):
    (path,) = (run / "checkpoints").glob("last-00000006*")
    return json.loads((path / "state.json").read_text())


def test_training_follows_float32_and_does_not_depend_on_the_scale(data, tmp_path, monkeypatch):
    exact = train(tiny(data, tmp_path / "float32"))
    runs = {}
    for scale in (2.0**8, 2.0**12):
        scaler = torch.amp.GradScaler
        monkeypatch.setattr(
            states, "GradScaler", lambda *a, s=scale, c=scaler, **k: c(*a, init_scale=s, **k)
        )
        runs[scale] = train(tiny(data, tmp_path / str(scale), HALF))
        monkeypatch.undo()
        assert state_of(runs[scale])["scaling"] == {"scale": scale, "growth_tracker": 6}
        assert state_of(runs[scale])["skipped"] == 0
    losses = [[row["loss"] for row in figures(run) if "loss" in row] for run in runs.values()]
    wanted = [row["loss"] for row in figures(exact) if "loss" in row]
    assert losses[0] == pytest.approx(wanted, rel=2e-3)
    # powers of two change no digits, but for those below the smallest numbers of float16
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    gradients = [[row["gradient"] for row in figures(run) if "gradient" in row]
                 for run in (exact, *runs.values())]  # fmt: skip
    assert gradients[1] == pytest.approx(gradients[0], rel=0.02)
    assert state_of(exact)["scaling"] is None


def with_overflow(monkeypatch, at):
    """Gradients are not finite in these steps, which are counted over all sessions from 1."""
    fresh = states.TrainingState.fresh.__func__
    backward = OneProcess.backward
    held = {}

    def remembered(cls, *args, **kwargs):
        held["state"] = fresh(cls, *args, **kwargs)
        return held["state"]

    def large(self, player, micros, scaled):
        found = backward(self, player, micros, scaled)
        if held["state"].step + 1 in at:
            held["state"].players[player][0].grad.view(-1)[0] = torch.inf
        return found

    monkeypatch.setattr(states.TrainingState, "fresh", classmethod(remembered))
    monkeypatch.setattr(OneProcess, "backward", large)


def test_steps_that_overflow_are_skipped_and_a_resume_changes_nothing(data, tmp_path, monkeypatch):
    with_overflow(monkeypatch, at=(2, 4, 5))
    whole = tmp_path / "whole"
    seen = []
    save = states.TrainingState.save

    def noted(self, run, kind, tensors):
        seen.append((kind, self.step, {n: t.clone() for n, t in tensors["weights"].items()}))
        save(self, run, kind, tensors)

    with monkeypatch.context() as changed:
        changed.setattr(states.TrainingState, "save", noted)
        train(tiny(data, whole, HALF, "save_every=1"))
    at = {step: weights for kind, step, weights in seen if kind == "last"}
    same = [all(torch.equal(at[i][n], at[i + 1][n]) for n in at[i]) for i in range(1, 6)]
    assert same == [True, False, True, True, False]  # steps 2, 4 and 5 left the weights
    state = state_of(whole)
    assert state["skipped"] == 3
    assert state["scaling"] == {"scale": 2.0**13, "growth_tracker": 1}
    rows = [row for row in figures(whole) if "loss" in row]
    assert [row.get("skipped") for row in rows] == [None, 1, None, 2, 3, None]
    assert ["gradient" in row for row in rows] == [True, False, True, False, False, True]
    parts = tmp_path / "parts"
    for stop in (4, 6):
        config = tiny(data, parts, HALF, "save_every=1")
        ended = states.TrainingState.ended
        with monkeypatch.context() as changed:
            changed.setattr(
                states.TrainingState, "ended", lambda s, o, n=stop, e=ended: s.step >= n or e(s, o)
            )
            train(config)
    for name in ("weights.safetensors", "optimizer.safetensors", "ema.safetensors"):
        files = [
            next((run / "checkpoints").glob("last-00000006*")) / name for run in (whole, parts)
        ]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    again = state_of(parts)
    assert (again["skipped"], again["scaling"]) == (state["skipped"], state["scaling"])


def test_gradients_that_never_fit_end_the_training(data, tmp_path, monkeypatch):
    with_overflow(monkeypatch, at=range(1, 100))
    words = ("optim.steps=30", "validation.every=50", "validation.best=null")
    with pytest.raises(DataError, match=r"step 18: not finite \(loss .*, gradient norm (inf|nan)"):
        train(tiny(data, tmp_path / "run", HALF, *words))
    with pytest.raises(DataError, match="step 1: not finite"):
        train(tiny(data, tmp_path / "float32", *words))


def test_what_float16_is_not_for_is_said(data, tmp_path, capsys):
    run = train(tiny(data, tmp_path / "run", HALF, "optim.steps=1"))
    assert "float16 is for GPUs: on a CPU" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"run: computes in float16, .* dtype=float32"):
        load_trained(run)
    assert load_trained(run, memory=["dtype=float32"]).config.memory.dtype == "float32"
    with pytest.raises(UsageError, match=r"^device 'mps': not supported, since .* float64"):
        load_trained(run, memory=["dtype=float32"], device="mps")
