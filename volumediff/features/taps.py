"""Taps: the places of a network whose tensors serve as features, watched while it runs.

    encoder.0, encoder.1, …   last tensor of a level on the way down, 0 the finest
    middle                    last tensor between the two
    …, decoder.1, decoder.0   last tensor of a level on the way up

`encoder` and `decoder` alone stand for all levels of theirs. Hooks read and change nothing.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from volumediff.networks._base import Network

__all__ = ["tap_channels", "tap_names", "watched"]


class _LastSeen(Exception):
    """Every tap has been seen; no error, it ends a pass of which the rest is not needed."""


def tap_names(network: Network, wanted: Sequence[str]) -> tuple[str, ...]:
    """Names of the levels in the order in which they run, `encoder` and `decoder` written out.

    Raises:
        ValueError: the network has no such level, or one is named twice
    """
    there = network.taps
    found: list[str] = []
    for name in wanted:
        group = [each for each in there if each == name or each.startswith(f"{name}.")]
        if not group:
            raise ValueError(
                f"levels: expected some of {', '.join(there) or 'none'}, encoder or decoder, got "
                f"{name}; choose levels that the network has."
            )
        found += group
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"levels: expected levels that differ, got {', '.join(wanted) or 'none'}."
        )
    return tuple(name for name in there if name in found)


def tap_channels(network: Network, names: Sequence[str]) -> tuple[int, ...]:
    """Channels of each level."""
    return tuple(network.taps[name].channels for name in names)


def watched(
    places: Mapping[str, nn.Module],
    run: Callable[[], object],
    see: Callable[[str, Tensor], None],
) -> None:
    """Runs something and shows the output of every place, each once, as soon as it is there.

    The tensor is the network's own, which goes on to work with it, in place now and then: `see`
    takes from it what it needs and keeps nothing of it. The run ends when all have been seen.

    Arguments:
        places: modules by name
        run: calls each of them once
        see: takes name and output
    """
    waiting = set(places)

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def show(module: nn.Module, inputs: object, output: Tensor) -> None:
            if name not in waiting:
                return
            see(name, output)
            waiting.discard(name)
            if not waiting:
                raise _LastSeen

        return show

    handles = [module.register_forward_hook(hook(name)) for name, module in places.items()]
    try:
        run()
    except _LastSeen:
        return
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError(f"never ran: {sorted(waiting)}")
