"""Passes as CUDA graphs, on the pretend device: a replay does what was recorded, and no more."""

import pretend_cuda
import pytest
import torch
from test_layers_math import normal
from torch import nn

from volumediff.condition import Condition
from volumediff.errors import UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet

NETWORKS = {
    "unet": lambda: UNet(2, 2, image_channels=1, widths=(8, 16), blocks=1, conditioner="pyramid"),
    "guided": lambda: Guided(2, 2, widths=(8, 16), groups=4, resampling="convolution"),
    "monai": lambda: MonaiUNet(2, 2, widths=(8, 16), attention_levels=(1,), groups=4),
    "pseudo3d": lambda: Pseudo3D(2, 2, widths=(8, 16), blocks=1, attention_levels=(1,)),
}
HALF = {"dtype": "bfloat16", "channels_last": True, "checkpoint": 1}
SIZE = (2, 4, 4, 4)


def network(name):
    torch.manual_seed(0)
    made = NETWORKS[name]()
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    return made.to("cuda")


def called(net, number, *, size=SIZE):
    """A pass on the volumes with this number."""
    z = normal(1, *size, seed=number, dtype=torch.float32).to("cuda")
    t = torch.tensor([0.1 * (number + 1)], device="cuda")
    image = normal(1, 1, *size[1:], seed=50 + number, dtype=torch.float32).to("cuda")
    told = Condition(image=image) if net.image_channels else Condition()
    return net(z, t, told), z


def steps(net, *, count=2, accumulate=2):
    """Losses and weights of a training whose gradients are accumulated."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    losses = []
    for step in range(count):
        for micro in range(accumulate):
            y, z = called(net, accumulate * step + micro)
            loss = (y - z).square().mean() / accumulate
            loss.backward()
            losses.append(loss.detach().cpu())
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        kept = [called(net, 9)[0], called(net, 10)[0]]
    return [*losses, *(k.cpu() for k in kept), *(p.detach().cpu() for p in net.parameters())]


@pytest.mark.parametrize(("name", "how"), [*((name, HALF) for name in NETWORKS), ("guided", {})])
def test_trainings_and_passes_are_equal_to_the_bit(name, how):
    found = []
    for graphs in (False, True):
        with pretend_cuda.device() as gpu:
            net = network(name)
            MemoryPolicy(**how, cuda_graphs=graphs).apply(net)
            found.append(steps(net))
            # Four passes and their way back, and two without; the image's branch is two more each.
            passes = 3 if net.conditioner.places else 1
            assert gpu.launches == (passes * (4 * 2 + 2) if graphs else 0)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][2])


def test_a_replay_waits_for_nothing_and_shows_nothing():
    with pretend_cuda.device() as gpu:
        net = network("guided")
        MemoryPolicy(cuda_graphs=True).apply(net)
        z, t = normal(1, *SIZE, dtype=torch.float32).to("cuda"), torch.zeros(1, device="cuda")
        net(z, t).square().mean().backward()
        gpu.waits.clear()
        net(z + 1, t).square().mean().backward()
        assert gpu.launches == 4
        assert gpu.waits.total() == 0
        seen = []
        net.act.register_forward_hook(lambda module, given, y: seen.append(y))
        net(z, t)
        assert len(seen) == 1
        assert gpu.launches == 4


def test_what_waits_cannot_be_recorded(monkeypatch):
    body = Guided.body
    monkeypatch.setattr(Guided, "body", lambda self, x, e: body(self, x, e) * x.sum().item())
    with pretend_cuda.device():
        net = network("guided")
        called(net, 0)
        MemoryPolicy(cuda_graphs=True).apply(net)
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            called(net, 0)


def test_passes_are_refused_that_graphs_cannot_have():
    with pretend_cuda.device():
        net = network("guided")
        MemoryPolicy(cuda_graphs=True).apply(net)
        twice = called(net, 0)[0].sum() + called(net, 1)[0].sum()
        with pytest.raises(UsageError, match="calls a network more than once"):
            twice.backward()
        with torch.no_grad():
            for depth in (2, 4, 6):
                called(net, 0, size=(2, depth, 4, 4))
            with pytest.raises(UsageError, match=r"4 shapes at most.*\(1, 2, 8, 4, 4\)"):
                called(net, 0, size=(2, 8, 4, 4))
    for words, named in (({"slab": 2}, "memory.slab"), ({"offload": True}, "memory.offload")):
        with pytest.raises(ValueError, match=named):
            MemoryPolicy(cuda_graphs=True, **words)


def test_on_a_cpu_nothing_is_recorded():
    torch.manual_seed(0)
    net = NETWORKS["guided"]()
    z, t = normal(1, *SIZE, dtype=torch.float32), torch.tensor([0.3])
    wanted = net(z, t)
    MemoryPolicy(cuda_graphs=True).apply(net)
    assert torch.equal(net(z, t), wanted)
