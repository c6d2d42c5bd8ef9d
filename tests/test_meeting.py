"""Processes wait as long as the others live, and no longer; threads stand for processes."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from volumediff.distributed import meeting
from volumediff.distributed.meeting import Meeting, Silence

PATIENCE = timedelta(seconds=0.5)


@pytest.fixture
def meetings(monkeypatch):
    """Of three processes."""
    monkeypatch.setattr(meeting, "BEAT", 0.1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [store, *(dist.TCPStore("127.0.0.1", store.port) for _ in range(2))]
    made = [Meeting(rank, 3, own, PATIENCE) for rank, own in enumerate(stores)]
    yield made
    for one in made[::-1]:
        one.end()


def together(works):
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_nobody_goes_on_before_all_are_there(meetings):
    came, went = [], []

    def work(rank):
        for number in range(20):
            time.sleep(0.01 * ((rank + number) % 3))
            came.append(number)
            meetings[rank].wait()
            went.append((number, came.count(number)))

    together([lambda r=rank: work(r) for rank in range(3)])
    assert len(went) == 60
    assert {count for _, count in went} == {3}


def test_work_takes_longer_than_the_patience(meetings):
    began, waited = time.monotonic(), []

    def work(rank):
        time.sleep(2.5 * PATIENCE.total_seconds() * (rank == 1))
        meetings[rank].wait()
        waited.append(time.monotonic() - began)

    together([lambda r=rank: work(r) for rank in range(3)])
    assert len(waited) == 3
    assert min(waited) > 2.5 * PATIENCE.total_seconds()


@pytest.mark.parametrize("fault", ["frozen", "no answer"])
def test_a_silent_process_is_not_waited_for(meetings, monkeypatch, fault):
    thawed = threading.Event()
    # no answer: as where the process is frozen that has the store
    for one in meetings[2:] if fault == "frozen" else meetings[:2]:
        monkeypatch.setattr(one, "_hear", lambda said: thawed.wait(60))
    began, raised = time.monotonic(), []

    def work(rank):
        try:
            meetings[rank].wait()
        except Silence:
            raised.append(time.monotonic() - began)

    together([lambda r=rank: work(r) for rank in range(2)])
    assert len(raised) == 2
    assert max(raised) < PATIENCE.total_seconds() + 1
    thawed.set()
