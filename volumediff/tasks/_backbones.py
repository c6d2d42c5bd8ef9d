"""The network of one run in another one: which inputs see the volume, what fits by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from volumediff.errors import UsageError
from volumediff.networks._base import Network
from volumediff.networks.pseudo3d import inflate
from volumediff.spaces._base import StateSpace

__all__ = ["Backbone", "made_constant", "take_backbone"]

THROUGH = "through_plane."


@dataclass(frozen=True, eq=False)
class Backbone:
    """What another run may begin with.

    Arguments:
        network: trained on states of volumes
        space: of these states, with their normalisation
        first: the input channel of the network with which the volume begins
        untrained: parts that no training has changed
    """

    network: Network
    space: StateSpace
    first: int = 0
    untrained: tuple[nn.Module, ...] = ()


def take_backbone(mine: Backbone, source: Backbone, *, where: str, head: bool) -> str:
    """Copies the parameters that two networks share by name, and the normalisation of states.

    Input channels that see the volume, and coordinates, go to their places; the others of the
    source are left out, as if they were zero. A planar network is inflated.

    Arguments:
        mine: what begins
        source: what it begins with
        where: the key and the folder, for messages
        head: whether the last layers are taken, too

    Returns:
        what was taken and what is new, in a sentence

    Raises:
        UsageError: parts of the encoder, or parts of the same name, have other shapes
    """
    network, other = mine.network, source.network
    random, own = _names(other, source.untrained), dict(network.state_dict())
    weights = {n: tensor for n, tensor in other.state_dict().items() if n not in random}
    planar = not any(THROUGH in n for n in weights) and any(THROUGH in n for n in own)
    if planar:
        sizes = [t.shape[2] for n, t in own.items() if THROUGH in n and t.ndim == 5]
        try:
            weights = inflate(weights, kernel=sizes[0])
        except ValueError as error:
            raise UsageError(f"{where}: does not fit this network ({error}).") from None
    try:
        anatomy = network.anatomy
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from None
    outer = () if head else _names(network, anatomy.head)
    inner = _names(network, anatomy.descent)
    stem = _names(network, (anatomy.stem,))
    taken, new = [], []
    for name, tensor in own.items():
        found = weights.get(name)
        if name in stem and found is not None and found.ndim == 5:
            found = _stem(tensor, found, mine, source)
        optional = name not in inner or name.startswith("embedding.")
        if name in outer or (found is None and optional):
            new.append(name)
            continue
        if found is None or found.shape != tensor.shape:
            got = "none" if found is None else tuple(found.shape)
            raise UsageError(
                f"{where}: does not fit this network ({name}: expected {tuple(tensor.shape)}, got "
                f"{got}); choose the same network as there."
            )
        own[name] = found
        taken.append(name)
    network.load_state_dict(own)
    mine.space.load_state_dict(source.space.state_dict())
    text = f"{where}: took {len(taken)} of {len(own)} tensors of the network"
    return f"{text}; new: {', '.join(_parts(new))}" if new else text


def _stem(own: Tensor, found: Tensor, mine: Backbone, source: Backbone) -> Tensor:
    """The weight of a first convolution with the inputs of this network."""
    here, there = mine.network, source.network
    if own.shape[1] != here.input_channels or found.shape[1] != there.input_channels:
        return found  # a layer of the stem that does not see the input
    if own.shape[0] != found.shape[0] or own.shape[2:] != found.shape[2:]:
        return found
    k, weight = here.in_channels, own.clone()
    weight[:, :k] = found[:, source.first : source.first + k]
    if here.coordinates and there.coordinates:
        weight[:, -3:] = found[:, -3:]
    return weight


def _names(network: Network, parts: tuple[nn.Module, ...]) -> set[str]:
    """Names of the tensors of some parts."""
    wanted = {id(m) for part in parts for m in part.modules()}
    return {
        f"{name}.{tensor}"
        for name, module in network.named_modules()
        if id(module) in wanted
        for tensor in module._parameters.keys() | module._buffers.keys()
    }


def _parts(names: list[str]) -> list[str]:
    """The parts that tensors belong to, each once."""
    return sorted({".".join(name.split(".")[:2]) for name in names})


def made_constant(parts: tuple[nn.Module, ...]) -> None:
    """Makes the parameters of some parts constants: saved as ever, and never trained."""
    for part in parts:
        for module in part.modules():
            held: Mapping[str, nn.Parameter | None] = dict(module._parameters)
            for name, parameter in held.items():
                if parameter is not None:
                    del module._parameters[name]
                    module.register_buffer(name, parameter.data)
