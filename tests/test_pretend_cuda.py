"""The pretend CUDA device itself: what it refuses, counts and orders, on cases known by hand."""

import re

import pretend_cuda
import pytest
import torch
import torch.nn.functional as F
from pretend_cuda.attention import Choice
from pretend_cuda.contracts import CONTRACTS, check
from pretend_cuda.nondeterministic import CONDITIONS, DOCUMENTED, OPERATIONS
from torch import nn

aten = torch.ops.aten
BF16 = torch.bfloat16


def test_a_module_computes_what_it_does_on_the_cpu():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
    x, results = torch.randn(2, 1, 4, 5, 6), []
    for where in ("cpu", "cuda"):
        with pretend_cuda.device():
            net.zero_grad()
            net.to(where)
            y = net(x.to(where))
            y.square().mean().backward()
            assert {p.device.type for p in net.parameters()} == {where} == {y.device.type}
            assert {p.grad.device.type for p in net.parameters()} == {where}
            results.append([y.detach().cpu(), *(p.grad.cpu() for p in net.parameters())])
            net.to("cpu")
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_gradients_travel_with_their_tensors():
    x = torch.randn(3, requires_grad=True)
    with pretend_cuda.device():
        there = (x.cuda() * 2).cpu()
        (there * torch.arange(3)).sum().backward()
    assert type(x.grad) is torch.Tensor
    assert x.grad.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: there + here,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: torch.where(here > 0, there, there),
        lambda here, there: there.addcmul(here, there),
        lambda here, there: here[(there > 0).nonzero()[:, 0]],
        lambda here, there: there.numpy(),
        lambda here, there: torch.stack([there, there]).__array__(),
        lambda here, there: F.linear(there, here[None]),
    ],
)
def test_what_needs_one_device_is_refused(mixed):
    here = torch.ones(3)
    with pretend_cuda.device():
        there = torch.ones(3, device="cuda")
        with pytest.raises((RuntimeError, TypeError), match=r"device|convert cuda:0|indices"):
            mixed(here, there)


def test_numbers_and_indices_of_the_cpu_are_taken():
    with pretend_cuda.device() as gpu:
        x = torch.arange(4.0, device="cuda")
        assert (x * torch.tensor(2.0))[torch.tensor([1, 3])].tolist() == [2, 6]
        assert torch.zeros_like(x).device.type == x.double().device.type == "cuda"
        assert x.new_ones(2).device.type == x.new_tensor([1.0]).device.type == "cuda"
    # For indices of the CPU, tolist, and the list of new_tensor.
    assert gpu.waits.total() == 3


def test_waits_and_bytes_are_counted():
    with pretend_cuda.device() as gpu:
        x = torch.ones(8).to("cuda")
        y = (x * 2).mean()
        assert (gpu.waits.total(), gpu.moved) == (1, {"to device": 32})
        assert float(y) == 2
        assert bool((x > 0).all())
        assert x.nonzero().shape == (8, 1)
        assert x[x > 0].shape == (8,)
        assert gpu.waits.total() == 5
        x.cpu()
        torch.cuda.synchronize()
        assert gpu.waits.total() == 7
        waiting = torch.empty(8, pin_memory=True)
        waiting.copy_(x, non_blocking=True)
        waiting.to("cuda", non_blocking=True)
        assert gpu.waits.total() == 7
        torch.empty(8).copy_(x, non_blocking=True)
        assert gpu.waits.total() == 8
    assert gpu.moved == {"to device": 64, "to host": 96}


def contracts():
    """Calls that a kernel of the CPU takes, if it has one, and that of CUDA refuses."""
    x, planar = torch.randn(2, 4, 8, dtype=BF16), torch.randn(2, 4, 6, 6)
    last = planar.contiguous(memory_format=torch.channels_last)
    four, volume, weight = torch.ones(4), torch.randn(1, 4, 3, 3, 3), torch.randn(4, 4, 1, 1, 1)
    eight, rows = torch.ones(8), torch.zeros(2, 4, 1)
    geometry = ((1,) * 3, (0,) * 3, (1,) * 3, False, (0,) * 3, 1)
    mask = [True, False, False]
    yield aten.native_layer_norm, (x, (8,), eight, eight, 1e-5)
    yield aten.native_layer_norm_backward, (x, x, (8,), rows, rows, eight, eight, mask)
    yield aten.native_group_norm, (last, four, four, 2, 4, 36, 2, 1e-5)
    stats = torch.ones(2, 2)
    yield aten.native_group_norm_backward, (last, last, stats, stats, four, 2, 4, 36, 2, mask)
    double = four.double()
    yield aten.native_batch_norm, (planar, double, double, four, four, False, 0.1, 1e-5)
    yield aten.convolution, (volume.to(BF16), weight, None, *geometry)
    yield (
        aten.convolution_backward,
        (volume.to(BF16), volume.to(BF16), weight, None, *geometry, mask),
    )
    whole = torch.ones(3, 3, dtype=torch.int64)
    yield aten.mm, (whole, whole)
    yield aten.bmm, (whole[None], whole[None])
    yield aten.addmm, (whole, whole, whole)
    yield aten.baddbmm, (whole[None], whole[None], whole[None])
    odd = torch.randn(6, dtype=torch.float16)
    yield aten._fft_r2c, (odd, (0,), 0, True)
    for pad in ("reflection_pad", "replication_pad"):
        for axes in (1, 2, 3):
            sizes = (*(2,) * (axes - 1), 2**31)
            yield getattr(aten, f"{pad}{axes}d"), (torch.empty(1, *sizes, device="meta"), (1, 1))


