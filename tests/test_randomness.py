"""Keyed randomness: the same key gives the same numbers, whatever happened before."""

import torch

from volumediff import randomness


def test_key_is_stable_across_versions():
    # A changed hash would silently change every published run.
    assert randomness.key(0, 1, "noise") == 5921487384644017451


def test_key_depends_on_every_part_and_on_order():
    keys = {
        randomness.key(*parts)
        for parts in [(0, 1), (1, 0), (0, 1, "t"), (0, "1"), (0, 1, "noise"), (1,), (0,)]
    }
    assert len(keys) == 7


def test_numbers_ignore_the_global_generator():
    first = randomness.normal((3, 4), 7, "noise")
    torch.randn(10)
    torch.manual_seed(99)
    torch.testing.assert_close(randomness.normal((3, 4), 7, "noise"), first, rtol=0, atol=0)
    state = torch.get_rng_state()
    randomness.normal((5,), 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_standard_normal_and_uniform():
    x = randomness.normal((200_000,), 3, dtype=torch.float64)
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    u = torch.tensor([randomness.uniform(5, i) for i in range(2000)])
    assert abs(float(u.mean()) - 0.5) < 0.03
    assert 0 <= float(u.min())
    assert float(u.max()) < 1
