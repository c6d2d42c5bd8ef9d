"""The tracer counts what lives: by hand, and against the tracker that ships with torch."""

import gc

import pytest
import torch
from tiny_runs import tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from volumediff.memory import host
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.optimization.state import TrainingState
from volumediff.planning.fake import fake_task
from volumediff.planning.step import train_step, with_moments
from volumediff.planning.tracer import Tracer

KB = 1024  # bytes of 256 float32 values


@pytest.fixture(params=["real", "fake"])
def tensors(request):
    """The two kinds of tensors."""
    if request.param == "real":
        yield
    else:
        with FakeTensorMode():
            yield


def test_views_and_results_in_place_add_nothing(tensors):
    with Tracer() as tracer:
        x = torch.ones(256)
        y = x.view(16, 16).T[2:].add_(1)
        assert tracer.live == KB
        z = torch.cat([x, x])
        assert tracer.live == 3 * KB
        del x
        assert tracer.live == 3 * KB  # y still looks at the first one
        del y
        assert tracer.live == 2 * KB
        del z
        assert tracer.live == 0
    assert tracer.peak.device == 3 * KB


def test_sizes_are_those_of_storages(tensors):
    with Tracer() as tracer:
        x = torch.zeros(256, dtype=torch.bfloat16)
        part = torch.zeros(512)[:3]
        assert tracer.live == KB // 2 + 2 * KB
        x.resize_(1024)
        assert tracer.live == 4 * KB
        torch.add(torch.ones(512), 1, out=part.resize_(512))
        assert tracer.live == 4 * KB
    assert tracer.peak.device == 6 * KB


def test_a_chain_of_layers_by_hand(tensors):
    """y = relu(relu(x W) W) keeps both results; the gradients of two of them overlap."""
    weight = nn.Parameter(torch.full((256, 256), 1e-3))
    x = torch.ones(1, 256)
    with Tracer() as tracer:
        tracer.follow([weight])
        tracer.adopt("other", [x])
        with tracer.stage("forward"):
            h = (x @ weight).relu()
            y = (h @ weight).relu()
        assert tracer.live == (256 + 1 + 2) * KB  # products are freed, relu keeps its result
        with tracer.stage("backward"):
            loss = y.sum()
            loss.backward()
        del loss, h, y
        gc.collect()
        assert tracer.live == 2 * 256 * KB + KB
    stages = tracer.stages
    assert stages["forward"].device == (256 + 1 + 3) * KB
    assert stages["forward"].parts["weights"] == 256 * KB
    # Both products give a gradient of the weight before they are added up; in place, if it can.
    parts = stages["backward"].parts
    assert parts["gradients"] + parts["activations"] in range(512 * KB, 775 * KB)
    assert tracer.peak == stages["backward"]


def test_categories_add_up_and_stages_are_told_apart(tensors):
    layer = nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    size = 64 * 64 * 4
    with Tracer() as tracer:
        tracer.follow(layer.parameters())
        with tracer.stage("forward"):
            loss = layer(torch.ones(8, 64)).square().mean()
        with tracer.stage("backward"):
            loss.backward()
        del loss
        with tracer.stage("optimizer", holds="optimizer"):
            optimizer.step()
    assert list(tracer.stages) == ["outside", "forward", "backward", "optimizer"]
    for peak in tracer.stages.values():
        assert sum(peak.parts.values()) == peak.device
    parts = tracer.stages["optimizer"].parts
    assert parts["weights"] == parts["gradients"] == size
    assert 2 * size <= parts["optimizer"] <= 4 * size + 64


def test_host_memory_is_told_apart(tensors):
    with Tracer() as tracer:
        x = torch.ones(256)
        with tracer.stage("away"):
            parked = host.empty(x.shape, x.dtype, x)
            parked.copy_(x)
            del x
            assert (tracer.live, tracer.host) == (0, KB)
            back = torch.empty_like(parked).copy_(parked)
        assert (tracer.live, tracer.host) == (KB, KB)
        assert host.is_host(parked)
        assert host.is_host(parked[3:].untyped_storage())
        assert not host.is_host(back)
        del parked
        assert tracer.host == 0
    assert tracer.stages["away"].host == tracer.peak.host == KB
    assert tracer.peak.device == KB