@pytest.mark.parametrize(("packet", "args"), contracts(), ids=lambda v: getattr(v, "__name__", ""))
def test_contracts_of_cuda_kernels(packet, args):
    with pytest.raises(RuntimeError, match="on CUDA: native/"):
        check(packet.default, args, {})


def test_every_contract_has_a_case_and_a_source():
    shown = {packet.default for packet, _ in contracts()}
    assert shown == set(CONTRACTS)
    assert all(c.source.startswith("native/") for c in CONTRACTS.values())


def test_contracts_hold_below_autograd():
    """The fault of the norm over channels: float32 weights beside bfloat16 data."""
    with pretend_cuda.device():
        x = torch.randn(2, 3, 4, dtype=BF16, device="cuda")
        with pytest.raises(RuntimeError, match=r"expected scalar type torch\.bfloat16"):
            F.layer_norm(x, (4,), torch.ones(4, device="cuda"), torch.zeros(4, device="cuda"))
        x.requires_grad_()
        y, mean, inverse = torch.native_layer_norm(x, (4,), None, None, 1e-5)
        assert {mean.dtype, inverse.dtype} == {torch.float32}
        y.sum().backward()
        assert x.grad.dtype == BF16


def test_the_list_of_nondeterministic_operations_is_torchs():
    text = torch.use_deterministic_algorithms.__doc__
    _, refused = text.split("will throw a\n    :class:`RuntimeError` when ``mode=True``:")
    refused, _ = refused.split("In addition, several operations fill")
    found = re.findall(r"^        \* :(?:class|func):`([\w.]+)", refused, re.MULTILINE)
    assert set(found) == set(DOCUMENTED)
    assert all(hasattr(aten, name) for name in OPERATIONS)
    assert set(CONDITIONS) <= OPERATIONS


def nondeterministic(name, function, *, counted=True):
    return pytest.param(function, counted, id=name)


@pytest.mark.parametrize(
    ("function", "counted"),
    [
        nondeterministic("mean of cells", lambda x: F.avg_pool3d(x, 2)),
        nondeterministic("adaptive mean", lambda x: F.adaptive_avg_pool3d(x, 2)),
        nondeterministic("linear", lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear")),
        nondeterministic("reflection", lambda x: F.pad(x, (1,) * 6, mode="reflect")),
        nondeterministic(
            "grid",
            lambda x: F.grid_sample(x, x.new_zeros(1, 2, 2, 2, 3), align_corners=False),
        ),
        nondeterministic("cumulated", lambda x: x * x.detach().cumsum(2)),
        nondeterministic("zeros", lambda x: F.pad(x, (1,) * 6), counted=False),
        nondeterministic("nearest", lambda x: F.interpolate(x, scale_factor=2.0), counted=False),
        nondeterministic("maximum", lambda x: F.max_pool3d(x, 2), counted=False),
        nondeterministic("counted up", lambda x: x * (x > 0).long().cumsum(2), counted=False),
    ],
)
def test_nondeterministic_backward_passes_are_seen(function, counted):
    with pretend_cuda.device() as gpu:
        x = torch.randn(1, 1, 4, 4, 4, device="cuda", requires_grad=True)
        function(x).sum().backward()
    assert (gpu.nondeterministic.total() == 1) is counted


@pytest.mark.parametrize(
    ("dtype", "size", "strict", "kernel"),
    [
        (BF16, 32, False, "cudnn"),
        (BF16, 32, True, "flash"),
        (BF16, 6, False, "flash"),
        (BF16, 264, True, "efficient"),
        (BF16, 258, True, "math"),
        (torch.float32, 32, True, "efficient"),
        (torch.float32, 36, False, "efficient"),
        (torch.float32, 6, False, "math"),
        (torch.float64, 32, True, "math"),
    ],
)
def test_the_kernel_of_attention(dtype, size, strict, kernel):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(strict)
    try:
        with pretend_cuda.device() as gpu:
            q = torch.randn(2, 3, 5, size, dtype=dtype, device="cuda", requires_grad=True)
            F.scaled_dot_product_attention(q, q, q).sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    exact = strict or kernel == "math"
    assert gpu.attention == [Choice(kernel, exact, 2 * 3 * 5 * 5 if kernel == "math" else 0)]
    assert gpu.nondeterministic.total() == (not exact)


def test_tf32_is_noted_where_float32_is_computed_with_it():
    with pretend_cuda.device() as gpu:
        x = torch.randn(1, 1, 4, 4, 4, device="cuda")
        F.conv3d(x, x)
        F.linear(x, x[0, 0, 0])
        assert [name.split()[0] for name in gpu.rounded] == ["convolution"]
        F.conv3d(x.to(BF16), x.to(BF16))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            F.conv3d(x, x)
        assert gpu.rounded.total() == 1


def copies(wait):
    """A slab that goes to host memory on one stream and comes back on another."""
    with pretend_cuda.device(streams=True) as gpu:
        out, back = torch.cuda.Stream(), torch.cuda.Stream()
        room = torch.empty(4, pin_memory=True)
        x = torch.ones(4, device="cuda")
        out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(out):
            room.copy_(x, non_blocking=True)
        wait(out, back)
        with torch.cuda.stream(back):
            y = room.to("cuda", non_blocking=True)
        torch.cuda.current_stream().wait_stream(back)
        torch.cuda.synchronize()
        assert y.tolist() == [1] * 4
    return gpu.order.races


def by_event(out, back):
    event = torch.cuda.Event()
    event.record(out)
    back.wait_event(event)


def test_streams_without_a_wait_between_them_race():
    (race,) = copies(lambda out, back: None)
    assert "reads what stream" in race
    assert copies(by_event) == []
    assert copies(lambda out, back: back.wait_stream(out)) == []
    assert copies(lambda out, back: out.synchronize()) == []
    assert copies(lambda out, back: torch.cuda.synchronize()) == []


def test_events_recorded_too_early_order_nothing():
    def too_early(out, back):
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream())
        back.wait_event(event)

    assert len(copies(too_early)) == 1


