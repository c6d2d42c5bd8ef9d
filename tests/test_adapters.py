"""Adapters: low rank corrections of a frozen run, alone in the checkpoint, merged when loaded."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import figures, tiny, write_data

import volumediff
from volumediff.adapters._base import attach, merge
from volumediff.adapters.lora import LoRA
from volumediff.config import build
from volumediff.errors import DataError, UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._layers import Conv
from volumediff.optimization.state import TrainingState
from volumediff.planning.planner import plan
from volumediff.runs.model_file import copy_run
from volumediff.storage import checkpoint
from volumediff.tasks import build_task, load_task
from volumediff.training.loop import train

LORA = "adapter={name: lora, rank: 2}"
KL = "autoencoder={name: kl, widths: [4, 8], strides: [[2, 2, 2]], blocks: 1, adversarial: 0.1}"
LABELS = ("recipe={name: label_diffusion, labels: [1]}", "supervision={deep_supervision: 1}")
TASKS = {
    "diffusion": (),
    "autoencoder": ("task=autoencoder", KL),
    "segmentation": (
        *("task=segmentation", "space=voxel", *LABELS),
        "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def data(folder):
    return write_data(folder / "data", cases=8, labels=True)


@pytest.fixture(scope="module")
def base(folder, data):
    return train(tiny(data, folder / "base", "optim.lr=0.02"))


@pytest.fixture(scope="module")
def other(folder):
    """Volumes of another site."""
    return write_data(folder / "other", cases=9)


@pytest.fixture(scope="module")
def run(folder, base, other):
    return train(adapted(other, folder / "run", base))


def adapted(data, output, base, *words):
    return tiny(data, output, f"start_from={base}", LORA, "optim.lr=0.02", *words)


def randomise(module):
    """Adapters as after training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_kernel_of_low_rank_is_two_convolutions_beside_the_frozen_one():
    layer, x = Conv(5, 6, stride=(2, 1, 1)).double(), torch.randn(2, 5, 6, 5, 4).double()
    frozen = layer(x)
    attach(LoRA(rank=2, alpha=6.0), layer)
    randomise(layer)
    low = layer.parametrizations["weight"][0]
    narrow = F.conv3d(x, low.down.view(2, 5, 3, 3, 3), stride=(2, 1, 1), padding=1)
    wide = F.conv3d(narrow, low.up.view(6, 2, 1, 1, 1))
    assert float(wide.detach().std()) > 0.01
    torch.testing.assert_close(layer(x), frozen + 6.0 / 2 * wide)


def test_the_rank_is_never_above_that_of_the_weight():
    layer = Conv(3, 2)
    attach(LoRA(rank=8), layer)
    low = layer.parametrizations["weight"][0]
    assert (low.down.shape, low.up.shape) == ((2, 81), (2, 2))


@pytest.mark.parametrize("task", TASKS)
def test_an_adapted_run_begins_as_the_run_that_it_adapts(task, data, tmp_path):
    source = train(tiny(data, tmp_path / "base", *TASKS[task], "optim.steps=2", "optim.lr=0.02"))
    config = tiny(data, tmp_path / "new", *TASKS[task], f"start_from={source}", LORA)
    mine, theirs = build_task(config, run=tmp_path / "new"), load_task(source)
    batch = mine.batch((8, 8, 8), 2)
    for player in mine.modules():
        mine.module.eval()
        with torch.no_grad():
            first, expected = mine.loss(player, batch), theirs.loss(player, batch)
        assert torch.equal(first, expected), player
    mine.module.train()
    mine.loss(mine.main, batch).mean().backward()
    reached = {n for n, p in mine.module.named_parameters() if p.grad is not None}
    assert reached, "a loss without gradients proves nothing"
    assert reached <= {n for n in mine.trained() if n.endswith((".up", ".down"))}
    randomise(mine.module)
    with torch.no_grad():
        assert not torch.allclose(mine.loss(mine.main, batch), expected, rtol=1e-4)


def test_a_checkpoint_holds_the_adapter_alone(base, run):
    mine, theirs = checkpoint.find(run, "last"), checkpoint.find(base, "last")
    names = set(mine.tensors("weights"))
    assert names == {n for n in names if n.endswith((".up", ".down")) or "space." in n}
    large, small = theirs.tensors("optimizer"), mine.tensors("optimizer")
    assert {n.split("/")[1] for n in small} == {n for n in names if "space." not in n}
    assert sum(t.numel() for t in small.values()) < 0.6 * sum(t.numel() for t in large.values())


