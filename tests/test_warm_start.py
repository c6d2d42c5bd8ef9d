"""A run that begins with another one: slices first, then volumes."""

import pytest
import torch
from tiny_runs import load_run, tiny, write_data

from volumediff.condition import Condition
from volumediff.errors import UsageError
from volumediff.tasks import build_task, warm_start
from volumediff.training.loop import train

SLICES = (
    "space={name: slices, inner: voxel, axis: w}",
    "network={name: pseudo3d, widths: [4, 8], blocks: 1, groups: 2}",
)
FLAT = ("network.through_plane=false", "crop=[8, 8, 1]")


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A run trained on single slices."""
    folder = tmp_path_factory.mktemp("flat")
    config = tiny(write_data(folder / "data"), folder / "run", *SLICES, *FLAT, "optim.lr=0.05")
    return folder / "data", train(config)


def test_an_inflated_run_begins_as_the_model_of_slices(flat, tmp_path):
    data, run = flat
    task = build_task(tiny(data, tmp_path / "deep", *SLICES))
    warm_start(task, run)
    z_t = torch.randn(1, 1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.5])
    _, slices = load_run(run)
    with torch.no_grad():
        one_by_one = torch.cat(
            [slices.network(z_t[:, :, i : i + 1], t, Condition()) for i in range(5)], 2
        )
        together = task.module.network(z_t, t, Condition())
    assert float(one_by_one.abs().max()) > 0.01, "an untrained network is zero and proves nothing"
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_in_three_dimensions(flat, tmp_path):
    data, run = flat
    words = (*SLICES, f"start_from={run}", "optim.lr=1e-9", "optim.steps=1", "optim.ema=0")
    _, deep = load_run(train(tiny(data, tmp_path / "deep", *words)))
    _, slices = load_run(run)
    name = "hourglass.head.in_plane.weight"
    torch.testing.assert_close(deep.network.state_dict()[name], slices.network.state_dict()[name])


def test_other_networks_are_refused(flat, tmp_path):
    data, run = flat
    task = build_task(tiny(data, tmp_path / "wide", *SLICES, "network.widths=[4, 16]"))
    with pytest.raises(UsageError, match=r"start_from = .*does not fit this network"):
        warm_start(task, run)