def test_the_host_races_with_copies_under_way():
    with pretend_cuda.device(streams=True) as gpu:
        room = torch.zeros(2, 4, pin_memory=True)
        room.copy_(torch.ones(2, 4, device="cuda"), non_blocking=True)
        room[:, 1:3].to("cuda", non_blocking=True)  # through a temporary that the host fills
        torch.cuda.synchronize()
        room.zero_()
    assert len(gpu.order.races) == 1
    assert gpu.order.races[0].startswith("the host reads what stream")


def test_bytes_that_do_not_meet_do_not_race():
    with pretend_cuda.device(streams=True) as gpu:
        room = torch.zeros(2, 4, pin_memory=True)
        room[0].copy_(torch.ones(4, device="cuda"), non_blocking=True)
        room[1].zero_()
        assert gpu.order.races == []
        room[0].zero_()
        assert len(gpu.order.races) == 1
        torch.cuda.synchronize()


def test_memory_is_not_free_while_another_stream_uses_it():
    def used(keep):
        with pretend_cuda.device(streams=True) as gpu:
            other, x = torch.cuda.Stream(), torch.ones(4, device="cuda")
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                y = x + 1
            keep(x, other)
            del x
            races = list(gpu.order.races)
            torch.cuda.synchronize()
            del y
        return races

    assert len(used(lambda x, other: None)) == 1
    assert used(lambda x, other: x.record_stream(other)) == []
    assert used(lambda x, other: torch.cuda.current_stream().wait_stream(other)) == []


def test_overlap_of_hand_drawn_timelines():
    """Two slabs of 4 bytes each: in, compute, out."""

    def passed(*, waits_for_next, out_stream):
        with pretend_cuda.device(streams=True) as gpu:
            order, incoming = gpu.order, torch.cuda.Stream()
            outgoing = torch.cuda.Stream() if out_stream else incoming
            arrived = [torch.cuda.Event() for _ in range(2)]
            for event in arrived:
                with torch.cuda.stream(incoming):
                    order.launch(1, copies=True)
                event.record(incoming)
            for i in range(2):
                torch.cuda.current_stream().wait_event(arrived[-1 if waits_for_next else i])
                order.launch(4)
                outgoing.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(outgoing):
                    order.launch(1, copies=True)
        return order.overlap()

    # A copy takes 1/4, a computation 1/2: in before and out after 1 if each waits for its own.
    assert passed(waits_for_next=False, out_stream=True) == pytest.approx(1.5)
    assert passed(waits_for_next=True, out_stream=True) == pytest.approx(1.75)
    assert passed(waits_for_next=True, out_stream=False) == pytest.approx(1.75)


def test_the_device_goes_without_a_trace():
    with pretend_cuda.device():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_properties(0).major == 9
    assert not torch.cuda.is_available()
    assert torch.ones(2).to("cpu").device.type == "cpu"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


def test_zeros_that_autograd_makes_are_of_the_device():
    with pretend_cuda.device():
        x = torch.randn(2, 4, device="cuda", requires_grad=True)
        first, _ = x.chunk(2, dim=1)
        first.sum().backward()
        assert x.grad.device.type == "cuda"
        assert x.grad.tolist() == [[1, 1, 0, 0]] * 2
    y = torch.randn(2, 4, requires_grad=True)
    with pretend_cuda.device():
        torch.ones(1, device="cuda").add_(1)
        y.chunk(2, dim=1)[0].sum().backward()
    assert type(y.grad) is torch.Tensor