def test_tensors_of_other_devices_are_host_memory():
    with Tracer("cuda") as tracer:
        x = torch.ones(256)
        assert (tracer.live, tracer.host) == (0, KB)
        del x
    with Tracer() as tracer:
        x = torch.ones(256, device="meta")
        assert (x.numel(), tracer.live) == (256, 0)


def blocks(cls, **policy):
    net = cls(2, 2, widths=(8, 16), blocks=1, attention_levels=(1,))
    MemoryPolicy(**policy).apply(net)
    return net


def forward_and_backward(net, dtype):
    z = torch.zeros(1, 2, 16, 16, 16, dtype=dtype)
    net(z, torch.full((1,), 0.5)).float().square().mean().backward()


SMALL = {"checkpoint": True, "dtype": "bfloat16", "channels_last": True}


@pytest.mark.parametrize(
    ("cls", "policy"),
    [(UNet, {}), (UNet, {"checkpoint": True}), (UNet, SMALL), (Pseudo3D, {})],
    ids=["plain", "checkpoint", "bfloat16", "pseudo3d"],
)
def test_equals_the_tracker_of_torch(cls, policy):
    # Both watch one run: the hooks of the other one keep some tensors alive a little longer.
    with FakeTensorMode():
        net, theirs = blocks(cls, **policy), MemTracker()
        theirs.track_external(net)
        with Tracer() as tracer:
            tracer.follow(net.parameters())
            with theirs:
                forward_and_backward(net, MemoryPolicy(**policy).torch_dtype)
    assert tracer.peak.device == pytest.approx(total(theirs), rel=0.01)


def total(tracker):
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def test_equals_the_tracker_of_torch_over_a_whole_step(tmp_path):
    config = tiny(tmp_path, tmp_path, "data.preprocessing.shape=[16,16,16]")
    with fake_task(config) as task:
        state = TrainingState.fresh(task, config.optim)
        with_moments(state)
        micros = [task.batch((16, 16, 16), 2)]
        states = [s for o in state.optimizers.values() for s in o.state.values()]
        given = [m for s in states for m in s.values()]
        given += [*state.ema.tensors.values(), micros[0].x]
        theirs = MemTracker()
        theirs.track_external(task.module, *given)
        with Tracer() as tracer:
            tracer.follow(task.module.parameters())
            tracer.adopt("other", [*given, *task.module.buffers()])
            with theirs:
                train_step(state, micros, clip=1.0, stage=tracer.stage)
    assert tracer.peak.device == pytest.approx(total(theirs), rel=0.01)
    assert list(tracer.stages) == ["outside", "encode", "forward", "backward", "optimizer"]


def test_inference_is_cut_into_stages(tmp_path):
    config = tiny(tmp_path, tmp_path, "data.preprocessing.shape=[16,16,16]")
    with fake_task(config) as task:
        batch = task.batch((16, 16, 16), 1)
        with Tracer() as tracer:
            task.use(batch, stage=tracer.stage)
    assert [s for s in tracer.stages if s != "outside"] == ["encode", "denoise", "decode"]
    assert tracer.peak == tracer.stages["denoise"]


def test_the_largest_tensor_of_a_convolution_is_known():
    weight = torch.zeros(16, 16, 1, 1, 1)
    for d, elements in ((512, 2**31), (64, 2**28)):
        with FakeTensorMode(allow_non_fake_inputs=True), Tracer() as tracer:
            x = torch.empty(1, 16, d, 512, 512, dtype=torch.bfloat16)
            torch.nn.functional.conv3d(x, weight.bfloat16())
            x.add_(1)  # not what counts
        assert tracer.indexed == elements
