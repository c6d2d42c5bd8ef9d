"""What waits in host memory travels beside the computation, in order, and in dense slabs."""

import pretend_cuda
import pytest
import torch

from volumediff.memory import host
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.store import HostStore
from volumediff.memory.transfers import Transfers
from volumediff.networks.unet import UNet

CPU = torch.device("cpu")


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def passed(batch, *, attention, channels_last, training):
    """The order of a pass with a slab of 4 of 32 planes."""
    with pretend_cuda.device():
        levels = (1,) if attention else ()
        network = UNet(1, 1, widths=(8, 16), blocks=1, attention_levels=levels).to("cuda")
        MemoryPolicy(slab=4, offload=True, checkpoint=True, channels_last=channels_last).apply(
            network
        )
        x, t = draw(batch, 1, 32, 8, 8).to("cuda"), torch.full((batch,), 0.5, device="cuda")
    with pretend_cuda.device(streams=True) as gpu, torch.set_grad_enabled(training):
        y = network(x, t)
        if training:
            y.square().mean().backward()
        assert gpu.waits.total() == 0
        return gpu.order


@pytest.mark.parametrize(
    ("batch", "attention", "channels_last", "training"),
    [
        (1, False, True, True),
        (2, True, True, True),
        (2, True, False, True),
        (1, True, False, False),
        (2, False, False, False),
    ],
)
def test_copies_are_in_order_and_hidden(batch, attention, channels_last, training):
    how = {"attention": attention, "channels_last": channels_last, "training": training}
    order = passed(batch, **how)
    assert order.races == []
    assert order.bytes_of("copy") > 0.15 * order.bytes_of("compute")
    assert order.overlap() <= 1.15


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_a_volume_in_host_memory_gives_back_what_it_was_given(layout):
    x = draw(2, 3, 7, 4, 5).contiguous(memory_format=layout)
    transfers = Transfers(CPU)
    store = HostStore(x[:, :, :3].contiguous(memory_format=layout), 7, transfers)
    for lo, hi in ((0, 3), (2, 6), (6, 7)):
        store.write(lo, x[:, :, lo:hi].contiguous(memory_format=layout))
    transfers.begin()
    found = store.read((1, 6))
    assert torch.equal(found, x[:, :, 1:6])
    assert found.is_contiguous(memory_format=layout)


def test_sums_in_host_memory_are_those_of_whole_volumes():
    transfers = Transfers(CPU)
    x, expected = draw(1, 2, 9, 3, 3), torch.zeros(1, 2, 9, 3, 3)
    store = HostStore(x[:, :, :1], 9, transfers)
    passes = [
        [(0, 3), (1, 5), (4, 8)],  # plane 8 is never reached
        [(0, 2), (0, 4), (2, 6), (4, 9)],
        [(1, 4), (6, 9), (8, 9)],  # planes 0, 4 and 5 are left out
    ]
    for number, ranges in enumerate(passes):
        transfers.begin()
        ahead = [store.ask_sum(r) if number else lambda: None for r in ranges[:1]]
        for i, (lo, hi) in enumerate(ranges):
            # As in a pass: the next slab's planes are asked for before this one is added.
            for following in ranges[i + 1 : i + 2]:
                transfers.begin()
                ahead.append(store.ask_sum(following) if number else lambda: None)
            expected[:, :, lo:hi] += (number + i + 1) * x[:, :, lo:hi]
            store.add(lo, (number + i + 1) * x[:, :, lo:hi], ahead[i]())
        store.complete()
    transfers.begin()
    torch.testing.assert_close(store.whole(), expected, rtol=0, atol=1e-5)


def test_what_would_need_a_temporary_is_refused():
    transfers = Transfers(CPU)
    room = host.empty((4, 2, 3), torch.float32, draw(1))
    with pytest.raises(AssertionError, match="dense"):
        transfers.send(draw(3, 2, 4).permute(2, 1, 0), room)
    with pytest.raises(AssertionError, match="dense"):
        transfers.send(draw(4, 2, 3).double(), room)
    transfers.begin()
    with pytest.raises(AssertionError, match="dense"):
        transfers.fetch(room[:, 1:])