def test_a_loaded_run_is_the_base_with_the_corrections_written_into_it(base, run, other):
    loaded, source = load_task(run), load_task(base)
    assert set(loaded.state()) == set(source.state())
    again = build_task(adapted(other, run, base), run=run)
    again.load(checkpoint.find(run, "best").tensors("ema"))
    again.module.eval()
    batch = again.batch((8, 8, 8), 2)
    with torch.no_grad():
        unmerged, merged = again.loss("network", batch), loaded.loss("network", batch)
        torch.testing.assert_close(merged, unmerged, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(merged, source.loss("network", batch), rtol=1e-3)
    # what was fitted for the base's weights is the base's, although the volumes are others
    for name in ("shift", "scale"):
        assert torch.equal(getattr(loaded.model.space, name), getattr(source.model.space, name))


def test_the_base_is_read_and_never_written(base, run):
    stored = checkpoint.find(base, "best").tensors("ema")
    for name, tensor in load_task(base).state().items():
        assert torch.equal(tensor, stored[name])
    assert checkpoint.find(run, "last").state["borrowed"] != ""


def test_a_stopped_run_goes_on_bit_exactly(folder, base, other, run):
    output = folder / "stopped"
    train(adapted(other, output, base, "optim.steps=2"))
    train(adapted(other, output, base))
    for kind in ("weights", "ema", "optimizer"):
        one, two = (checkpoint.find(r, "last").tensors(kind) for r in (run, output))
        assert set(one) == set(two)
        assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = ([row for row in figures(r) if "loss" in row] for r in (run, output))
    assert one == two


@pytest.mark.parametrize(
    "policy", [{"slab": 3}, {"slab": 2, "offload": True}, {"checkpoint": True}]
)
def test_memory_policies_give_the_same_gradients(policy):
    gradients = []
    for memory in (MemoryPolicy(), MemoryPolicy(**policy)):
        torch.manual_seed(0)
        spec = {
            "name": "unet",
            "widths": [4, 8],
            "blocks": 1,
            "groups": 2,
            "attention_levels": [1],
        }
        network = build("network", spec, in_channels=1, out_channels=1).double()
        attach(LoRA(rank=2), network)
        randomise(network)
        memory.apply(network)
        x = torch.linspace(-1, 1, 512, dtype=torch.float64).view(1, 1, 8, 8, 8).sin()
        y = network(x, torch.tensor([0.5]).double(), volumediff.condition.Condition())
        y.square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    whole, cut = gradients
    assert float(max(g.abs().max() for g in whole.values())) > 1e-6
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_plan_counts_moments_of_the_adapter_alone(data):
    configs = tiny(data, "full"), tiny(data, "small", "start_from=runs/none", LORA)
    moments, gradients = [], []
    for config in configs:
        stages = plan(config, mode="train").chosen.stages
        moments.append(max(peak.parts["optimizer"] for peak in stages.values()))
        gradients.append(stages["optimizer"].parts["gradients"])
        state = TrainingState.fresh(build_task(config), config.optim)
        average = sum(t.nbytes for t in state.ema.tensors.values())
        # moments twice, and the average; counters of steps are a few bytes
        assert 3 * average <= moments[-1] < 3.1 * average
    assert moments[1] < 0.6 * moments[0]
    assert gradients[1] < 0.6 * gradients[0]


def test_an_exported_run_stands_alone(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy_run(volumediff.load(run).trained, tmp_path / "copy")
    alone = load_task(tmp_path / "copy")
    assert (alone.config.adapter, alone.config.start_from) == (None, None)
    for name, tensor in load_task(run).state().items():
        torch.testing.assert_close(alone.state()[name], tensor, rtol=2**-7, atol=1e-6)


def test_a_changed_base_is_refused(folder, base, other, data):
    source = folder / "moved"
    shutil.copytree(base, source)
    output = train(adapted(other, folder / "changing", source, "optim.steps=1"))
    shutil.rmtree(source)
    train(tiny(data, source, "optim.lr=0.01", "optim.steps=2"))
    with pytest.raises(DataError, match=r"start_from = .*not those that it was trained with"):
        load_task(output)
    with pytest.raises(DataError, match="other frozen weights \\(of start_from\\)"):
        train(adapted(other, output, source, "optim.steps=2"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["network.widths=[4, 16]"], r"network: expected that of start_from = .*4, 8.*an adapter"),
        (["kernel.prediction=eps"], r"kernel: expected that of start_from"),
        (["data.channels=[T1w,T2w]"], r"number of data.channels: expected that of start_from"),
        (["adapter={name: lora, rank: 0}"], "expected a rank of at least 1, got 0"),
        (["adapter={name: lora, rang: 2}"], "LoRA takes rank, alpha.*Did you mean 'rank'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(base, data, tmp_path, words, said):
    with pytest.raises(UsageError, match=said):
        build_task(adapted(data, tmp_path / "new", base, *words), run=tmp_path / "new")


def test_an_adapter_needs_a_run_and_a_task_with_one_set_of_weights(data, tmp_path):
    with pytest.raises(UsageError, match="adapter: needs start_from"):
        tiny(data, tmp_path / "new", LORA)
    words = ("task=pretraining", "pretext=mae", "space=voxel", "start_from=runs/none", LORA)
    network = "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}"
    with pytest.raises(UsageError, match=r"autoencoder, diffusion, segmentation.*got pretraining"):
        build_task(tiny(data, tmp_path / "new", *words, network))


def test_merging_a_module_without_adapters_changes_nothing():
    layer = Conv(2, 3)
    before = {n: t.clone() for n, t in layer.state_dict().items()}
    merge(layer)
    assert all(torch.equal(t, before[n]) for n, t in layer.state_dict().items())
