"""What the loop trains: a diffusion model, an autoencoder and what is trained against it, a
classifier, or a comparer.

A task names its players (groups of parameters that take turns, one for a diffusion model), gives
the loss of each sample for a player, and knows which tensors a checkpoint holds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders import Autoencoder, Reconstructor
from volumediff.classification import StateClassifier
from volumediff.comparison import ReconstructionComparer
from volumediff.model import Batch, Model
from volumediff.randomness import generator
from volumediff.spaces import StateSpace

__all__ = ["Classification", "Comparison", "Compression", "Diffusion", "Task"]


class Task(ABC):
    """Contract of what is trained; `main` is the player whose loss validates and selects."""

    module: nn.Module
    main: str
    digest: str = ""  # of the weights of a frozen autoencoder or diffusion model

    @abstractmethod
    def modules(self) -> Mapping[str, nn.Module]:
        """Trained parts by player."""

    @abstractmethod
    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        """Loss of each sample; gradients of its mean reach this player's parameters alone."""

    @cached_property
    def _named(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self._named

    @cached_property
    def _players(self) -> dict[str, list[nn.Parameter]]:
        mine = {id(p) for p in self._named.values()}
        return {
            player: [p for p in part.parameters() if id(p) in mine]
            for player, part in self.modules().items()
        }

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by player."""
        return self._players

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers that belong to a checkpoint: all but those of frozen parts."""
        frozen = self._frozen()
        return {n: t for n, t in self.module.state_dict().items() if not n.startswith(frozen)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the tensors of `state` back.

        Raises:
            RuntimeError: names or shapes differ
        """
        frozen = self._frozen()
        kept = {n: t for n, t in self.module.state_dict().items() if n.startswith(frozen)}
        self.module.load_state_dict({**tensors, **kept}, strict=True)

    def _frozen(self) -> tuple[str, ...]:
        return tuple(
            f"{name}."
            for name, part in self.module.named_modules()
            if name and isinstance(part, Autoencoder | Model)
        )


class Diffusion(Task):
    """A diffusion model; its network is the one player.

    Arguments:
        model: the model
        digest: SHA-256 of the autoencoder's weights in a latent space
        states: space of the volumes that the loss sees, if they are states computed beforehand
    """

    main = "network"

    def __init__(
        self, model: Model, *, digest: str = "", states: StateSpace | None = None
    ) -> None:
        self.module = self.model = model
        self.digest = digest
        self.states = states

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.model.network}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self._seen.loss(batch)

    def fit(self, volumes: Iterable[Float[Tensor, "_ _ _ _ _"]]) -> None:
        """Sets the space's normalisation from what the loss sees."""
        space = self.model.space if self.states is None else self.states
        space.fit(volumes)
        self.model.space.shift, self.model.space.scale = space.shift, space.scale

    @property
    def _seen(self) -> Model:
        """The model on the volumes that the loader brings: the same network and normalisation."""
        if self.states is None:
            return self.model
        self.states.shift, self.states.scale = self.model.space.shift, self.model.space.scale
        return Model(
            self.states,
            self.model.kernel,
            self.model.network,
            dtype=self.model.dtype,
            time_density=self.model.time_density,
            noise_field=self.model.noise_field,
            recipe=self.model.recipe,
        )


class Compression(Task):
    """An autoencoder, or any other reconstructor, with all its players.

    Arguments:
        autoencoder: what is trained
        dtype: in which it computes
        digest: SHA-256 of the weights of a frozen autoencoder that it works on
    """

    def __init__(
        self,
        autoencoder: Reconstructor,
        *,
        dtype: torch.dtype = torch.float32,
        digest: str = "",
    ) -> None:
        self.module = self.autoencoder = autoencoder
        self.digest = digest
        self.main = next(iter(autoencoder.players))
        self.dtype = dtype

    def modules(self) -> Mapping[str, nn.Module]:
        return self.autoencoder.players

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        # Sample by sample: the noise of a latent then depends on its own key alone.
        losses = [
            self.autoencoder.loss(
                player, x[None].to(self.dtype), generator=generator(key, player)
            )["loss"]
            for x, key in zip(batch.x, batch.keys, strict=True)
        ]
        return torch.stack(losses)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the volumes look like to it."""
        return self.autoencoder.reconstruct(x.to(self.dtype)).to(x.dtype)


class Classification(Task):
    """A classifier of the noisy states of a diffusion run.

    Arguments:
        module: the classifier with space, kernel and noise of that run
        digest: SHA-256 of the autoencoder's weights in a latent space
    """

    main = "classifier"

    def __init__(self, module: StateClassifier, *, digest: str = "") -> None:
        self.module = module
        self.digest = digest

    def modules(self) -> Mapping[str, nn.Module]:
        return {"classifier": self.module.classifier}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.module.loss(batch)


class Comparison(Task):
    """A comparer of volumes with what a frozen diffusion model makes of them.

    Arguments:
        module: the comparer with the model
        digest: SHA-256 of the model's weights
    """

    main = "comparer"

    def __init__(self, module: ReconstructionComparer, *, digest: str = "") -> None:
        self.module = module
        self.model = module.model
        self.digest = digest

    def modules(self) -> Mapping[str, nn.Module]:
        return {"comparer": self.module.comparer}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.module.loss(batch)
